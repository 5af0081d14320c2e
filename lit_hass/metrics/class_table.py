"""Counts, sums and squared lengths per class, for the classes that were seen only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.parts import Batch, Part, State


@dataclass(frozen=True)
class Classes:
    """The classes of an accumulator, ascending by id.

    Attributes:
        ids: ``[K]`` int64.
        counts: ``[K]`` int64, rows.
        offsets: ``[K, d]`` float64, class means less the shift. Whatever is centred is computed from these.
        variances: ``[K]`` float64, mean squared distance of the rows from their mean (divisor n).
        shift: ``[d]`` float64.
    """

    ids: Tensor
    counts: Tensor
    offsets: Tensor
    variances: Tensor
    shift: Tensor

    @property
    def means(self) -> Tensor:
        """``[K, d]`` float64."""
        return self.offsets + self.shift

    def eligible(self, min_samples: int, max_classes: int | None = None) -> Classes:
        """Return the classes with at least so many rows, and of these the most frequent ones (ties: smaller id)."""
        keep = self.counts >= min_samples
        if max_classes is not None and int(keep.sum()) > max_classes:
            order = torch.where(keep, self.counts, -1).argsort(descending=True, stable=True)
            keep = torch.zeros_like(keep).index_fill_(0, order[:max_classes], True)
        return Classes(self.ids[keep], self.counts[keep], self.offsets[keep], self.variances[keep], self.shift)


def check_max_classes(most: int | None) -> None:
    """Refuse a number of classes that is not positive.

    Raises:
        UserError: with the number.
    """
    if most is not None and most < 1:
        raise UserError(f"max_classes must be positive or None, got {most}")


class ClassTable(Part):
    """A table that grows by doubling, with one row per class seen; unused rows have the id -1.

    Args:
        num_features: d.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features
        self._known: Tensor | None = None
        self._row_of = torch.empty(0, dtype=torch.int64)
        self._used = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"num_features": self.num_features}

    def __setstate__(self, state: dict[str, Any]) -> None:
        ClassTable.__init__(self, **state)

    def defaults(self) -> State:
        """See :meth:`Part.defaults`."""
        return {
            "class_ids": torch.empty(0, dtype=torch.int64),
            "class_counts": torch.zeros(0, dtype=torch.int64),
            "class_sums": torch.zeros(0, self.num_features, dtype=torch.float64),
            "class_sqnorms": torch.zeros(0, dtype=torch.float64),
        }

    def extent(self, state: State) -> int:
        """Return the largest id plus one."""
        ids = state["class_ids"]
        return int(ids.max()) + 1 if ids.numel() else 0

    def update(self, state: State, batch: Batch) -> State:
        """See :meth:`Part.update`."""
        self._follow(state["class_ids"])
        top = int(batch.ids.max()) + 1
        if top > len(self._row_of):
            more = max(top, 2 * len(self._row_of)) - len(self._row_of)
            self._row_of = torch.cat((self._row_of, self._row_of.new_full((more,), -1)))
        rows = self._row_of[batch.ids]
        if int(rows.min()) < 0:
            state = self._with_new(state, batch.ids[rows < 0].unique())
            rows = self._row_of[batch.ids]
        state["class_counts"].index_add_(0, rows, torch.ones_like(rows))
        state["class_sums"].index_add_(0, rows, batch.x)
        state["class_sqnorms"].index_add_(0, rows, batch.sqnorms)
        return state

    def _follow(self, ids: Tensor) -> None:
        """Make the map from id to row that of this table, which may have been reset, loaded or moved since."""
        if self._known is ids:
            return
        self._known, self._used = ids, int((ids >= 0).sum())
        used = ids[: self._used]
        self._row_of = ids.new_full((int(used.max()) + 1 if self._used else 0,), -1)
        self._row_of[used] = torch.arange(self._used, device=ids.device)

    def _with_new(self, state: State, new: Tensor) -> State:
        start, self._used = self._used, self._used + len(new)
        capacity = len(state["class_ids"])
        if self._used > capacity:
            more = max(self._used, 2 * capacity) - capacity
            state = {name: torch.cat((x, x.new_zeros(more, *x.shape[1:]))) for name, x in state.items()}
            state["class_ids"][capacity:] = -1
            self._known = state["class_ids"]
        state["class_ids"][start : self._used] = new
        self._row_of[new] = torch.arange(start, self._used, device=new.device)
        return state

    def rebased(self, state: State, delta: Tensor) -> State:
        """See :meth:`Part.rebased`."""
        state = _trimmed(state)
        n, sums = state["class_counts"].to(torch.float64), state["class_sums"]
        return {
            **state,
            "class_sums": sums + n[:, None] * delta,
            "class_sqnorms": state["class_sqnorms"] + 2 * (sums @ delta) + n * (delta @ delta),
        }

    def merged(self, a: State, b: State) -> State:
        """See :meth:`Part.merged`."""
        a, b = _trimmed(a), _trimmed(b)
        union = torch.cat((a["class_ids"], b["class_ids"])).unique()
        result = self._spread(a, union)
        place = torch.searchsorted(union, b["class_ids"])
        for name in ("class_counts", "class_sums", "class_sqnorms"):
            result[name].index_add_(0, place, b[name])
        return result

    def reduced(self, state: State, ranks: Ranks, extent: int) -> State:
        """See :meth:`Part.reduced`: each table is moved once, over the union of the ranks' ids."""
        state = _trimmed(state)
        present = torch.zeros(extent, dtype=torch.int32, device=state["class_ids"].device)
        present[state["class_ids"]] = 1
        result = self._spread(state, ranks.max(present).nonzero()[:, 0])
        for name in ("class_counts", "class_sums", "class_sqnorms"):
            ranks.sum(result[name])
        return result

    @staticmethod
    def _spread(state: State, union: Tensor) -> State:
        place = torch.searchsorted(union, state["class_ids"])
        result: State = {"class_ids": union}
        for name in ("class_counts", "class_sums", "class_sqnorms"):
            value = state[name]
            result[name] = value.new_zeros(len(union), *value.shape[1:]).index_copy_(0, place, value)
        return result

    @staticmethod
    def classes(state: State, shift: Tensor) -> Classes:
        """Return the classes seen."""
        order = state["class_ids"].argsort(stable=True)
        order = order[int((state["class_ids"] < 0).sum()) :]
        ids, counts = state["class_ids"][order], state["class_counts"][order]
        n = counts.to(torch.float64)
        offsets = state["class_sums"][order] / n[:, None]
        variances = (state["class_sqnorms"][order] / n - offsets.square().sum(1)).clamp_(min=0)
        return Classes(ids, counts, offsets, variances, shift)


def _trimmed(state: State) -> State:
    used = int((state["class_ids"] >= 0).sum())
    return {name: value[:used] for name, value in state.items()}
