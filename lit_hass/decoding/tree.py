"""The dynamic draft tree of EAGLE-2, grown with tensor operations only.

Level by level the draft continues the most probable paths so far (the beam); every continuation is a candidate, and the
best of all candidates become the nodes that the base verifies in one forward. A node's score is the sum of the draft's
log-probabilities on its path, so that no child scores above its parent; where they tie (the draft is certain), a stable
order keeps the parent first, and the set of chosen nodes is closed under ancestors by construction.

Source: EAGLE-2 (arXiv 2406.16858), in the published meaning of its three numbers.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from lit_hass.decoding.draft_forward import DraftForward, DraftKV
from lit_hass.decoding.tree_config import TreeConfig


@dataclass
class DraftTree:
    """The trees of a batch, all of T nodes; node 0 is the root, the token that is known but not yet committed.

    Attributes:
        tokens: ``[B, T]`` int64; parents come before their children.
        parents: ``[B, T]`` int64 node numbers, the root's own being 0.
        depths: ``[B, T]`` int64, 0 for the root.
        visible: ``[B, T, T]`` bool, true for a node's ancestors and itself.
        levels: No node is deeper.
        broken: ``[B]`` bool: the draft gave NaN, so that the tree means nothing (verification stays exact); None where
            nothing was drafted.
        chain: Whether node i + 1 hangs on node i in all trees, so that every path begins with the first nodes.
        features: ``[B, T, H]``, where asked for: the draft's prediction of the feature of each node's parent, from
            which it proposed the node; the root's row means nothing.
    """

    tokens: Tensor
    parents: Tensor
    depths: Tensor
    visible: Tensor
    levels: int
    broken: Tensor | None = None
    chain: bool = False
    features: Tensor | None = None


def root_only(roots: Tensor) -> DraftTree:
    """Trees without a draft token, for ``[B]`` roots."""
    zeros = torch.zeros_like(roots)[:, None]
    visible = torch.ones(len(roots), 1, 1, dtype=torch.bool, device=roots.device)
    return DraftTree(roots[:, None], zeros, zeros, visible, levels=0, chain=True)


def grow_tree(
    draft: DraftForward,
    head: Callable[[Tensor], Tensor],
    cache: DraftKV,
    feature: Tensor,
    roots: Tensor,
    config: TreeConfig,
    stop: Collection[int] = (),
    room: int | None = None,
    collect: bool = False,
    ids: Tensor | None = None,
) -> DraftTree:
    """Draft a tree behind each root.

    Args:
        draft: The draft's forward.
        head: From features ``[..., H]`` to the base's logits ``[..., V]`` in float32.
        cache: The draft's, holding the committed rows; what this writes behind them stays uncommitted.
        feature: ``[B, H]``, the draft's prediction of each root's own feature.
        roots: ``[B]`` int64.
        config: The tree's sizes; ``total_tokens`` is not -1 here.
        stop: Tokens behind which nothing is needed: a chain on a CPU ends when all rows have drafted one.
        room: Draft tokens that may be needed at most; a chain grows no longer. None is no limit.
        collect: Whether the draft's features are wanted.
        ids: ``[K]`` int64, the tokens that the head's logits ``[..., K]`` are of; None are all, in their order.

    Returns:
        The trees; ``T = min(total_tokens, candidates + 1)``, or less for a chain that ends early.
    """
    if config.nodes == 0 or room == 0:
        return root_only(roots)
    if config.top_k == 1:
        nodes = config.nodes if room is None else min(room, config.nodes)
        return _chain(draft, head, cache, feature, roots, nodes, frozenset(stop), collect, ids)
    return _tree(draft, head, cache, feature, roots, config, collect, ids)


def _chain(
    draft: DraftForward,
    head: Callable[[Tensor], Tensor],
    cache: DraftKV,
    feature: Tensor,
    roots: Tensor,
    nodes: int,
    stop: frozenset[int],
    collect: bool,
    ids: Tensor | None,
) -> DraftTree:
    """The tree of ``top_k = 1``, for which no scores are needed: a prefix of the chain is always the best."""
    tokens, hidden = [roots], feature[:, None]
    batch = roots.shape[0]
    features = [hidden, hidden]
    # Only a CPU can be asked for a token without waiting for it.
    running = set(range(batch)) if stop and roots.device.type == "cpu" else None
    while True:
        best, token = head(hidden[:, 0]).max(dim=-1)
        if ids is not None:
            token = ids[token]
        tokens.append(token)
        if running is not None:
            running.difference_update([row for row, chosen in enumerate(token.tolist()) if chosen in stop])
        if len(tokens) > nodes or running is not None and not running:
            break
        hidden = draft.extend(token[:, None], hidden, cache, len(tokens) - 2)
        if collect:
            features.append(hidden)
    parents, depths, visible = _chain_shape(len(tokens), roots.device)
    # A NaN stays in all features behind it, and so in the last logits.
    return DraftTree(
        torch.stack(tokens, dim=1),
        parents.expand(batch, -1),
        depths.expand(batch, -1),
        visible.expand(batch, -1, -1),
        len(tokens) - 1,
        best.isnan(),
        chain=True,
        features=torch.cat(features, dim=1) if collect else None,
    )


@lru_cache(maxsize=16)
def _chain_shape(count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Parents and depths ``[T]`` and visibility ``[T, T]`` of a chain: constants, which nobody writes to."""
    with torch.inference_mode(False):
        steps = torch.arange(count, device=device)
        return (steps - 1).clamp_(min=0), steps, steps <= steps[:, None]


def _tree(
    draft: DraftForward,
    head: Callable[[Tensor], Tensor],
    cache: DraftKV,
    feature: Tensor,
    roots: Tensor,
    config: TreeConfig,
    collect: bool,
    ids: Tensor | None,
) -> DraftTree:
    device, batch, k = roots.device, len(roots), config.top_k
    scores, tokens = _best(head(feature), k, ids)  # [B, K] each
    hidden = feature[:, None].expand(-1, k, -1)
    seen = torch.eye(k, dtype=torch.bool, device=device).expand(batch, -1, -1)  # [B, K, rows drafted so far]
    flat = torch.arange(k, device=device).expand(batch, -1)  # the beam's numbers among all candidates
    all_scores, all_tokens = [scores], [tokens]
    all_parents = [torch.full_like(flat, -1)]
    numbers, features = [torch.full_like(flat[:, :1], -1)], [feature[:, None]]  # of the nodes continued so far
    for step in range(config.depth):
        hidden = draft.extend(tokens, hidden, cache, step * k, (cache.starts[:, None] + step).expand(-1, k), seen)
        if collect:
            numbers.append(flat)
            features.append(hidden)
        gained, following = _best(head(hidden), k, ids)  # [B, K, K]
        candidates = (scores[..., None] + gained).flatten(1)
        all_scores.append(candidates)
        all_tokens.append(following.flatten(1))
        all_parents.append(flat[..., None].expand(-1, -1, k).flatten(1))
        if step == config.depth - 1:
            break
        scores, index = _sorted(candidates, k)
        row = index // k
        flat = k + step * k * k + index
        tokens = all_tokens[-1].gather(1, index)
        hidden = hidden.gather(1, row[..., None].expand(-1, -1, hidden.shape[-1]))
        own = torch.eye(k, dtype=torch.bool, device=device).expand(batch, -1, -1)
        seen = torch.cat((seen.gather(1, row[..., None].expand(-1, -1, seen.shape[-1])), own), dim=-1)
    every_score, every_token, every_parent = (torch.cat(part, 1) for part in (all_scores, all_tokens, all_parents))
    chosen = _sorted(every_score, config.nodes)[1].sort(dim=-1).values  # [B, N] in level order
    zeros = torch.zeros(batch, 1, dtype=torch.long, device=device)
    parent = every_parent.gather(1, chosen)
    place = torch.where(parent < 0, 0, torch.searchsorted(chosen, parent.clamp(min=0)) + 1)
    depth = 1 + torch.where(chosen < k, 0, 1 + (chosen - k) // (k * k))
    parents = torch.cat((zeros, place), dim=1)
    return DraftTree(
        torch.cat((roots[:, None], every_token.gather(1, chosen)), dim=1),
        parents,
        torch.cat((zeros, depth), dim=1),
        _ancestors(parents, config.depth + 1),
        config.depth + 1,
        every_score.isnan().any(dim=-1),
        features=_parent_features(parent, torch.cat(numbers, 1), torch.cat(features, 1)) if collect else None,
    )


def _parent_features(parent: Tensor, numbers: Tensor, features: Tensor) -> Tensor:
    """``[B, 1 + N, H]``: the ``features`` ``[B, M, H]`` whose ``numbers`` ``[B, M]`` are the parents ``[B, N]``."""
    index = (parent[..., None] == numbers[:, None]).long().argmax(dim=-1)
    found = features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))
    return torch.cat((features[:, :1], found), dim=1)


def _ancestors(parents: Tensor, levels: int) -> Tensor:
    """``[B, T, T]`` bool of ``[B, T]`` parents: who is an ancestor of a node, or the node itself."""
    batch, count = parents.shape
    visible = torch.eye(count, dtype=torch.bool, device=parents.device).repeat(batch, 1, 1)
    current = parents
    for _ in range(levels):
        visible.scatter_(2, current[..., None], True)
        current = parents.gather(1, current)
    return visible


def _best(logits: Tensor, k: int, ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-probabilities (none above 0) and ids ``[..., K]`` of the most probable tokens of ``[..., V]`` logits."""
    values, tokens = logits.topk(k, dim=-1)
    return (values - logits.logsumexp(dim=-1, keepdim=True)).clamp_(max=0.0), tokens if ids is None else ids[tokens]


def _sorted(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` best of ``[B, M]`` scores, the earlier one of two equal ones first."""
    values, indices = scores.sort(dim=-1, descending=True, stable=True)
    return values[:, :count], indices[:, :count]
