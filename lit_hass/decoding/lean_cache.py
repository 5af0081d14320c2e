"""What the hand-written forwards keep between calls, and where new tokens go in it.

Row b's committed token at position p lies in slot p. New tokens lie behind them: as a continuation of the sequence, or
as the nodes of a tree, of which the accepted ones are then moved to the slots of their positions.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from lit_hass.decoding.forward import KVCache

#: Free slots that an allocation has at least.
_SPARE = 64


class LeanCache(KVCache):
    """Keys and values of all layers in one tensor, which grows by halves as far as the job may need.

    Args:
        shape: ``(L, B, 2K, D)`` of ``data`` without its slots.
        capacity: Slots per row that will be enough.
        dtype: Of keys and values.
        device: Where they are.
        rotary: From a number of positions to their rotary factors: cosine and sine ``[n, D]``, or for folded weights
            one complex ``[n, D / 2]``; more rows than asked for do no harm.

    Attributes:
        data: ``[L, B, 2K, slots, D]``, keys in the first K heads, values in the others.
        layers: The same, one tensor per layer.
        starts: ``[B]`` int64 on the device, equal to ``lengths``.
        rotary: The factors of the positions so far.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        rotary: Callable[[int], tuple[Tensor, ...]],
    ) -> None:
        """Start empty."""
        layers, batch, heads, width = shape
        self._capacity, self._rotary = capacity, rotary
        self.data = torch.zeros((layers, batch, heads, 0, width), dtype=dtype, device=device)
        self.layers = list(self.data.unbind(0))
        self.rotary: tuple[Tensor, ...] = ()
        self.lengths = [0] * batch
        self.starts = torch.zeros(batch, dtype=torch.long, device=device)

    def reserve(self, end: int) -> None:
        """Make sure that there are ``end`` slots."""
        slots = self.data.shape[3]
        if end <= slots:
            return
        more = min(self._capacity, max(end + _SPARE, slots + slots // 2))
        # Zeros: a masked slot has weight 0, and 0 times what happens to lie in fresh memory may be NaN.
        data = self.data.new_zeros((*self.data.shape[:3], max(more, end), self.data.shape[4]))
        data[:, :, :, :slots] = self.data
        self.data, self.layers = data, list(data.unbind(0))
        self.rotary = self._rotary(data.shape[3])

    @property
    def level(self) -> bool:
        """Whether all rows have the same length."""
        return min(self.lengths) == max(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        index = torch.tensor(list(rows), device=self.data.device)
        self.data = self.data.index_select(1, index)
        self.layers = list(self.data.unbind(0))
        self.starts = self.starts[index]
        self.lengths = [self.lengths[row] for row in rows]

    def grow(self, counts: Sequence[int]) -> None:
        """Commit this many more tokens of each row, which lie behind the committed ones."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.starts = torch.tensor(self.lengths, device=self.data.device)

    def keep(self, paths: Tensor | None, counts: Sequence[int]) -> None:
        """Commit the nodes of a path.

        Args:
            paths: ``[B, P]`` int64 on the device, ascending node numbers of the tree behind the committed tokens; what
                stands behind a row's count is any node. None where they are the first nodes.
            counts: Nodes of each row.
        """
        if paths is None:
            pass  # they lie where they belong
        elif len(counts) == 1:
            start = self.lengths[0]
            moved = self.data[:, 0].index_select(2, start + paths[0, : counts[0]])
            self.data[:, 0, :, start : start + counts[0]] = moved
        else:
            rows = torch.arange(len(counts), device=paths.device)[:, None]
            steps = torch.arange(paths.shape[1], device=paths.device)
            self.data[:, rows, :, self.starts[:, None] + steps] = self.data[:, rows, :, self.starts[:, None] + paths]
        self.grow(counts)


class Place:
    """Where T new tokens of each row go, and what they see.

    Args:
        start: The first slot of the new tokens; all are written to ``start ..`` where ``slots`` is None.
        end: Slots to look at.
        turn: Rotary factors of the tokens, ``[T, 1, D]`` or ``[B, T, 1, D]``.
        slots: ``[B, T]`` int64, where rows differ in length.
        hidden: ``[B, T, W]`` bool, which of the last W slots a token does *not* see (those before are seen by all);
            None where nothing is hidden, or in an empty cache, where the order of the tokens is the mask.
        dtype: Of the masks.
    """

    def __init__(
        self,
        start: int,
        end: int,
        turn: tuple[Tensor, ...],
        slots: Tensor | None = None,
        hidden: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Make the additive mask of the last slots."""
        self.start, self.end, self.turn, self.slots = start, end, turn, slots
        self.tail: Tensor | None = None
        if hidden is not None:
            zeros = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self.tail = zeros.masked_fill_(hidden, -math.inf)
            self.tail_start = end - hidden.shape[-1]

    @cached_property
    def mask(self) -> Tensor | None:
        """``[B, 1, T, end]`` additive, or None."""
        if self.tail is None or self.tail_start == 0:
            return None if self.tail is None else self.tail[:, None]
        return torch.nn.functional.pad(self.tail, (self.tail_start, 0))[:, None]


def place_last(cache: LeanCache, counts: Sequence[int], count: int, dtype: torch.dtype) -> Place:
    """What the last of each row's new tokens sees, ``counts`` of ``count`` of which are real."""
    end = max(cache.lengths) + count
    if cache.level and min(counts) == count:
        return Place(end - 1, end, ())
    ends = cache.starts + torch.tensor(counts, device=cache.starts.device)
    hidden = torch.arange(end, device=ends.device) >= ends[:, None]
    return Place(end - 1, end, (), None, hidden[:, None], dtype)


def place_next(cache: LeanCache, count: int, dtype: torch.dtype, offset: int = 0) -> Place:
    """Place T more tokens of every sequence: each sees what is committed, what was placed before it, and itself.

    Args:
        cache: Where they go.
        count: T.
        dtype: Of the mask.
        offset: Slots behind the committed ones that earlier calls of this step have filled.
    """
    first, total = cache.lengths[0] + offset, max(cache.lengths) + offset + count
    cache.reserve(total)
    if cache.level and (count == 1 or first == 0):
        return Place(first, total, turn_rows(cache, slice(first, total)))
    own = torch.arange(offset, offset + count, device=cache.starts.device)
    if cache.level:
        turn = turn_rows(cache, slice(first, total))
        return Place(first, total, turn, None, (own > own[:, None])[None], dtype)
    slots = cache.starts[:, None] + own
    relative = torch.arange(total, device=own.device) - cache.starts[:, None]  # [B, total]
    hidden = relative[:, None, :] > own[:, None]
    return Place(total - count, total, turn_rows(cache, slots), slots, hidden, dtype)


def place_tree(cache: LeanCache, positions: Tensor, visible: Tensor, dtype: torch.dtype, offset: int = 0) -> Place:
    """Place T tokens with positions and visibility of their own, ``offset`` slots behind the committed ones.

    Args:
        cache: Where they go.
        positions: ``[B, T]`` int64, of the tokens in their sequences.
        visible: ``[B, T, offset + T]`` bool: which of the slots behind the committed ones (which are all seen) each
            token sees.
        dtype: Of the mask.
        offset: Slots that earlier calls of this step have filled.
    """
    count = positions.shape[1]
    total = max(cache.lengths) + offset + count
    cache.reserve(total)
    if cache.level:
        start = cache.lengths[0] + offset
        return Place(start, total, turn_rows(cache, positions), None, ~visible, dtype)
    slots = cache.starts[:, None] + torch.arange(offset, offset + count, device=positions.device)
    relative = torch.arange(total, device=positions.device) - cache.starts[:, None]  # [B, total]
    own = relative.clamp(0, offset + count - 1)[:, None].expand(-1, count, -1)
    seen = visible.gather(2, own) & (relative < offset + count)[:, None] | (relative < 0)[:, None]
    return Place(total - count, total, turn_rows(cache, positions), slots, ~seen, dtype)


def turn_rows(cache: LeanCache, positions: slice | Tensor) -> tuple[Tensor, ...]:
    """Rows of the rotary table as ``[T, 1, D]`` or ``[B, T, 1, D]``."""
    return tuple(table[positions].unsqueeze(-2) for table in cache.rotary)
