"""A bounded sample of the rows of each class, the same however the rows are split over time and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import UserError

# Bytes of one slab of rows.
_SLAB_BYTES = 2**22
# Beside a row: its group, key and slot.
_ROW_EXTRA = 24


class Reservoir:
    """Keeps the rows with the smallest keys of each group, at most so many of each, within a number of bytes.

    Rows lie in slabs; the place of a row that is pushed out is used again, so that memory is that of the kept rows, and
    pruning copies nothing but numbers. Where the bytes do not suffice, the cap per group is halved until they do: what
    a smaller cap keeps is a part of what a larger one keeps, so that this is exact, and reservoirs with different caps
    merge.

    Args:
        num_features: d.
        per_group: the cap; None keeps everything as long as there is room.
        max_bytes: of rows, ids and keys.
        dtype: of the rows; None takes that of the first ones.
    """

    def __init__(
        self, num_features: int, per_group: int | None, max_bytes: int, dtype: torch.dtype | None = None
    ) -> None:
        if num_features < 1 or max_bytes < 1 or (per_group is not None and per_group < 0):
            raise UserError(f"no reservoir of {per_group} rows of {num_features} numbers in {max_bytes} bytes")
        self.num_features, self.per_group, self.max_bytes, self.dtype = num_features, per_group, max_bytes, dtype
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self._slabs: list[Tensor] = []
        self._free: list[int] = []
        self._groups = torch.empty(0, dtype=torch.int64)
        self._keys = torch.empty(0, dtype=torch.int64)
        self._slots = torch.empty(0, dtype=torch.int64)
        # Of groups that are full: a row whose key is not below the limit need not be looked at.
        self._full = torch.empty(0, dtype=torch.int64)
        self._limits = torch.empty(0, dtype=torch.int64)
        self._after_prune = 0

    def __len__(self) -> int:
        """Rows held; right after `prune`, rows kept."""
        return len(self._groups)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(slab.numel() * slab.element_size() for slab in self._slabs) + _ROW_EXTRA * len(self)

    @property
    def max_rows(self) -> int:
        """How many rows there is room for."""
        size = torch.empty(0, dtype=self.dtype or torch.float32).element_size()
        slab = _slab_rows(self.num_features, size)
        whole = self.max_bytes // (slab * (self.num_features * size + _ROW_EXTRA))
        return max(1, whole * slab or self.max_bytes // (self.num_features * size + _ROW_EXTRA))

    def offer(self, rows: Tensor, groups: Tensor, keys: Tensor) -> None:
        """Offer rows; they are copied if they are kept.

        Args:
            rows: ``[n, d]`` floating.
            groups: ``[n]`` int64; rows of negative groups are passed over.
            keys: ``[n]`` int64.
        """
        if self.dtype is None:
            self.dtype = rows.dtype
        groups, keys = groups.to("cpu"), keys.to("cpu")
        wanted = groups >= 0
        if self.per_group == 0:
            wanted &= False
        elif len(self._full):
            place = torch.searchsorted(self._full, groups).clamp_(max=len(self._full) - 1)
            wanted &= (self._full[place] != groups) | (keys < self._limits[place])
        chosen = wanted.nonzero()[:, 0]
        for part in chosen.split(max(1, self.max_rows // 2)):
            self._take(rows, groups, keys, part)

    def _take(self, rows: Tensor, groups: Tensor, keys: Tensor, chosen: Tensor) -> None:
        if self.per_group is not None and len(self) + len(chosen) > 2 * self._after_prune + 4096:
            self.prune()
        if len(self) + len(chosen) > self.max_rows:
            self._make_room(len(chosen))
        if self.per_group == 0:
            return
        slots = self._places(len(chosen))
        for slab, places, index in _by_slab(slots, len(self._slabs[0]) if self._slabs else 1):
            self._slabs[slab][places] = rows[chosen[index].to(rows.device)].to("cpu", self.dtype)
        self._groups = torch.cat((self._groups, groups[chosen]))
        self._keys = torch.cat((self._keys, keys[chosen]))
        self._slots = torch.cat((self._slots, slots))

    def _places(self, count: int) -> Tensor:
        size = torch.empty(0, dtype=self.dtype).element_size()
        rows = min(_slab_rows(self.num_features, size), self.max_rows)
        while len(self._free) < count:
            start = len(self._slabs) * rows
            self._slabs.append(torch.zeros(rows, self.num_features, dtype=self.dtype))
            self._free.extend(range(start + rows - 1, start - 1, -1))
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return torch.tensor(taken[::-1], dtype=torch.int64)

    def _make_room(self, count: int) -> None:
        self.prune()
        while len(self) + count > self.max_rows and self.per_group != 0:
            largest = int(self._groups.unique(return_counts=True)[1].max()) if len(self) else 1
            below = largest if self.per_group is None else min(largest, self.per_group)
            # The next smaller power of two, whatever the cap was: ranks that shrink meet at the same caps.
            self.per_group = 1 << ((below - 1).bit_length() - 1) if below > 1 else 0
            self.prune()

    def prune(self) -> None:
        """Push out what exceeds the cap, and put the rest in order of group and key."""
        order = self._keys.argsort(stable=True)
        order = order[self._groups[order].argsort(stable=True)]
        found, counts = self._groups[order].unique_consecutive(return_counts=True)
        if self.per_group is not None:
            starts = counts.cumsum(0) - counts
            rank = torch.arange(len(order)) - starts.repeat_interleave(counts)
            keep = rank < self.per_group
            self._free.extend(self._slots[order[~keep]].tolist())
            order = order[keep]
            full = counts >= self.per_group
            self._full = found[full]
        self._groups, self._keys, self._slots = self._groups[order], self._keys[order], self._slots[order]
        if self.per_group:
            self._limits = self._keys[torch.searchsorted(self._groups, self._full, right=True) - 1]
        if not len(self):
            self._slabs, self._free = [], []
        self._after_prune = len(self)

    def shrink_to(self, per_group: int | None) -> None:
        """Lower the cap, as when another rank had to.

        Raises:
            ValueError: it would be raised: the rows are gone.
        """
        if self.per_group is not None and (per_group is None or per_group > self.per_group):
            raise ValueError(f"a reservoir of {self.per_group} rows a group cannot become one of {per_group}")
        self.per_group = per_group
        self.prune()

    # -- reading ----------------------------------------------------------------------------------------------------

    @property
    def groups(self) -> Tensor:
        """``[n]`` int64 of the rows held."""
        return self._groups

    @property
    def keys(self) -> Tensor:
        """``[n]`` int64 of the rows held."""
        return self._keys

    def gather(self, index: Tensor) -> Tensor:
        """Return a copy of some of the rows, by their place in `groups` and `keys`."""
        slots = self._slots[index]
        result = torch.empty(len(slots), self.num_features, dtype=self.dtype or torch.float32)
        for slab, places, where in _by_slab(slots, len(self._slabs[0]) if self._slabs else 1):
            result[where] = self._slabs[slab][places]
        return result

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the rows kept as tensors, and plain settings."""
        self.prune()
        rows = self.gather(torch.arange(len(self)))
        return {"rows": rows, "groups": self._groups, "keys": self._keys}, {"per_group": self.per_group}

    def merge(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Take in the `state` of another one; the smaller of the caps holds."""
        theirs = settings["per_group"]
        if theirs is not None and (self.per_group is None or theirs < self.per_group):
            self.shrink_to(theirs)
        if len(tensors["rows"]):
            self.offer(tensors["rows"], tensors["groups"], tensors["keys"])


def _slab_rows(num_features: int, size: int) -> int:
    return max(1, _SLAB_BYTES // (num_features * size))


def _by_slab(slots: Tensor, rows: int) -> list[tuple[int, Tensor, Tensor]]:
    """Split slots by slab: its number, places in it, and where they stand in ``slots``."""
    slabs = slots // rows
    return [(slab, slots[where] % rows, where) for slab in slabs.unique().tolist() for where in [_where(slabs, slab)]]


def _where(values: Tensor, value: int) -> Tensor:
    return (values == value).nonzero()[:, 0]
