import dataclasses

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.draft_forward import ModuleDraft
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.slot_forward import SlotForward
from lit_hass.errors import RunError, UserError
from lit_hass.models import DraftModel

from .drafts import OracleDraft, random_draft
from .tiny_models import VOCAB, build, prompt

FIRST = 5
TREE = TreeConfig(15, 3, 2)
#: With the base's own opinion, every step accepts four tokens.
CHAIN = TreeConfig(5, 3, 1)
PENALTIES = SamplingConfig(repetition_penalty=1.2, no_repeat_ngram_size=3)
SAMPLED = SamplingConfig(temperature=0.9, top_p=0.9, repetition_penalty=1.1)


@pytest.fixture(scope="module")
def base():
    return build("llama")


@pytest.fixture(scope="module")
def plain(base):
    return AutoregressiveDecoder(base)


def good(base, tree=TREE, noise=0.0):
    """A decoder whose draft says what the base will say, spoilt by noise."""
    decoder = SpeculativeDecoder(base, random_draft(base), tree)
    decoder.draft = OracleDraft(base, FIRST, noise)
    return decoder


def begin(length, seed=0):
    return torch.cat((torch.tensor([FIRST]), prompt(length - 1, seed)))


def ids(answers):
    return [answer.output_ids.tolist() for answer in answers]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 6, 7])
def test_the_limit_cuts_exactly(base, plain, count):
    prompts = [begin(6), begin(1), begin(9)]
    whole = plain.generate(prompts, 7)
    for sampling in (SamplingConfig(), PENALTIES):
        expected = plain.generate(prompts, count, sampling)
        answers = good(base, CHAIN).generate(prompts, count, sampling, collect_features=True)
        assert ids(answers) == ids(expected)
        for answer in answers:
            assert (len(answer.output_ids), answer.stop_reason) == (count, "length")
            assert (answer.features is None) == (count == 0)
            # The first token comes with the prompt; a step accepts up to 4 drafted tokens and adds one.
            assert sum(a + 1 for a in answer.accept_lengths) + 1 >= count
            assert answer.steps == len(answer.accept_lengths)
            if sampling is PENALTIES:
                continue  # of which the draft knows nothing
            assert answer.accept_lengths == [4] * (-(-(count - 1) // 5) if count else 0)
    assert ids(whole)[0][:count] == ids(good(base, CHAIN).generate(prompts, count))[0]


def test_the_first_stop_token_cuts_exactly(base, plain):
    """At every place of a path: as the first token, in its middle, as its last and as the bonus token."""
    prompts = [begin(6), begin(11)]
    sampling = SamplingConfig(temperature=1.0)
    whole = ids(plain.generate(prompts, 12, sampling))
    places = set()
    for place in range(12):
        stop = [whole[0][place], whole[1][place]]
        expected = plain.generate(prompts, 12, sampling, stop)
        answers = good(base).generate(prompts, 12, sampling, stop, collect_features=True)
        assert ids(answers) == ids(expected)
        for answer, tokens in zip(answers, whole, strict=True):
            end = min(i for i, token in enumerate(tokens) if token in stop)
            assert answer.output_ids.tolist() == tokens[: end + 1]
            assert answer.stop_reason == "stop" and answer.output_ids.dtype == torch.long
            assert len(answer.features.token_ids) == len(answer.features.features) == len(answer.features.states)
            places.add(end)
    assert {0, 1, 2, 3, 5} <= places


def test_a_stop_token_in_the_prompt_does_not_count(base, plain):
    prompts = [begin(6)]
    (expected,) = ids(plain.generate(prompts, 9))
    stop = next(token for token in prompts[0].tolist() if token not in expected)
    assert ids(good(base).generate(prompts, 9, stop_ids=[stop])) == [expected]


def test_a_finished_row_costs_nothing(base):
    prompts = [begin(6), begin(4)]
    decoder = good(base)
    alone = decoder.generate(prompts[1:], 20)[0]
    stop = decoder.generate(prompts[:1], 1)[0].output_ids.tolist()
    if stop[0] in alone.output_ids.tolist():
        pytest.fail("choose other prompts: the second answer holds the first one's token")
    first, second = decoder.generate(prompts, 20, stop_ids=stop)
    assert (first.steps, first.accept_lengths, len(first.output_ids)) == (0, [], 1)
    assert second.output_ids.tolist() == alone.output_ids.tolist() and second.accept_lengths == alone.accept_lengths


@pytest.mark.parametrize("family", ["llama", "llama_dynamic_rope", "gpt2", "opt", "gemma3"])
@pytest.mark.parametrize("left", [0, 1, 2, 4, 9])
def test_nothing_is_looked_at_outside_the_context(monkeypatch, family, left):
    """Prompts that nearly fill the context of 256, in a batch with others."""
    model = build(family)
    decoder, seen = good(model, noise=0.2), []
    true_positions = type(decoder.forward).positions

    def positions(self, depths, starts):
        found = true_positions(self, depths, starts)
        seen.append(int(found.max()))
        return found

    monkeypatch.setattr(type(decoder.forward), "positions", positions)
    for name, module in model.named_modules():
        if name.endswith(("wpe", "embed_positions")):
            module.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(
                    int(kwargs.get("position_ids", args[0] if args else None).max())
                ),
                with_kwargs=True,
            )
    prompts = [begin(256 - left), begin(30), begin(250)]
    for sampling in (SamplingConfig(), SAMPLED):
        answers = decoder.generate(prompts, 12, sampling, seeds=[1, 2, 3], collect_features=True)
        expected = AutoregressiveDecoder(model).generate(prompts, 12, sampling, seeds=[1, 2, 3], collect_features=True)
        assert ids(answers) == ids(expected)
        assert [len(answer.output_ids) for answer in answers] == [min(left, 12), 12, 6]
        assert answers[0].stop_reason == ("length" if left >= 12 else "context")
        for ours, theirs in zip(answers, expected, strict=True):
            if ours.features is not None:
                torch.testing.assert_close(ours.features.features, theirs.features.features, rtol=2e-3, atol=2e-3)
    assert seen and max(seen) <= 255


def test_one_token_draws_nothing_and_equals_plain_decoding(base, plain):
    decoder = SpeculativeDecoder(base, random_draft(base), TreeConfig(1, 5, 10))
    prompts = [prompt(6), prompt(1), prompt(13)]
    for sampling in (SamplingConfig(), PENALTIES, SAMPLED):
        answers, expected = (d.generate(prompts, 9, sampling, collect_features=True) for d in (decoder, plain))
        assert ids(answers) == ids(expected)
        for ours, theirs in zip(answers, expected, strict=True):
            assert (ours.accept_lengths, ours.steps) == ([0] * 8, 8)
            torch.testing.assert_close(ours.features.features, theirs.features.features, rtol=1e-4, atol=1e-4)


def test_pairs_that_do_not_match_are_refused(base):
    draft = random_draft(base)
    with pytest.raises(UserError, match="training mode"):
        SpeculativeDecoder(base, random_draft(base).train())
    with pytest.raises(UserError, match="training mode"):
        SpeculativeDecoder(build("llama").train(), draft)
    for change, message in (
        ({"hidden_size": 40, "num_attention_heads": 4, "head_dim": 10}, "features of width 40, the base gives 32"),
        ({"vocab_size": 50}, "knows 50 tokens, the base 97"),
    ):
        with pytest.raises(UserError, match=message):
            SpeculativeDecoder(base, DraftModel(dataclasses.replace(draft.config, **change)).eval())
    with pytest.raises(UserError, match=f"tree.top_k is {VOCAB + 1}, the vocabulary has {VOCAB}"):
        SpeculativeDecoder(base, draft, TreeConfig(60, 1, VOCAB + 1))
    SpeculativeDecoder(base, draft, TreeConfig(60, 1, VOCAB)).generate([prompt(4)], 3)
    with pytest.raises(UserError, match="draft is in torch.float32, the base in torch.bfloat16"):
        SpeculativeDecoder(build("llama").bfloat16(), draft)


def test_an_embedding_larger_than_the_output_layer(plain):
    """Ids without a logit may stand in a prompt; the draft has no embedding for them."""
    model = build("llama")
    model.lm_head = torch.nn.Linear(32, 90, bias=False).requires_grad_(False)
    model.lm_head.weight.copy_(plain.forward.model.lm_head.weight[:90])
    prompts = [torch.tensor([3, 96, 4]), torch.tensor([95])]
    answers = SpeculativeDecoder(model, random_draft(model), TREE).generate(prompts, 8)
    assert ids(answers) == ids(AutoregressiveDecoder(model).generate(prompts, 8))


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED, PENALTIES], ids=["greedy", "sampled", "penalties"])
@pytest.mark.parametrize("tree", [TreeConfig(1), TREE, TreeConfig(4, 3, 1)], ids=str)
def test_a_base_with_nan_is_named(sampling, tree):
    model = build("llama")
    decoder = SpeculativeDecoder(model, random_draft(model), tree)
    model.get_input_embeddings().weight[5] = float("nan")
    with pytest.raises(RunError, match="prompt 1: no finite logit in step 0 near position 3"):
        decoder.generate([torch.tensor([3, 4]), torch.tensor([3, 4, 5])], 4, sampling)


@pytest.mark.parametrize("place", [1, 3, 4, 7])
def test_nan_in_the_middle_is_named_with_its_step(base, plain, place):
    """A token of the answer whose embedding is NaN: the answer is right up to it, then there is no logit."""
    (tokens,) = ids(plain.generate([begin(6)], 12, PENALTIES))
    bad = tokens[place]
    first = tokens.index(bad)
    assert bad not in begin(6).tolist()
    model = build("llama")
    decoder = SpeculativeDecoder(model, random_draft(base), TreeConfig(1))
    model.get_input_embeddings().weight[bad] = float("nan")
    with pytest.raises(RunError, match=f"prompt 0: no finite logit in step {first + 1} near position {6 + first + 1}"):
        decoder.generate([begin(6)], 12, PENALTIES)
    assert ids(decoder.generate([begin(6)], first + 1, PENALTIES)) == [tokens[: first + 1]]


@pytest.mark.parametrize("tree", [TREE, TreeConfig(5, 3, 1), TreeConfig(3, 0, 2)], ids=str)
@pytest.mark.parametrize("forward", ["lean", "module"])
def test_a_draft_with_nan_is_named(base, tree, forward):
    draft = random_draft(base)
    decoder = SpeculativeDecoder(base, draft, tree)
    draft.layer.mlp.down_proj.weight[3, 3] = float("nan")
    if forward == "module":
        decoder.draft = ModuleDraft(draft)
    with pytest.raises(RunError, match="prompt 0: the draft returned NaN in step 1"):
        decoder.generate([prompt(6), prompt(4)], 6)
    with pytest.raises(UserError, match="the draft gives no finite numbers"):
        SpeculativeDecoder(base, draft, tree)


def test_decoders_keep_nothing_of_a_call(base):
    decoder = SpeculativeDecoder(base, random_draft(base), TREE)
    before = ids(decoder.generate([prompt(6), prompt(9)], 8, SAMPLED))
    with pytest.raises(UserError, match="prompt 0 is empty"):
        decoder.generate([torch.tensor([], dtype=torch.long)], 3)
    assert decoder.generate([], 5) == []
    assert ids(decoder.generate([prompt(6), prompt(9)], 8, SAMPLED)) == before
    assert type(SpeculativeDecoder(SlotForward(base), random_draft(base)).forward) is SlotForward
    assert not isinstance(decoder.forward, HFForward)


@pytest.mark.parametrize("tree", [TreeConfig(8, 6, 1, trim=True), TreeConfig(14, 3, 4, trim=True)], ids=str)
@pytest.mark.parametrize("limit", [1, 2, 5, 30])
def test_trimmed_trees_change_no_token(base, plain, tree, limit):
    """Nothing is accepted behind a stop token or beyond the limit; the answers are the same, in any batch."""
    prompts = [begin(n) for n in (6, 17, 9)]
    whole = [g.output_ids.tolist() for g in plain.generate(prompts, 30)]
    stop = {whole[0][7], whole[1][12]}
    for sampling in (SamplingConfig(), SAMPLED):
        expected = plain.generate(prompts, limit, sampling, stop)
        together = good(base, tree, 0.3).generate(prompts, limit, sampling, stop)
        for index, (ours, theirs) in enumerate(zip(together, expected, strict=True)):
            [alone] = good(base, tree, 0.3).generate([prompts[index]], limit, sampling, stop, [index])
            assert ours.output_ids.tolist() == theirs.output_ids.tolist() == alone.output_ids.tolist()
            assert ours.accept_lengths == alone.accept_lengths
            # Every accepted token is in the answer: at most the base's own at the end is cut.
            committed = 1 + sum(a + 1 for a in ours.accept_lengths)
            assert len(ours.output_ids) <= committed <= len(ours.output_ids) + 1
    assert any(g.accept_lengths for g in together) or limit == 1
