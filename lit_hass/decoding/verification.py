"""Which path of a draft tree the base accepts: the same tensor operations for greedy decoding and sampling.

At every node the base chooses a token, by argmax or by a draw from the node's processed distribution. A node is good
where its own token is what the base chose at its parent, and its parent is good. Siblings carry different tokens, so
the good nodes are one path; its tokens, and the base's choice at its end, are what plain decoding would have chosen
one after another. That walk is in law the rejection scheme of EAGLE (accept child x with p(x), else renormalise), for
a tree that is a function of the prefix alone: the probability of passing over children 1 .. i-1 and taking child i is
the product of the conditional ones, which is p_i.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from lit_hass.decoding.noise import gumbel_noise
from lit_hass.decoding.sampling import PREFIX_PAD, SamplingConfig, choose_tokens, process_logits
from lit_hass.decoding.tree import DraftTree

#: Numbers of the processed logits that are handled at once; float64 and sorts make them several copies.
_CHUNK = 2**23


#: Stands for the token of a node that nothing may follow; no choice of the base is equal to it.
NEVER = -2


def drop_useless(tree: DraftTree, rooms: Sequence[int], stop: Collection[int]) -> None:
    """Make sure that no accepted path goes beyond a stop token, or further than a row's answer may.

    So the lengths of accepted paths do not depend on how far a device drafts, nor on the rest of the batch.

    Args:
        tree: Is changed: nodes behind a stop token, or too deep, lose their token.
        rooms: Draft tokens that may be accepted in each row.
        stop: The stop tokens.
    """
    useless = None
    if min(rooms) < tree.levels:
        useless = tree.depths > torch.tensor(rooms, device=tree.depths.device)[:, None]
    if stop and not (tree.chain and tree.tokens.shape[0] == 1 and tree.tokens.device.type == "cpu"):
        stops = torch.isin(tree.tokens, torch.tensor(sorted(stop), device=tree.tokens.device))
        behind = (tree.visible & stops[:, None]).sum(dim=-1) > stops.long()
        useless = behind if useless is None else useless | behind
    if useless is not None:
        tree.tokens = tree.tokens.masked_fill(useless, NEVER)


def accepted_path(tree: DraftTree, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the path that the base accepts.

    Args:
        tree: The trees.
        targets: ``[B, T]`` int64, the base's choice behind each node.

    Returns:
        Node numbers ``[B, levels + 1]`` from the root downwards, padded with the last node; and ``[B]`` their count,
        the root included.
    """
    if tree.chain:
        taken = (tree.tokens[:, 1:] == targets[:, :-1]).long().cumprod(dim=1)
        return tree.depths, taken.sum(dim=1) + 1
    ok = tree.tokens == targets.gather(1, tree.parents)
    ok[:, 0] = True
    good = ~(tree.visible & ~ok[:, None]).any(dim=-1)
    last = torch.where(good, tree.depths, -1).argmax(dim=-1)
    count = tree.tokens.shape[1]
    index = last[:, None, None].expand(-1, 1, count)
    nodes = torch.arange(count, device=last.device)
    path = torch.where(tree.visible.gather(1, index)[:, 0], nodes, count).sort(dim=-1).values[:, : tree.levels + 1]
    return path.clamp(max=count - 1), tree.depths.gather(1, last[:, None])[:, 0] + 1


class NodeNoise:
    """The Gumbel noise of a row's next positions, each drawn once.

    Args:
        seed: Of the row.
        vocab: Number of tokens V.
        device: Where it is drawn.
    """

    def __init__(self, seed: int, vocab: int, device: torch.device) -> None:
        """Draw nothing yet."""
        self._seed, self._vocab, self._device = seed, vocab, device
        self._drawn: dict[int, Tensor] = {}

    def rows(self, first: int, count: int) -> Tensor:
        """``[count, V]`` float64 for the positions from ``first`` on; earlier ones are forgotten."""
        places = range(first, first + count)
        self._drawn = {
            place: self._drawn[place]
            if place in self._drawn
            else gumbel_noise(self._seed, place, self._vocab, self._device)
            for place in places
        }
        return torch.stack([self._drawn[place] for place in places])


def choose_at_nodes(
    logits: Tensor,
    tree: DraftTree,
    starts: Tensor,
    prefixes: Tensor | None,
    noise: Sequence[NodeNoise] | None,
    lengths: Sequence[int],
    sampling: SamplingConfig,
) -> Tensor:
    """Choose the base's token behind every node, as plain decoding would choose it behind the same prefix.

    Args:
        logits: ``[B, T, V]`` float32, the base's own.
        tree: The trees.
        starts: ``[B]`` int64, committed tokens of each row, so that the root has this position.
        prefixes: ``[B, n]`` int64, the committed tokens of each row, with room for the tree behind them; for penalties.
        noise: One per row; None for greedy decoding.
        lengths: ``starts`` on the host.
        sampling: The settings.

    Returns:
        ``[B, T]`` int64; -1 where there is no finite logit.
    """
    if sampling.greedy and prefixes is None:
        return choose_tokens(logits.flatten(0, 1)).view(logits.shape[:2])
    batch, count, vocab = logits.shape
    nodes = None if prefixes is None else _node_prefixes(tree, starts, prefixes)
    # One draw per depth: the nodes of a depth stand for the same position, of which one will be.
    drawn = None
    if noise is not None:
        drawn = [row.rows(start + 1, tree.levels + 1) for row, start in zip(noise, lengths, strict=True)]
    step = max(1, _CHUNK // vocab)
    chosen = []
    for row in range(batch):
        for first in range(0, count, step):
            part = slice(first, first + step)
            processed = process_logits(logits[row, part], None if nodes is None else nodes[row, part], sampling)
            rows = None if drawn is None else drawn[row][tree.depths[row, part]]
            chosen.append(choose_tokens(processed, rows))
    return torch.cat(chosen).view(batch, count)


def _node_prefixes(tree: DraftTree, starts: Tensor, prefixes: Tensor) -> Tensor:
    """``[B, T, n]``: each row's committed tokens, then the path to each node, filled up with ``PREFIX_PAD``."""
    batch, count = tree.tokens.shape
    width = prefixes.shape[1]
    columns = starts[:, None] + tree.depths  # [B, T] where a node's token stands
    spare = torch.full((batch, count, 1), PREFIX_PAD, dtype=prefixes.dtype, device=prefixes.device)
    wide = torch.cat((prefixes[:, None].expand(-1, count, -1), spare), dim=-1)
    # The spare column takes the nodes that are not on the path.
    place = torch.where(tree.visible, columns[:, None, :].clamp(max=width), width)
    return wide.scatter(2, place, tree.tokens[:, None].expand(-1, count, -1))[..., :width]
