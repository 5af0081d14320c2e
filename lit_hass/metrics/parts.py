"""Sums over rows that merge by addition: what an accumulator is made of.

Rows come less a shift vector (the mean of the first batch), so that sums of squares of features far from the origin
keep their digits. Two sums with the same shift merge by addition; :meth:`Part.rebased` changes the shift exactly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_hass.metrics.collectives import Ranks

State = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Rows that passed all checks.

    Attributes:
        x: ``[n, d]`` float64, less the shift.
        sqnorms: ``[n]`` float64, squared lengths of x.
        ids: ``[n]`` int64, token ids.
        slots: ``[n]`` int64, 0 for rows without a state and 1 + code for the others; None: all 0.
        counted: ``[n]`` bool, rows that belong to the text, or None: all. The others have a state that is left out of
            everything but that state's own spectrum.
        rows: ``[n, d]``, as they came.
        paired: ``[n, e]`` float64, the second stream as it came, or None.
        shift: ``[d]`` float64.
    """

    x: Tensor
    sqnorms: Tensor
    ids: Tensor
    slots: Tensor | None
    counted: Tensor | None
    rows: Tensor
    paired: Tensor | None
    shift: Tensor

    def select(self, keep: Tensor) -> Batch:
        """Return some of the rows.

        Args:
            keep: ``[n]`` bool.
        """
        some = [None if x is None else x[keep] for x in (self.slots, self.counted, self.paired)]
        x, sqnorms, ids, rows = self.x[keep], self.sqnorms[keep], self.ids[keep], self.rows[keep]
        return Batch(x, sqnorms, ids, some[0], some[1], rows, some[2], self.shift)


class Part(ABC):
    """One kind of sum. Its tensors are held by the metric; the methods get them by name and return what changed."""

    #: Rows of every state enter, not only those of the text.
    all_states = False

    @abstractmethod
    def defaults(self) -> State:
        """Return the states of an accumulator without rows."""

    @abstractmethod
    def update(self, state: State, batch: Batch) -> State:
        """Add rows; tensors may be changed in place."""

    def extent(self, state: State) -> int:
        """Return a size on which ranks may differ and of which :meth:`reduced` needs the largest."""
        return 0

    def rebased(self, state: State, delta: Tensor) -> State:
        """Return the sums of the rows plus ``delta`` (``[d]``, old shift less new shift), as new tensors."""
        return state

    @abstractmethod
    def merged(self, a: State, b: State) -> State:
        """Return the sums of both, as new tensors."""

    @abstractmethod
    def reduced(self, state: State, ranks: Ranks, extent: int) -> State:
        """Return the sums over all ranks, as new tensors; collective."""


class Grams(Part):
    """Counts, sums and Gram matrices of the rows, for each state by itself (``slot_*``: row 0 is without a state).

    Args:
        num_features: d.
    """

    all_states = True

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def defaults(self) -> State:
        """See :meth:`Part.defaults`; memory for the matrices is taken with the first row."""
        d = self.num_features
        return {
            "slot_rows": torch.zeros(0, dtype=torch.int64),
            "slot_sums": torch.zeros(0, d, dtype=torch.float64),
            "slot_grams": torch.zeros(0, d, d, dtype=torch.float64),
        }

    def extent(self, state: State) -> int:
        """Return the number of slots in use."""
        return len(state["slot_rows"])

    def update(self, state: State, batch: Batch) -> State:
        """See :meth:`Part.update`."""
        slots = batch.slots
        needed = 1 if slots is None else int(slots.max()) + 1
        state = self._padded(state, max(needed, self.extent(state)))
        for slot in [0] if slots is None else slots.unique().tolist():
            x = batch.x if slots is None else batch.x[slots == slot]
            state["slot_rows"][slot] += len(x)
            state["slot_sums"][slot] += x.sum(0)
            state["slot_grams"][slot].addmm_(x.T, x)
        return state

    def rebased(self, state: State, delta: Tensor) -> State:
        """See :meth:`Part.rebased`."""
        n = state["slot_rows"].to(torch.float64)[:, None]
        sums, grams = state["slot_sums"], state["slot_grams"]
        cross = sums[:, :, None] * delta
        grams = grams + cross + cross.transpose(1, 2) + n[:, :, None] * torch.outer(delta, delta)
        return {**state, "slot_sums": sums + n * delta, "slot_grams": grams}

    def merged(self, a: State, b: State) -> State:
        """See :meth:`Part.merged`."""
        slots = max(self.extent(a), self.extent(b))
        a, b = self._padded(a, slots), self._padded(b, slots)
        return {name: a[name] + b[name] for name in a}

    def reduced(self, state: State, ranks: Ranks, extent: int) -> State:
        """See :meth:`Part.reduced`."""
        return {name: ranks.sum(value.clone()) for name, value in self._padded(state, extent).items()}

    def total(self, state: State, left_out: tuple[int, ...]) -> tuple[int, Tensor, Tensor]:
        """Return rows, sum and Gram matrix over all slots but some."""
        keep = [slot for slot in range(self.extent(state)) if slot not in left_out]
        rows, sums, grams = (state[name][keep] for name in ("slot_rows", "slot_sums", "slot_grams"))
        return int(rows.sum()), sums.sum(0), grams.sum(0)

    @staticmethod
    def _padded(state: State, slots: int) -> State:
        missing = slots - len(state["slot_rows"])
        if missing <= 0:
            return state
        return {name: torch.cat((x, x.new_zeros(missing, *x.shape[1:]))) for name, x in state.items()}


class UnitSums(Part):
    """The sum of the rows at length 1, which is all that their mean cosine needs.

    Args:
        num_features: d.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def defaults(self) -> State:
        """See :meth:`Part.defaults`; ``unit_rows`` holds the rows added and those of length zero."""
        return {
            "unit_sum": torch.zeros(self.num_features, dtype=torch.float64),
            "unit_rows": torch.zeros(2, dtype=torch.int64),
        }

    def update(self, state: State, batch: Batch) -> State:
        """See :meth:`Part.update`."""
        rows = batch.rows.to(batch.x)
        lengths = torch.linalg.vector_norm(rows, dim=1)
        present = lengths > 0
        weights = torch.where(present, 1 / lengths, 0.0)
        state["unit_sum"] += weights @ rows
        state["unit_rows"] += torch.stack((present.sum(), (~present).sum()))
        return state

    def merged(self, a: State, b: State) -> State:
        """See :meth:`Part.merged`."""
        return {name: a[name] + b[name] for name in a}

    def reduced(self, state: State, ranks: Ranks, extent: int) -> State:
        """See :meth:`Part.reduced`."""
        return {name: ranks.sum(value.clone()) for name, value in state.items()}
