"""Models that need another way to be called, or cannot be used: a self-test finds out, and no raw error comes."""

import logging

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig, BertLMHeadModel

from lit_hass.data.perplexity_plan import WindowBatch
from lit_hass.decoding import AutoregressiveDecoder, SpeculativeDecoder, TreeConfig, make_forward
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.whole_forward import WholeForward
from lit_hass.errors import UserError
from lit_hass.models import DraftModel, context_length
from lit_hass.modules.frozen_base import FrozenBase
from lit_hass.modules.window_scorer import WindowScorer

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 80, "head_dim": 8, "initializer_range": 0.3, "pad_token_id": 1,
    "bos_token_id": 0, "eos_token_id": 2,
}  # fmt: skip
BERT = {"is_decoder": True}
#: Positions begin behind the padding id, which `generate` does not know: it counts from 0, unlike the model's forward.
BEHIND_PADDING = (
    "roberta", "xlm-roberta", "camembert", "data2vec-text", "roberta-prelayernorm", "xlm-roberta-xl",
)  # fmt: skip
FAMILIES = {
    **dict.fromkeys(("bert", "ernie", "megatron-bert", "big_bird", "roc_bert", "bert-generation"), BERT),
    **dict.fromkeys(BEHIND_PADDING, BERT),
    "electra": {**BERT, "embedding_size": 32},
    "roformer": {**BERT, "embedding_size": 32},
    "rembert": {**BERT, "input_embedding_size": 32, "output_embedding_size": 32},
    "llama4_text": {"num_local_experts": 2, "intermediate_size_mlp": 48, "attention_chunk_size": 64},
    "gemma4_text": {"sliding_window": 8, "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8},
    "minimax": {"num_local_experts": 2},
    "cohere2_moe": {},
    "mamba": {"state_size": 4},
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
}
#: Have a layer between the last hidden state and the output layer.
TRANSFORMED = [name for name, settings in FAMILIES.items() if "is_decoder" in settings and name != "bert-generation"]
#: Take no cache but one that they made.
OWN_CACHE = ("minimax",)
PROMPTS = [torch.arange(3, 12), torch.arange(20, 25), torch.arange(30, 39), torch.arange(50, 57)]


def build(family, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SIZES, **FAMILIES.get(family, {}), **settings})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() > 1 and 0 < float(parameter.std()) < 0.1:  # logits far enough apart that rounding is nothing
            parameter.mul_(0.3 / parameter.std())
    return model


def plain(model, ids, count):
    """Greedy decoding by the definition: a whole forward for each token."""
    ids = ids[None]
    for _ in range(count):
        following = model(input_ids=ids, use_cache=False).logits[:, -1].argmax(-1, keepdim=True)
        ids = torch.cat((ids, following), dim=1)
    return ids[0, -count:].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_decoded_as_its_own_forward_does(family):
    """Ragged rows that end apart; and whatever verifies trees gives the same, or is refused by name."""
    model = build(family)
    decoder = AutoregressiveDecoder(model)
    wanted = [plain(model, ids, 8) for ids in PROMPTS]
    assert isinstance(decoder.forward, HFForward)
    assert decoder.forward._own_cache == (family in OWN_CACHE)
    assert decoder.forward.collects == (family not in TRANSFORMED)
    if family in TRANSFORMED:  # collapse metrics would compare them with rows of the output layer
        with pytest.raises(UserError, match="its output layer does not read its last hidden states"):
            decoder.generate(PROMPTS, 8, collect_features=True)
        with pytest.raises(UserError, match="no draft can be trained for it, as its output layer does not read"):
            FrozenBase(model)
    found = decoder.generate(PROMPTS, 8, collect_features=decoder.forward.collects)
    assert [one.output_ids.tolist() for one in found] == wanted
    stop = (wanted[1][2], wanted[3][4])
    cut = [a[: 1 + min((i for i, t in enumerate(a) if t in stop), default=len(a))] for a in wanted]
    assert [one.output_ids.tolist() for one in decoder.generate(PROMPTS, 8, stop_ids=stop)] == cut
    if family not in BEHIND_PADDING:
        for ids, answer in zip(PROMPTS, wanted, strict=True):
            made = model.generate(
                ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=8, do_sample=False,
                eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
            assert made[0, len(ids) :].tolist() == answer
    try:
        draft = DraftModel.from_base(model).eval()
        speculative = SpeculativeDecoder(model, draft, TreeConfig(20, 2, 6))
    except UserError as error:
        assert type(model).__name__ in str(error) and "\n" not in str(error)
        assert family in (*BEHIND_PADDING, "roformer", "llama4_text", "minimax", "mamba", "falcon_h1")
    else:
        assert [one.output_ids.tolist() for one in speculative.generate(PROMPTS, 8)] == wanted


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "llama4_text", "cohere2_moe"])
def test_windows_are_scored(family):
    model = build(family)
    ids = torch.arange(3, 23).view(2, 10)
    targets = ids[:, 1:].reshape(-1)
    positions = torch.cat((torch.arange(9), torch.arange(10, 19)))
    batch = WindowBatch(
        input_ids=ids, lengths=(10, 10), positions=positions, targets=targets, owners=torch.arange(18) // 9,
        pages=torch.zeros(18, dtype=torch.long), windows=(0, 1), members=((), ()),
    )  # fmt: skip
    scorer = WindowScorer(model)
    assert scorer.takes_apart == (family not in TRANSFORMED)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].reshape(18, -1)
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(scorer(batch).nll, expected, rtol=1e-4, atol=1e-4)


class NoParts(BertLMHeadModel):
    """Logits that depend on more than the last hidden state, and a cache that nobody can use."""

    def forward(self, input_ids=None, use_cache=None, past_key_values=None, **kwargs):
        if past_key_values is not None:
            raise NotImplementedError("no cache here")
        output = super().forward(input_ids=input_ids, use_cache=False, **kwargs)
        output.logits = output.logits + self.get_input_embeddings().weight[input_ids].sum(-1, keepdim=True).sin() * (
            torch.arange(97) % 7
        )
        return output


def test_what_cannot_be_taken_apart_is_read_whole(caplog):
    torch.manual_seed(0)
    model = NoParts(BertConfig(**SIZES, is_decoder=True)).eval().requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        decoder = AutoregressiveDecoder(model)
    assert type(decoder.forward) is WholeForward and not decoder.forward.features
    assert "each token takes a forward over the whole sequence" in caplog.text
    assert [one.output_ids.tolist() for one in decoder.generate(PROMPTS, 6)] == [plain(model, p, 6) for p in PROMPTS]
    with pytest.raises(UserError, match="NoParts: no features can be collected"):
        decoder.generate(PROMPTS, 2, collect_features=True)
    with pytest.raises(UserError, match="NoParts: its logits are not to be had"):
        FrozenBase(model)
    with pytest.raises(UserError, match="NoParts cannot verify draft trees|NoParts: its logits cannot be reproduced"):
        SpeculativeDecoder(model, DraftModel.from_base(build("bert")).eval())


def test_a_cache_that_does_not_work_is_done_without(caplog):
    """A decoder that takes a cache and forgets it."""
    model = build("bert-generation")
    own = model.bert.forward
    model.bert.forward = lambda input_ids=None, use_cache=None, past_key_values=None, **kw: own(input_ids, **kw)
    with caplog.at_level(logging.WARNING):
        decoder = AutoregressiveDecoder(model)
    assert "logits differ by" in caplog.text or "error" in caplog.text.lower()
    assert type(decoder.forward) is WholeForward and decoder.forward.features
    found = decoder.generate(PROMPTS, 5, collect_features=True)
    assert [one.output_ids.tolist() for one in found] == [plain(model, ids, 5) for ids in PROMPTS]
    whole = torch.cat((PROMPTS[0], found[0].output_ids[:-1]))[None]
    states = own(whole).last_hidden_state[0]
    torch.testing.assert_close(found[0].features.features, states, rtol=1e-4, atol=1e-4)


def test_what_is_not_causal_is_refused():
    model = BertLMHeadModel(BertConfig(**SIZES, is_decoder=False)).eval().requires_grad_(False)
    with pytest.raises(UserError, match="BertLMHeadModel cannot be decoded token by token.*not causal"):
        make_forward(model)


def test_a_model_that_does_not_run_is_refused_by_name():
    class Broken(BertLMHeadModel):
        def forward(self, *args, **kwargs):
            raise KeyError("a part that is not there")

    model = Broken(BertConfig(**SIZES, is_decoder=True)).eval()
    with pytest.raises(UserError, match="Broken cannot be decoded: its own forward stops with KeyError"):
        make_forward(model)


def test_positions_behind_the_padding_are_not_in_the_context():
    """The last token that the model can look up a position for is the last one that is answered."""
    model = build("roberta")
    assert context_length(model.config) == 78
    (answer,) = AutoregressiveDecoder(model).generate([torch.arange(70) % 90 + 3], 40)
    assert (len(answer.output_ids), answer.stop_reason) == (8, "context")
    model(input_ids=torch.full((1, 78), 5))
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        model(input_ids=torch.full((1, 79), 5))
