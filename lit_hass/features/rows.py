"""Rows on their way: features with their classes, states and keys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowBlock:
    """Some rows.

    Attributes:
        features: ``[n, d]`` floating.
        token_ids: ``[n]`` int64, the token behind each row's position: its class.
        states: ``[n]`` int64 codes of `lit_hass.metrics.accumulator.STATE_NAMES`, or None.
        keys: ``[n]`` int64, see `lit_hass.features.row_keys`.
        paired: ``[n, e]`` floating, another stream at the same positions, or None.
    """

    features: Tensor
    token_ids: Tensor
    states: Tensor | None
    keys: Tensor
    paired: Tensor | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.token_ids)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(x.numel() * x.element_size() for x in self.tensors() if x is not None)

    @property
    def kind(self) -> tuple[bool, bool]:
        """Which of the optional tensors it has: blocks of one kind can be joined."""
        return self.states is not None, self.paired is not None

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All tensors, in the order of the attributes."""
        return self.features, self.token_ids, self.states, self.keys, self.paired

    def select(self, rows: slice | Tensor) -> RowBlock:
        """Return some rows, by a slice (which shares memory), a mask or an index."""
        return RowBlock(*(None if x is None else x[rows] for x in self.tensors()))  # type: ignore[arg-type]

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> RowBlock:
        """Return the rows elsewhere, the features in another dtype."""
        features, token_ids, states, keys, paired = self.tensors()
        assert features is not None and token_ids is not None and keys is not None
        return RowBlock(
            features.to(device, dtype or features.dtype),
            token_ids.to(device),
            None if states is None else states.to(device),
            keys.to(device),
            None if paired is None else paired.to(device, dtype or paired.dtype),
        )

    def own(self) -> RowBlock:
        """Return a copy that shares memory with nothing: a view would keep a whole batch alive."""
        copies = [
            None if x is None else x.detach().clone(memory_format=torch.contiguous_format) for x in self.tensors()
        ]
        return RowBlock(*copies)  # type: ignore[arg-type]

    def pieces(self, rows: int) -> Iterator[RowBlock]:
        """Yield the rows in slices of at most so many."""
        for start in range(0, len(self), rows):
            yield self.select(slice(start, start + rows))


def joined(blocks: Sequence[RowBlock]) -> list[RowBlock]:
    """Join blocks of one kind, dtype and device, in their order; one copy of each tensor."""
    groups: dict[object, list[RowBlock]] = {}
    for block in blocks:
        kind = (block.kind, block.features.dtype, block.features.device)
        groups.setdefault(kind, []).append(block)
    found = []
    for group in groups.values():
        columns = zip(*(block.tensors() for block in group), strict=True)
        tensors = [None if column[0] is None else torch.cat(column) for column in columns]  # type: ignore[arg-type]
        found.append(group[0] if len(group) == 1 else RowBlock(*tensors))  # type: ignore[arg-type]
    return found
