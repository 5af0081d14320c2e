import time

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, TokenState, lean_weights, make_forward
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.select_forward import tolerance
from lit_hass.errors import RunError, UserError

from .tiny_models import FAMILIES, LEAN, VOCAB, build, prompt

PENALTIES = SamplingConfig(repetition_penalty=1.1, no_repeat_ngram_size=3)
SAMPLED = SamplingConfig(temperature=0.9, top_p=0.9, top_k=30)


def transformers_answer(model, ids, count, **settings):
    settings = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, **settings}
    return model.generate(ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=count, **settings)[
        0, len(ids) :
    ]


def answers(decoder, prompts, count, *args, **kwargs):
    return [g.output_ids.tolist() for g in decoder.generate(prompts, count, *args, **kwargs)]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_generate(decoders, family):
    decoder, ids = decoders(family), prompt(11)
    model = decoder.forward.model
    (ours,) = decoder.generate([ids], 24)
    assert ours.output_ids.tolist() == transformers_answer(model, ids, 24).tolist()
    assert (ours.stop_reason, ours.steps, ours.accept_lengths) == ("length", 24, [])
    (ours,) = decoder.generate([ids], 24, PENALTIES)
    expected = transformers_answer(model, ids, 24, repetition_penalty=1.1, no_repeat_ngram_size=3)
    assert ours.output_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sampling", [SamplingConfig(), PENALTIES, SAMPLED], ids=["greedy", "penalties", "sampled"])
def test_rows_of_a_batch_equal_their_own_runs(decoders, family, sampling):
    decoder = decoders(family)
    prompts = [prompt(13), prompt(4), prompt(9), prompt(1), prompt(9, seed=1)]
    seeds = [7, 8, 9, 2**63 - 1, 0]
    alone = [answers(decoder, [p], 14, sampling, seeds=[s])[0] for p, s in zip(prompts, seeds, strict=True)]
    stop = {alone[0][3], alone[4][5]}  # rows end at different steps
    cut = [a[: 1 + min((i for i, t in enumerate(a) if t in stop), default=len(a))] for a in alone]
    assert answers(decoder, prompts, 14, sampling, stop, seeds) == cut
    order = [3, 0, 4, 2, 1]
    shuffled = answers(decoder, [prompts[i] for i in order], 14, sampling, seeds=[seeds[i] for i in order])
    assert shuffled == [alone[i] for i in order]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_forward_is_chosen_by_family(decoders, family):
    assert type(decoders(family).forward) is (LeanForward if family in LEAN else HFForward)


@pytest.mark.parametrize("family", LEAN)
def test_lean_and_own_forward_agree(decoders, family):
    own = AutoregressiveDecoder(HFForward(decoders(family).forward.model))
    prompts = [prompt(6), prompt(17)]
    assert answers(decoders(family), prompts, 16) == answers(own, prompts, 16)
    for ours, theirs in zip(
        decoders(family).generate(prompts, 8, collect_features=True),
        own.generate(prompts, 8, collect_features=True),
        strict=True,
    ):
        torch.testing.assert_close(ours.features.features, theirs.features.features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", LEAN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_large_models_are_not_copied(monkeypatch, decoders, family, dtype):
    monkeypatch.setattr(lean_weights, "COPY_LIMIT", 0)
    model = build(family).to(dtype)
    decoder = AutoregressiveDecoder(model)
    layer = decoder.forward.weights.layers[0]
    assert layer.qkv[0].data_ptr() == model.model.layers[0].self_attn.q_proj.weight.data_ptr()
    prompts = [prompt(6), prompt(17)]
    if dtype == torch.float32:
        assert answers(decoder, prompts, 16) == answers(decoders(family), prompts, 16)


def test_a_wrong_lean_forward_is_not_used(monkeypatch):
    arranged = lean_weights.arrange(build("llama"))
    arranged.layers[1].o = arranged.layers[1].o * 1.05
    monkeypatch.setattr("lit_hass.decoding.lean.arrange", lambda model: arranged)
    assert type(make_forward(build("llama"))) is HFForward


def test_a_model_with_hooks_is_called_as_it_is(decoders):
    model, ids, calls = build("llama"), prompt(5), []
    model.model.layers[1].register_forward_hook(lambda *_: calls.append(1))
    assert answers(AutoregressiveDecoder(model), [ids], 6) == answers(decoders("llama"), [ids], 6)
    assert calls


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mistral_window"])
def test_several_tokens_at_once_equal_one_by_one(decoders, family):
    forward = decoders(family).forward
    ids = torch.stack([prompt(5, seed=1), prompt(5, seed=2)])
    for prompts in ([prompt(6)], [prompt(6), prompt(6, 1)], [prompt(7), prompt(4)]):
        rows = len(prompts)
        with torch.inference_mode():
            together, apart = forward.new_cache(rows, 16), forward.new_cache(rows, 16)
            forward.prefill(prompts, together)
            forward.prefill(prompts, apart)
            at_once = forward.extend(ids[:rows], together)
            stepwise = torch.cat([forward.extend(ids[:rows, i : i + 1], apart) for i in range(5)], dim=1)
        assert together.lengths == apart.lengths == [len(p) + 5 for p in prompts]
        torch.testing.assert_close(at_once, stepwise, rtol=1e-4, atol=1e-4)


def test_stop_and_limits(decoders):
    decoder, ids = decoders("llama"), prompt(11)
    whole = answers(decoder, [ids], 20)[0]
    stop = whole[5]
    end = whole.index(stop) + 1
    with_stop_inside = torch.cat((torch.tensor([stop]), ids))
    (result,) = decoder.generate([ids], 20, stop_ids=[stop])
    assert (result.output_ids.tolist(), result.stop_reason, result.steps) == (whole[:end], "stop", end)
    (result,) = decoder.generate([ids], end, stop_ids=[stop])
    assert result.stop_reason == "stop"
    assert len(answers(decoder, [with_stop_inside], 3, stop_ids=[stop])[0]) >= 1
    (result,) = decoder.generate([ids], 3)
    assert (result.output_ids.tolist(), result.stop_reason) == (whole[:3], "length")
    (result,) = decoder.generate([ids], 0, collect_features=True)
    assert (result.output_ids.tolist(), result.stop_reason, result.steps, result.features) == ([], "length", 0, None)
    assert result.output_ids.dtype == torch.long
    assert decoder.generate([], 5) == []


def test_the_context_ends_an_answer(decoders):
    decoder = decoders("gpt2")
    (result, full) = decoder.generate([prompt(250), prompt(256)], 20)
    assert (len(result.output_ids), result.stop_reason) == (6, "context")
    assert len(full.output_ids) == 0
    with pytest.raises(UserError, match="prompt 0 has 257 tokens.*256"):
        decoder.generate([prompt(257)], 1)


def test_bad_input_is_refused_by_name(decoders):
    decoder = decoders("llama")
    with pytest.raises(UserError, match="prompt 1 is empty"):
        decoder.generate([prompt(3), torch.tensor([], dtype=torch.long)], 5)
    with pytest.raises(UserError, match=f"prompt 0 holds id {VOCAB}"):
        decoder.generate([torch.tensor([1, VOCAB])], 5)
    with pytest.raises(UserError, match="prompt 0 holds id -1"):
        decoder.generate([torch.tensor([1, -1])], 5)
    with pytest.raises(UserError, match="1-D"):
        decoder.generate([prompt(3)[None]], 5)
    with pytest.raises(UserError, match="1-D"):
        decoder.generate([torch.ones(3)], 5)
    with pytest.raises(UserError, match="1 seeds for 2 prompts"):
        decoder.generate([prompt(3), prompt(4)], 5, seeds=[1])
    with pytest.raises(UserError, match="seed must be"):
        decoder.generate([prompt(3)], 5, seeds=[2**63])
    with pytest.raises(UserError, match="max_new_tokens"):
        decoder.generate([prompt(3)], -1)
    with pytest.raises(UserError, match="training mode"):
        AutoregressiveDecoder(build("llama").train())


@pytest.mark.parametrize("sampling", [SamplingConfig(), SAMPLED, PENALTIES], ids=["greedy", "sampled", "penalties"])
def test_nan_names_the_row(sampling):
    decoder = AutoregressiveDecoder(build("llama"))
    decoder.forward.model.get_input_embeddings().weight[5] = float("nan")
    with pytest.raises(RunError, match="prompt 1: no finite logit at position 3"):
        decoder.generate([torch.tensor([3, 4]), torch.tensor([3, 4, 5])], 4, sampling)


def test_features_are_the_models_own(decoders):
    for family in ("llama", "gemma2"):
        decoder, ids = decoders(family), prompt(6)
        other = prompt(9)
        kept = decoder.generate([ids, other], 5, collect_features=True)[0]
        assert decoder.generate([ids], 5)[0].features is None
        whole = torch.cat((ids, kept.output_ids))
        hidden = decoder.forward.model.base_model(input_ids=whole[None]).last_hidden_state[0]
        assert kept.features.token_ids.tolist() == whole[1:].tolist()
        assert kept.features.states.tolist() == [TokenState.PROMPT] * 6 + [TokenState.BASELINE] * 4
        torch.testing.assert_close(kept.features.features, hidden[:-1], rtol=1e-4, atol=1e-4)
        assert not kept.features.features.is_inference()


def test_same_seed_same_tokens_other_seed_other_tokens(decoders):
    decoder, ids = decoders("llama"), prompt(8)
    one, two, three = answers(decoder, [ids, ids, ids], 16, SamplingConfig(temperature=1.0), seeds=[4, 5, 4])
    assert one == three != two
    with torch.inference_mode():
        assert answers(decoder, [ids], 16, SamplingConfig(temperature=1.0), seeds=[4])[0] == one


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma3"])
def test_bfloat16_runs_close_to_the_model(family):
    model = build(family).to(torch.bfloat16)
    decoder = AutoregressiveDecoder(model)
    prompts = [prompt(9), prompt(5)]
    for ids, result in zip(prompts, decoder.generate(prompts, 12, collect_features=True), strict=True):
        assert len(result.output_ids) == 12
        logits = model(torch.cat((ids, result.output_ids))[None]).logits[0, len(ids) - 1 : -1].float()
        chosen = logits.gather(1, result.output_ids[:, None])[:, 0]
        assert (logits.max(dim=1).values - chosen <= tolerance(model.dtype) * logits.abs().max()).all()
        assert result.features.features.dtype == torch.bfloat16


def test_trained_weights_are_seen():
    model = build("llama")
    decoder, ids = AutoregressiveDecoder(model), prompt(7)
    before = answers(decoder, [ids], 12)
    model.model.layers[1].mlp.down_proj.weight.mul_(-3.0)
    after = answers(decoder, [ids], 12)
    assert after != before
    assert after[0] == transformers_answer(model, ids, 12).tolist()


def test_times_cover_the_call(decoders):
    start = time.perf_counter()
    (result,) = decoders("llama").generate([prompt(4)], 6)
    elapsed = time.perf_counter() - start
    assert 0 < result.prefill_seconds < result.prefill_seconds + result.decode_seconds < elapsed
    (result, _) = decoders("llama").generate([prompt(4), prompt(5)], 6, stop_ids=range(VOCAB))
    assert result.prefill_seconds > 0 == result.decode_seconds
