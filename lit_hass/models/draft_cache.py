"""What a draft keeps between the steps of decoding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class DraftCache:
    """Keys and values of a batch's draft rows, preallocated.

    The first ``lengths[b]`` slots of row b hold *committed* rows, those made from features of the base; row t lies in
    slot t. A pass writes behind them and commits nothing: rows made from predicted features are overwritten by the
    next pass, so that the cache never holds a prediction (which costs 8-15 % of the acceptance length).

    Attributes:
        keys: ``[B, kv_heads, capacity, head_dim]``, turned by their positions.
        values: ``[B, kv_heads, capacity, head_dim]``.
        rotary: Cosine and sine ``[capacity, head_dim]``, or None where they depend on the sequence's length.
        lengths: Committed rows, known without asking the device.
        starts: The same as ``[B]`` int64 on the device.
    """

    def __init__(self, keys: Tensor, values: Tensor, rotary: tuple[Tensor, Tensor] | None) -> None:
        """Start empty."""
        self.keys, self.values, self.rotary = keys, values, rotary
        self.lengths = [0] * keys.shape[0]
        self.starts = torch.zeros(keys.shape[0], dtype=torch.long, device=keys.device)

    @property
    def capacity(self) -> int:
        """Slots per row of the batch."""
        return self.keys.shape[2]

    def check_room(self, count: int) -> None:
        """Raise a ValueError unless every row has ``count`` free slots behind the committed ones."""
        needed = max(self.lengths) + count
        if needed > self.capacity:
            raise ValueError(f"the cache has {self.capacity} slots, {needed} are needed")

    def commit(self, counts: int | Sequence[int]) -> None:
        """Keep this many more rows of what the last pass wrote, for all or for each of the batch."""
        per_row = [counts] * len(self.lengths) if isinstance(counts, int) else list(counts)
        self.lengths = [length + count for length, count in zip(self.lengths, per_row, strict=True)]
        self.starts = torch.tensor(self.lengths, device=self.starts.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order, and forget the others."""
        index = torch.tensor(list(rows), dtype=torch.long, device=self.keys.device)
        self.keys, self.values = self.keys.index_select(0, index), self.values.index_select(0, index)
        self.lengths = [self.lengths[row] for row in rows]
        self.starts = self.starts[index]

    def write(self, keys: Tensor, values: Tensor, offset: int) -> int:
        """Put ``[B, kv_heads, T, head_dim]`` at ``offset`` slots behind the committed rows.

        Returns:
            How many slots there are to look at: up to the last one written in any row.
        """
        first, last, count = min(self.lengths) + offset, max(self.lengths) + offset, keys.shape[2]
        end = last + count
        if first == last:
            self.keys[:, :, first:end], self.values[:, :, first:end] = keys, values
        else:
            slots = self.starts[:, None] + torch.arange(offset, offset + count, device=keys.device)  # [B, T]
            rows = torch.arange(len(self.lengths), device=keys.device)[:, None]
            self.keys[rows, :, slots], self.values[rows, :, slots] = keys.transpose(1, 2), values.transpose(1, 2)
        return end

    def mask(self, count: int, offset: int, end: int, visible: Tensor | None) -> Tensor | None:
        """What each of T new rows sees of the first ``end`` slots: ``[B, 1, T, end]`` bool, or None for all.

        Committed rows are always seen. Of the others, ``visible`` (``[T, offset + T]`` or ``[B, T, offset + T]``) tells
        which; by default those before it and itself.
        """
        level = min(self.lengths) == max(self.lengths)
        if visible is None:
            if level and count == 1:
                return None
            relative = torch.arange(end, device=self.keys.device) - self.starts[:, None]  # [B, end]
            own = torch.arange(offset, offset + count, device=self.keys.device)
            return (relative[:, None, :] <= own[:, None])[:, None]
        visible = visible.expand(len(self.lengths), count, offset + count)
        if level:
            committed = visible.new_ones(()).expand(len(self.lengths), count, end - offset - count)
            return torch.cat((committed, visible), dim=-1)[:, None]
        relative = torch.arange(end, device=self.keys.device) - self.starts[:, None]
        index = relative.clamp(0, offset + count - 1)[:, None, :].expand(-1, count, -1)
        seen = visible.gather(2, index) & (relative < offset + count)[:, None, :]
        return (seen | (relative < 0)[:, None, :])[:, None]
