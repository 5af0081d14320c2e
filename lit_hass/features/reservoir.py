"""A bounded sample of the rows of each class, the same however the rows are split over time and ranks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.features.row_keys import hashed

# Bytes of one slab of rows.
_SLAB_BYTES = 2**22
# Beside a row: its group, key and slot.
_ROW_EXTRA = 24
#: Fewer rows of a group tell nothing of their spread: classes are left out whole instead.
LEAST_CAP = 2
# With so many no class is left.
_MOST_HALVINGS = 63


def keeps_class(classes: Tensor, halvings: int) -> Tensor:
    """Tell which classes are kept when half of them were left out so many times, by a hash of their numbers.

    Args:
        classes: ``[n]`` int64, not negative.
        halvings: 0 keeps all; what more halvings keep is a part of what fewer keep.
    """
    return hashed(classes) >> (_MOST_HALVINGS - halvings) == 0


class Reservoir:
    """Keeps the rows with the smallest keys of each group, at most so many of each, within a number of bytes.

    Rows lie in slabs; the place of a row that is pushed out is used again, so that memory is that of the kept rows, and
    pruning copies nothing but numbers. Where the bytes do not suffice for the rows that would stay, the cap per group
    is halved until they do, but not below two; then half of the classes are left out whole, by a hash of their numbers,
    and half of those that are left, and so on. Groups 2k and 2k + 1 are one class and stay or go together. What
    narrower bounds keep is a part of what wider ones keep, so that this is exact, and reservoirs with different bounds
    merge.

    Args:
        num_features: d.
        per_group: the cap; None keeps everything as long as there is room.
        max_bytes: of rows, ids and keys.
        dtype: of the rows; None takes that of the first ones.

    Attributes:
        per_group: the cap, now.
        halvings: how often half of the classes were left out, see `keeps_class`.
    """

    def __init__(
        self, num_features: int, per_group: int | None, max_bytes: int, dtype: torch.dtype | None = None
    ) -> None:
        if num_features < 1 or max_bytes < 1 or (per_group is not None and per_group < 0):
            raise UserError(f"no reservoir of {per_group} rows of {num_features} numbers in {max_bytes} bytes")
        self.num_features, self.per_group, self.max_bytes, self.dtype = num_features, per_group, max_bytes, dtype
        self.halvings = 0
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
        wanted = (groups >= 0) & keeps_class(groups.clamp(min=0) // 2, self.halvings)
        if len(self._full):
            place = torch.searchsorted(self._full, groups).clamp_(max=len(self._full) - 1)
            wanted &= (self._full[place] != groups) | (keys < self._limits[place])
        chosen = wanted.nonzero()[:, 0]
        if self.per_group is not None and len(self) + len(chosen) > 2 * self._after_prune + 4096:
            self.prune()
        if len(self) + len(chosen) > self.max_rows:
            chosen = chosen[self._make_room(groups[chosen], keys[chosen])]
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

    def _make_room(self, groups: Tensor, keys: Tensor) -> Tensor:
        """Lower the bounds until all fits that stays of what is held and what comes, and tell which of that stays.

        What would be pushed out at once does not count, so that the bounds depend on the rows alone, and not on the
        parts that they come in.
        """
        groups, keys = torch.cat((self._groups, groups)), torch.cat((self._keys, keys))
        order, rank = _ranks(groups, keys)
        ranks = torch.empty_like(rank).index_copy_(0, order, rank)
        while True:
            stays = keeps_class(groups // 2, self.halvings)
            if self.per_group is not None:
                stays &= ranks < self.per_group
            if int(stays.sum()) <= self.max_rows or self.halvings == _MOST_HALVINGS:
                break
            if self.per_group is not None and self.per_group <= LEAST_CAP:
                self.halvings += 1
                continue
            largest = int(ranks[stays].max()) + 1
            below = largest if self.per_group is None else min(largest, self.per_group)
            # The next smaller power of two, whatever the cap was: ranks that shrink meet at the same caps.
            self.per_group = max(LEAST_CAP, 1 << (max(below - 1, 1).bit_length() - 1))
        held = len(self)
        self._retain(stays[:held].nonzero()[:, 0], ~stays[:held])
        self.prune()
        return stays[held:]

    def _retain(self, order: Tensor, gone: Tensor) -> None:
        self._free.extend(self._slots[gone].tolist())
        self._groups, self._keys, self._slots = self._groups[order], self._keys[order], self._slots[order]

    def prune(self) -> None:
        """Push out what exceeds the bounds, and put the rest in order of group and key."""
        order, rank = _ranks(self._groups, self._keys)
        keep = keeps_class(self._groups[order] // 2, self.halvings)
        if self.per_group is not None:
            keep &= rank < self.per_group
        self._retain(order[keep], order[~keep])
        if self.per_group is not None:
            found, counts = self._groups.unique_consecutive(return_counts=True)
            self._full = found[counts >= self.per_group]
        if self.per_group:
            self._limits = self._keys[torch.searchsorted(self._groups, self._full, right=True) - 1]
        if not len(self):
            self._slabs, self._free = [], []
        self._after_prune = len(self)

    def shrink_to(self, per_group: int | None, halvings: int = 0) -> None:
        """Lower the cap, and leave out classes, as when another rank had to.

        Raises:
            ValueError: it would be raised: the rows are gone.
        """
        if self.per_group is not None and (per_group is None or per_group > self.per_group):
            raise ValueError(f"a reservoir of {self.per_group} rows a group cannot become one of {per_group}")
        self.per_group, self.halvings = per_group, max(self.halvings, halvings)
        self.prune()

    # -- reading ----------------------------------------------------------------------------------------------------

    @property
    def cap(self) -> int | None:
        """Rows of each group at most, now; None: all."""
        return self.per_group

    def index(self) -> tuple[Tensor, Tensor]:
        """Groups and keys of the rows kept, ``[n]`` int64 each, in their order."""
        self.prune()
        return self._groups, self._keys

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
        return {"rows": rows, "groups": self._groups, "keys": self._keys}, self.bounds

    @property
    def bounds(self) -> dict[str, Any]:
        """The cap and the halvings, by name."""
        return {"per_group": self.per_group, "halvings": self.halvings}

    def merge(self, tensors: dict[str, Tensor], settings: dict[str, Any]) -> None:
        """Take in the `state` of another one; the narrower bounds hold."""
        caps = [cap for cap in (self.per_group, settings["per_group"]) if cap is not None]
        bounds = min(caps, default=None), settings.get("halvings", 0)  # earlier versions left out no classes
        if bounds[0] != self.per_group or bounds[1] > self.halvings:
            self.shrink_to(*bounds)
        if len(tensors["rows"]):
            self.offer(tensors["rows"], tensors["groups"], tensors["keys"])


def _ranks(groups: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return an order by group and key, and the rank of each row, in that order, within its group."""
    order = keys.argsort(stable=True)
    order = order[groups[order].argsort(stable=True)]
    _, counts = groups[order].unique_consecutive(return_counts=True)
    return order, torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)


def _slab_rows(num_features: int, size: int) -> int:
    return max(1, _SLAB_BYTES // (num_features * size))


def _by_slab(slots: Tensor, rows: int) -> list[tuple[int, Tensor, Tensor]]:
    """Split slots by slab: its number, places in it, and where they stand in ``slots``."""
    slabs = slots // rows
    return [(slab, slots[where] % rows, where) for slab in slabs.unique().tolist() for where in [_where(slabs, slab)]]


def _where(values: Tensor, value: int) -> Tensor:
    return (values == value).nonzero()[:, 0]
