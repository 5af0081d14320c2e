import functools

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.select_forward import make_forward, make_tree_forward, tolerance, tree_errors
from lit_hass.decoding.slot_forward import SlotForward
from lit_hass.errors import UserError

from .drafts import OracleDraft, random_draft
from .tiny_models import FAMILIES, LEAN, TREE_FAMILIES, VOCAB, build, prompt

REFUSED = {
    "bloom": "BloomForCausalLM cannot verify draft trees: alibi",
    "falcon_alibi": "FalconForCausalLM cannot verify draft trees: alibi",
    "mamba": "MambaForCausalLM cannot verify draft trees: linear attention or a recurrent state",
    "lfm2": "Lfm2ForCausalLM cannot verify draft trees: layers of kind conv",
}
WORKING = tuple(family for family in (*FAMILIES, *TREE_FAMILIES) if family not in REFUSED)
EAGER = ("llama", "mistral_window", "qwen2_mixed", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi3")
SETTINGS = {
    "greedy": SamplingConfig(),
    "greedy penalties": SamplingConfig(repetition_penalty=1.2, no_repeat_ngram_size=2),
    "sampled": SamplingConfig(temperature=1.0),
    "all": SamplingConfig(0.7, top_p=0.9, top_k=20, repetition_penalty=1.2, no_repeat_ngram_size=3),
}
SEEDS = [1, 2, 3, 4]
FIRST = 5


@functools.cache
def models(family, attention=None):
    model = build(family)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model


@functools.cache
def forwards(family, attention=None):
    return make_tree_forward(models(family, attention))


@functools.cache
def plain_forwards(family, attention=None):
    return make_forward(models(family, attention))


def prompts():
    """Ragged; all begin alike, as the oracle needs it."""
    return [torch.cat((torch.tensor([FIRST]), prompt(n))) for n in (6, 17, 0, 11)]


def compare(family, attention, sampling, count=12):
    """A batch with a draft of the base's own opinion, spoilt by noise, against plain decoding."""
    model, forward = models(family, attention), forwards(family, attention)
    expected = AutoregressiveDecoder(plain_forwards(family, attention)).generate(
        prompts(), count, sampling, seeds=SEEDS
    )
    decoder = SpeculativeDecoder(forward, random_draft(model), TreeConfig(8, 2, 2))
    decoder.draft = OracleDraft(model, FIRST, 0.3)
    answers = decoder.generate(prompts(), count, sampling, seeds=SEEDS)
    for ours, theirs in zip(answers, expected, strict=True):
        assert ours.output_ids.tolist() == theirs.output_ids.tolist()
    (alone,) = decoder.generate(prompts()[1:2], count, sampling, seeds=SEEDS[1:2])
    assert alone.output_ids.tolist() == expected[1].output_ids.tolist()
    assert alone.accept_lengths == answers[1].accept_lengths
    assert decoder.draft.fed > 0
    return [accepted for answer in answers for accepted in answer.accept_lengths]


@pytest.mark.parametrize("family", WORKING)
def test_nothing_is_lost(family):
    accepted = compare(family, None, SETTINGS["greedy penalties"])
    assert min(accepted) == 0 and max(accepted) >= 2, "the draft is to be neither useless nor perfect"


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("family", WORKING)
def test_nothing_is_lost_under_any_setting(family, name):
    compare(family, None, SETTINGS[name], 40)


@pytest.mark.parametrize("family", WORKING)
def test_a_wide_random_draft(family):
    """A draft's own module and cache, over the family's own output layer."""
    model = models(family)
    decoder = SpeculativeDecoder(forwards(family), random_draft(model), TreeConfig(60, 1, 40))
    expected = AutoregressiveDecoder(plain_forwards(family)).generate(prompts(), 12, SETTINGS["all"], seeds=SEEDS)
    answers = decoder.generate(prompts(), 12, SETTINGS["all"], seeds=SEEDS)
    assert [a.output_ids.tolist() for a in answers] == [e.output_ids.tolist() for e in expected]
    assert any(any(answer.accept_lengths) for answer in answers)


@pytest.mark.parametrize("family", EAGER)
def test_eager_attention(family):
    assert models(family, "eager").config._attn_implementation == "eager"
    compare(family, "eager", SETTINGS["greedy"])


@pytest.mark.parametrize("family", WORKING)
def test_the_forward_is_chosen_by_family(family):
    assert type(forwards(family)) is (LeanForward if family in LEAN else SlotForward)
    error, control = tree_errors(SlotForward(models(family)))
    assert error < 1e-5 < 1e-2 < control


@pytest.mark.parametrize("family", REFUSED)
def test_what_cannot_work_is_refused_by_name(family):
    with pytest.raises(UserError, match=REFUSED[family]):
        SpeculativeDecoder(models(family), random_draft(models("llama")))


@pytest.mark.parametrize("family", ["llama", "llama_biases", "gpt2", "gpt_neox", "opt", "gemma2", "gemma3", "phi3"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_not_refused(family, dtype):
    """The tolerance of bfloat16 is as large as what a wrong mask does: the distance of both decides."""
    forward = make_tree_forward(build(family).to(dtype))
    error, control = tree_errors(forward)
    assert error <= tolerance(dtype) and control > 4 * error


@pytest.mark.parametrize("family", ["gemma2", "granite"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logits_are_the_models_own_in_half_precision(family, dtype):
    """A soft cap of 30 moves small logits by less than a tolerance of half precision."""
    model = build(family).to(dtype)
    ids = prompt(9)[None]
    hidden = model.base_model(input_ids=ids).last_hidden_state
    assert torch.equal(HFForward(model).logits(hidden), model(input_ids=ids).logits.float())


def test_an_ignored_mask_is_noticed(monkeypatch):
    """Attention that is causal over the slots, whatever mask it is given."""
    model = build("phi3")
    true_attention = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def causal(module, query, key, value, attention_mask, **kwargs):
        start, count = key.shape[2] - query.shape[2], query.shape[2]
        mask = torch.ones(count, key.shape[2], dtype=torch.bool).tril(start)[None, None]
        return true_attention(module, query, key, value, mask, **{**kwargs, "is_causal": False})

    assert type(make_tree_forward(model)) is SlotForward
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", causal)
    with pytest.raises(UserError) as caught:
        SpeculativeDecoder(model, random_draft(model))
    message = str(caught.value)
    error, control = tree_errors(SlotForward(model))
    assert "Phi3ForCausalLM (attention sdpa) cannot verify draft trees" in message
    assert f"differ from plain forwards by {error:.1e}" in message and f"a wrong mask gives {control:.1e}" in message
    assert error > 1e-2


def test_ignored_positions_are_noticed(monkeypatch):
    """Nodes that get the position of their slot, not of their depth."""
    model = build("gpt2")
    assert type(make_tree_forward(model)) is SlotForward

    def by_slot(self, depths, starts):
        return (torch.arange(depths.shape[1]).expand_as(depths) + starts[:, None]).clamp(max=self.context - 1)

    monkeypatch.setattr(SlotForward, "positions", by_slot)
    with pytest.raises(UserError, match="GPT2LMHeadModel .* cannot verify draft trees: logits differ"):
        make_tree_forward(model)


def test_other_attention_is_refused_by_name():
    model = build("phi3")
    model.config._attn_implementation = "flex_attention"
    with pytest.raises(UserError, match="Phi3ForCausalLM.*'flex_attention' takes no tree mask"):
        make_tree_forward(model)


def test_a_wrong_lean_forward_is_not_used(monkeypatch):
    from lit_hass.decoding import lean_cache

    def blind(cache, positions, visible, dtype, offset=0):
        return lean_cache.place_tree(cache, positions, torch.ones_like(visible), dtype, offset)

    monkeypatch.setattr("lit_hass.decoding.lean.place_tree", blind)
    assert type(make_tree_forward(build("llama"))) is SlotForward
    assert VOCAB == 97
