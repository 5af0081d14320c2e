import functools

import pytest
import torch

from lit_hass.decoding import TreeConfig
from lit_hass.decoding.draft_forward import ModuleDraft
from lit_hass.decoding.select_draft import make_draft_forward
from lit_hass.decoding.tree import grow_tree, root_only
from lit_hass.errors import UserError

from .drafts import random_draft
from .plain_tree import closure, plain_tree
from .tiny_models import VOCAB, build, prompt

SIZES = [(60, 5, 10), (32, 4, 8), (12, 3, 4), (8, 2, 3), (2, 0, 1), (7, 0, 9), (16, 1, 97), (6, 4, 1), (3, 5, 1)]


@pytest.fixture(scope="module")
def base():
    return build("llama")


@functools.cache
def features_of(base, ids):
    return base.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0]


def grow(forward, base, head, rows, config, cut=0):
    """Feed prompts (``cut`` tokens of each later, behind a tree that must leave no trace), and grow behind them."""
    hidden = [features_of(base, tuple(ids))[:-1] for ids in rows]
    cache = forward.new_cache(len(rows), 40 + config.slots + config.depth + 2)
    pad = torch.nn.utils.rnn.pad_sequence

    def feed(parts):
        return forward.feed(
            pad([torch.tensor(ids[1:])[part] for ids, part in zip(rows, parts, strict=True)], True),
            pad([states[part] for states, part in zip(hidden, parts, strict=True)], True),
            [len(states[part]) for states, part in zip(hidden, parts, strict=True)],
            cache,
        )

    if cut:
        feature = feed([slice(0, len(states) - cut - i % 2) for i, states in enumerate(hidden)])
        grow_tree(forward, head, cache, feature, torch.tensor([ids[-1] for ids in rows]), config)
        feature = feed([slice(len(states) - cut - i % 2, None) for i, states in enumerate(hidden)])
    else:
        feature = feed([slice(None)] * len(rows))
    return grow_tree(forward, head, cache, feature, torch.tensor([ids[-1] for ids in rows]), config)


def rows_of(*lengths):
    return [prompt(length, seed=5).tolist() for length in lengths]


@pytest.mark.parametrize("kind", [ModuleDraft, make_draft_forward], ids=["module", "lean"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_tree_is_the_plain_one(base, kind, size):
    draft, config = random_draft(base), TreeConfig(*size)
    forward, rows = kind(draft), rows_of(14, 6, 2)
    expected = [plain_tree(draft, base.lm_head, ids, features_of(base, tuple(ids))[:-1], *size) for ids in rows]
    with torch.inference_mode():
        trees = [
            grow(forward, base, base.lm_head, rows, config),
            grow(forward, base, base.lm_head, rows_of(14), config),
        ]
        trees += [grow(forward, base, base.lm_head, rows_of(14, 6), config, cut=2)]
    for tree in trees:
        assert tree.tokens.shape[1] == min(size[0], config.candidates + 1)
        assert not tree.broken.any() and int(tree.depths.max()) <= tree.levels
        for index in range(len(tree.tokens)):
            plain = expected[index]
            assert tree.tokens[index].tolist() == plain.tokens
            assert tree.parents[index].tolist() == plain.parents
            assert tree.depths[index].tolist() == plain.depths
            assert tree.visible[index].tolist() == plain.visible


@pytest.mark.parametrize("rope", ["default", "dynamic"])
def test_drafts_of_other_kinds(rope):
    """Biases in the projections, and a rotary embedding whose frequencies depend on the length."""
    base = build("qwen2" if rope == "default" else "llama_dynamic_rope")
    torch.manual_seed(3)
    draft = type(random_draft(base)).from_base(base, qkv_bias=True, fc_bias=False).eval().requires_grad_(False)
    rows, size = rows_of(9, 4), (12, 3, 4)
    with torch.inference_mode():
        tree = grow(make_draft_forward(draft), base, base.lm_head, rows, TreeConfig(*size))
    for index, ids in enumerate(rows):
        plain = plain_tree(draft, base.lm_head, ids, features_of(base, tuple(ids))[:-1], *size)
        assert (tree.tokens[index].tolist(), tree.parents[index].tolist()) == (plain.tokens, plain.parents)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [8, 300, 20000])
def test_ties_leave_no_orphans(dtype, scale):
    """A certain draft: children as probable as their parents, of which the stable order keeps the parents first."""
    base = build("llama").to(dtype)
    draft = random_draft(base)
    forward = make_draft_forward(draft)

    def head(rows):
        return scale * base.lm_head(rows).float()

    ties = 0
    with torch.inference_mode():
        for size in ((60, 5, 10), (24, 5, 10), (8, 4, 6), (5, 5, 4)):
            tree = grow(forward, base, head, rows_of(9, 12, 5, 9, 3, 20), TreeConfig(*size))
            for tokens, parents, depths, visible in zip(
                tree.tokens.tolist(), tree.parents.tolist(), tree.depths.tolist(), tree.visible.tolist(), strict=True
            ):
                assert parents[0] == depths[0] == 0
                assert all(parents[node] < node for node in range(1, len(parents)))
                assert all(depths[node] == depths[parents[node]] + 1 for node in range(1, len(parents)))
                assert visible == closure(parents)
                family = list(zip(parents[1:], tokens[1:], strict=True))
                assert len(set(family)) == len(family)
    if dtype == torch.float32 and scale == 20000:
        rows, size = rows_of(9, 12, 5, 9, 3, 20), (24, 3, 4)
        with torch.inference_mode():
            tree = grow(forward, base, head, rows, TreeConfig(*size))
        for index, ids in enumerate(rows):
            plain = plain_tree(draft, head, ids, features_of(base, tuple(ids))[:-1], *size)
            ties += sum(c.parent is not None and c.score == plain.candidates[c.parent].score for c in plain.candidates)
            assert (tree.tokens[index].tolist(), tree.parents[index].tolist()) == (plain.tokens, plain.parents)
        assert ties > 20


def test_exact_ties_follow_the_stable_order():
    """A draft that is certain of everything it says: its one sure path goes first, from the root downwards."""

    class Certain(ModuleDraft):
        def extend(self, token_ids, features, cache, offset, positions=None, visible=None):
            return torch.nn.functional.one_hot((token_ids + 1) % 16, 16).float() * 1e4

    base = build("llama")
    cache = ModuleDraft(random_draft(base)).new_cache(1, 300)
    feature = torch.nn.functional.one_hot(torch.tensor([5]), 16).float() * 1e4
    for total in range(2, 9):
        tree = grow_tree(
            Certain(random_draft(base)), torch.nn.Identity(), cache, feature, torch.tensor([4]), TreeConfig(total, 6, 3)
        )
        assert tree.tokens.tolist() == [list(range(4, 4 + total))]
        assert tree.parents.tolist() == [[0, *range(total - 1)]]


def test_no_tree():
    base = build("llama")
    tree = grow_tree(None, None, None, None, torch.tensor([3, 4]), TreeConfig(1, 3, 4))
    assert (tree.tokens.tolist(), tree.levels, tree.broken) == ([[3], [4]], 0, None)
    assert tree.visible.all() and tree.visible.shape == (2, 1, 1)
    assert torch.equal(tree.tokens, root_only(torch.tensor([3, 4])).tokens)
    forward = make_draft_forward(random_draft(base))
    with torch.inference_mode():
        tree = grow(forward, base, base.lm_head, rows_of(4), TreeConfig(500, 0, 5))
        assert tree.tokens.shape == (1, 6) and tree.depths.tolist() == [[0, 1, 1, 1, 1, 1]]
        tree = grow(forward, base, base.lm_head, rows_of(4), TreeConfig(10**6, 2, 4))
        assert tree.tokens.shape == (1, 1 + 4 + 2 * 16)


@pytest.mark.parametrize("size", [(8, 3, 1), (8, 3, 4)], ids=str)
def test_nan_is_told(base, size):
    forward = make_draft_forward(random_draft(base))
    rows = rows_of(4, 7)

    def head(rows):
        logits = base.lm_head(rows)
        return torch.where(
            logits[..., :1] > 1e9,
            logits,
            logits + logits.new_tensor([float("nan"), 0.0])[: len(logits)].view(-1, *[1] * (logits.dim() - 1)),
        )

    with torch.inference_mode():
        assert grow(forward, base, head, rows, TreeConfig(*size)).broken.tolist() == [True, False]


def test_sizes_out_of_range_are_refused():
    for field in ("total_tokens", "depth", "top_k"):
        for value in (True, 2.0, "3", None):
            with pytest.raises(UserError, match=f"tree.{field} must be a whole number"):
                TreeConfig(**{field: value})
    for field, value in (("total_tokens", 0), ("total_tokens", -2), ("depth", -1), ("top_k", 0)):
        with pytest.raises(UserError, match=f"tree.{field} must be at least"):
            TreeConfig(**{field: value})
    assert TreeConfig(-1).total_tokens == -1
    assert TreeConfig(60, 5, 10).candidates == 510 and TreeConfig(60, 5, 10).nodes == 59
    assert TreeConfig(600, 5, 10).nodes == 510 and VOCAB > 10
