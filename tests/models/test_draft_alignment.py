import math

import pytest
import torch

from lit_hass.models import DraftConfig, DraftModel
from lit_hass.models.diagonal_attention import diagonal_attention
from lit_hass.models.draft_alignment import aligned_passes
from tests.by_path import load_benchmark

sfold = load_benchmark("sfold_alignment")

LENGTH = 23
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
KINDS = {
    "plain": {},
    "grouped": {"num_key_value_heads": 2, "qkv_bias": True},
    "one_key_head": {"num_key_value_heads": 1, "head_dim": 6, "rope_parameters": LLAMA3, "fc_bias": False},
}


def make(kind="plain", dtype=torch.float64):
    torch.manual_seed(1)
    settings = {"num_key_value_heads": 4, "head_dim": 8, **KINDS[kind]}
    draft = DraftModel(DraftConfig(32, 48, 4, vocab_size=50, **settings)).to(dtype)
    ids, features = torch.randint(0, 50, (2, LENGTH)), torch.randn(2, LENGTH, 32, dtype=dtype)
    return draft, ids, features


@pytest.fixture(params=(3, 8, 128))
def block(request, monkeypatch):
    """Attention in one block of rows, and in several."""
    monkeypatch.setattr("lit_hass.models.diagonal_attention.BLOCK", request.param)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 2e-6)])
def test_the_first_step_is_the_decode_pass(dtype, limit):
    draft, ids, features = make("grouped", dtype)
    with torch.no_grad():
        step = next(aligned_passes(draft, ids, features, 1))
        cache = draft.new_cache(2, LENGTH)
        rows = []
        for t in range(LENGTH):
            rows.append(draft(ids[:, t : t + 1], features[:, t : t + 1], cache=cache))
            cache.commit(1)
    assert (step - torch.cat(rows, 1)).abs().max() < limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_step_s_is_cached_drafting_at_depth_s(kind, dtype, limit, block):
    """``out_s[R - 2 + s]`` equals cached decoding from a prefix of R rows after s - 1 own steps; R = 1 included."""
    draft, ids, features = make(kind, dtype)
    with torch.no_grad():
        steps = list(aligned_passes(draft, ids, features, 4))
        for rows in range(1, LENGTH - 3):
            cache = draft.new_cache(2, LENGTH)
            output = draft(ids[:, :rows], features[:, :rows], cache=cache)[:, -1:]
            cache.commit(rows)
            for step in (1, 2, 3, 4):
                if step > 1:
                    t = rows - 2 + step
                    output = draft(ids[:, t : t + 1], output, cache=cache, offset=step - 2)
                assert (steps[step - 1][:, rows - 2 + step] - output[:, 0]).abs().max() < limit, (rows, step)


@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_s_whole_sets_of_keys(kind, block):
    draft, ids, features = make(kind)
    weights = torch.randn(5, 2, LENGTH, 32, dtype=torch.float64)
    found = []
    for passes in (sfold.sfold_passes(draft, ids, features, 5), list(aligned_passes(draft, ids, features, 5))):
        draft.zero_grad()
        (torch.stack(list(passes)) * weights).sum().backward()
        grads = {name: p.grad.clone() for name, p in draft.named_parameters() if p.grad is not None}
        found.append((torch.stack(list(passes)).detach(), grads))
    (plain, plain_grads), (fast, fast_grads) = found
    assert (plain - fast).abs().max() < 1e-12
    assert plain_grads.keys() == fast_grads.keys() and "embed_tokens.weight" not in fast_grads
    for name, grad in plain_grads.items():
        assert (grad - fast_grads[name]).abs().max() < 1e-10 * grad.abs().max(), name


def test_sources_are_detached():
    """The second step's loss reaches the first step's output through the shared weights only."""
    draft, ids, features = make()
    passes = aligned_passes(draft, ids, features, 2)
    first = next(passes)
    first.retain_grad()
    next(passes).sum().backward()
    assert first.grad is None


def test_pads_on_the_right_change_nothing_before_them():
    draft, ids, features = make("grouped")
    with torch.no_grad():
        long = list(aligned_passes(draft, ids, features, 3))
        short = list(aligned_passes(draft, ids[:, :9], features[:, :9], 3))
    assert all((a[:, :9] - b).abs().max() < 1e-14 for a, b in zip(long, short, strict=True))


def numbers(*values):
    """A ``[1, 1, L, 1]`` tensor, so that the scale is 1."""
    return torch.tensor(values, dtype=torch.float64)[None, None, :, None]


def test_the_leak_by_hand():
    """Each forbidden column adds exp(0) = 1 to the denominator, and no value.

    L = 3, one channel: row 0 sees one column of weight 3 and two forbidden ones, 3 / (3 + 2); row 1 sees the weights 3
    and 1 and one forbidden one; row 2 sees 3, 1, 4 and none.
    """
    query, keys = numbers(1, 1, 1), numbers(math.log(3), 0, math.log(4))
    values, extra = numbers(10, 20, 30), torch.tensor([2, 1, 0])
    found = diagonal_attention(query, keys, values, extra=extra).flatten().tolist()
    assert found == pytest.approx([3 * 10 / 5, (3 * 10 + 20) / 5, (3 * 10 + 20 + 4 * 30) / 8])
    # Step 2: row t sees the base's rows before t, and its own prediction at t.
    own_keys, own_values = numbers(math.log(2), 0, math.log(6)), numbers(1, 2, 3)
    found = diagonal_attention(query, keys, values, [own_keys], [own_values], extra).flatten().tolist()
    assert found == pytest.approx([2 * 1 / 4, (3 * 10 + 2) / 5, (3 * 10 + 20 + 6 * 3) / 10])


def published_passes(draft, ids, features, steps):
    """The published attention: scores of all sources times their masks, summed, one softmax over all L columns."""
    attention, length = draft.layer.self_attn, ids.shape[1]
    rotary = draft.rotary(torch.arange(length)[None])
    masks = [sfold.sfold_mask(length, s).double().split(length, 1) for s in range(1, steps + 1)]
    sources, outputs = [features], []
    for step in range(1, steps + 1):
        inputs = [draft.inputs(ids, source) for source in sources]
        query = attention.project(inputs[-1], rotary)[0]
        logits = torch.zeros(2, 4, length, length, dtype=features.dtype)
        for x, mask in zip(inputs, masks[step - 1], strict=True):
            keys = attention.project(x, rotary)[1].repeat_interleave(query.shape[1] // 2, 1)
            logits = logits + query @ keys.transpose(2, 3) / math.sqrt(query.shape[-1]) * mask
        weights = logits.softmax(-1)
        heads = torch.zeros_like(query)
        for x, mask in zip(inputs, masks[step - 1], strict=True):
            heads = heads + (weights * mask) @ attention.project(x, rotary)[2].repeat_interleave(query.shape[1] // 2, 1)
        outputs.append(draft.layer.finish(inputs[-1], heads))
        sources.append(torch.cat((features[:, :1], outputs[-1][:, :-1]), dim=1))
    return outputs


def test_the_leak_is_the_published_formula(block):
    draft, ids, features = make("grouped")
    with torch.no_grad():
        expected = published_passes(draft, ids, features, 3)
        leaking = list(aligned_passes(draft, ids, features, 3, reference_softmax_leak=True))
        masked = list(aligned_passes(draft, ids, features, 3))
    for a, b, c in zip(expected, leaking, masked, strict=True):
        assert (a - b).abs().max() < 1e-13
        assert (b[:, 0] - c[:, 0]).abs().max() > 1e-2  # the first row is told another story
    assert (leaking[0][:, -1] - masked[0][:, -1]).abs().max() < 1e-14  # the last sees every column


def test_gradients_of_the_attention_by_finite_differences(block):
    torch.manual_seed(0)
    query = torch.randn(1, 4, 9, 2, dtype=torch.float64, requires_grad=True)
    others = [torch.randn(1, 2, 9, 2, dtype=torch.float64, requires_grad=True) for _ in range(6)]
    for extra in (None, torch.arange(8, -1, -1)):

        def attend(q, k, v, a, b, c, d, extra=extra):
            return diagonal_attention(q, k, v, [a, b], [c, d], extra)

        assert torch.autograd.gradcheck(attend, (query, *others))


def test_half_precision_stays_close():
    draft, ids, features = make("grouped", torch.float32)
    with torch.no_grad():
        expected = list(aligned_passes(draft, ids, features, 3))
        with torch.autocast("cpu", torch.bfloat16):
            found = list(aligned_passes(draft, ids, features, 3))
    for a, b in zip(expected, found, strict=True):
        assert (a - b).abs().max() < 0.05 * a.abs().max()
