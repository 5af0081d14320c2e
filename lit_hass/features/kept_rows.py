"""The rows that outlive their folding: a reservoir in memory, or all of them on disk as long as that goes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_hass.features.reservoir import Reservoir
from lit_hass.features.spill import SpillShard

log = logging.getLogger(__name__)

#: Cap of the reservoir that takes over where all rows were to be kept and the disk is full.
FALLBACK_CAP = 256
# Numbers that are copied from file to file or to a reservoir at a time.
_STEP_NUMBERS = 2**20


class KeptRows:
    """Rows by group, for the measures that no sums can give.

    Args:
        num_features: d.
        per_group: rows kept of each group; None keeps all: in files, if there is a folder, else in memory.
        host_bytes: for the reservoir.
        disk_bytes: for the files; once these are full, all rows go through a reservoir.
        folder: for the files.
        name: of the files.

    Attributes:
        spill_disabled: why rows no longer go to the disk, or None.
    """

    def __init__(
        self, num_features: int, per_group: int | None, host_bytes: int, disk_bytes: int, folder: Path | None, name: str
    ) -> None:
        self.num_features, self.per_group = num_features, per_group
        self.spill_disabled: str | None = None
        self._host_bytes, self._disk_bytes, self._folder, self._name = host_bytes, disk_bytes, folder, name
        self._reservoir: Reservoir | None = None
        self._shard: SpillShard | None = None
        self._given_up: list[SpillShard] = []

    def add(self, rows: Tensor, groups: Tensor, keys: Tensor) -> None:
        """Add rows ``[n, d]`` with their groups and keys ``[n]``; copied where they are kept."""
        if self._spills():
            if self._shard is None:
                self._shard = self._new_shard(rows.dtype)
            try:
                if self._shard.room(len(rows)):
                    self._shard.append(rows, groups, keys)
                    return
                self._stop_spilling(f"the budget of {self._disk_bytes} bytes is used up")
            except OSError as error:
                self._stop_spilling(error.strerror or str(error))
        self._sample(rows.dtype).offer(rows, groups, keys)

    def _spills(self) -> bool:
        return self.per_group is None and self._folder is not None and self.spill_disabled is None

    def _new_shard(self, dtype: torch.dtype) -> SpillShard:
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        return SpillShard(self._folder, self._name, self.num_features, dtype, self._disk_bytes)

    def _sample(self, dtype: torch.dtype) -> Reservoir:
        if self._reservoir is None:
            cap = FALLBACK_CAP if self.per_group is None and self.spill_disabled is not None else self.per_group
            self._reservoir = Reservoir(self.num_features, cap, self._host_bytes, dtype)
        return self._reservoir

    def _stop_spilling(self, reason: str) -> None:
        """Go on with a reservoir; the rows on disk go through it too, so that it is that of all rows."""
        log.warning("rows no longer go to the disk (%s); a sample of each class is kept in memory instead", reason)
        self.spill_disabled = reason
        shard, self._shard = self._shard, None
        if shard is not None:
            self._copy(shard)
            # A snapshot may still speak of it, until the next one.
            self._given_up.append(shard)

    def _copy(self, shard: SpillShard) -> None:
        groups, keys = shard.index()
        step = max(1, _STEP_NUMBERS // self.num_features)
        for start in range(0, len(groups), step):
            part = torch.arange(start, min(start + step, len(groups)))
            self.add(shard.gather(part), groups[part], keys[part])

    def remove_given_up(self) -> None:
        """Delete files that nobody needs any more."""
        for shard in self._given_up:
            shard.remove()
        self._given_up = []

    # -- reading ------------------------------------------------------------------------------------------------------

    @property
    def cap(self) -> int | None:
        """Rows kept of each group at most, now; None: all."""
        return self.per_group if self._reservoir is None else self._reservoir.cap

    @property
    def halvings(self) -> int:
        """How often half of the classes were left out, see `keeps_class`."""
        return 0 if self._reservoir is None else self._reservoir.halvings

    def index(self) -> tuple[Tensor, Tensor]:
        """Groups and keys of the kept rows, ``[n]`` int64 each."""
        if self._shard is not None:
            return self._shard.index()
        if self._reservoir is None:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        return self._reservoir.index()

    def gather(self, index: Tensor) -> Tensor:
        """Copies of some rows ``[n, d]``, by their places in `index`."""
        if self._shard is not None:
            return self._shard.gather(index)
        if self._reservoir is None:
            return torch.empty(0, self.num_features)
        return self._reservoir.gather(index)

    @property
    def host_nbytes(self) -> int:
        """Bytes in host memory."""
        return self._reservoir.nbytes if self._reservoir is not None else 0

    @property
    def disk_nbytes(self) -> int:
        """Bytes on disk."""
        return sum(shard.nbytes for shard in [*self._given_up, *([self._shard] if self._shard is not None else [])])

    # -- end and resume -----------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The rows in memory as tensors, and plain values; rows on disk are synced and stay where they are."""
        plain: dict[str, Any] = {"spill_disabled": self.spill_disabled}
        tensors: dict[str, Tensor] = {}
        if self._shard is not None:
            self._shard.sync()
            plain["shard"] = {**self._shard.state(), "dtype": str(self._shard.dtype).removeprefix("torch.")}
        if self._reservoir is not None:
            tensors, plain["reservoir"] = self._reservoir.state()
        return tensors, plain

    def merge(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Take in the `state` of another one.

        Files of this one's own name are gone on with, so its own state comes first; those of others are copied.

        Raises:
            RunError: a file is gone or too short; names it.
        """
        if plain["spill_disabled"] and self.spill_disabled is None:
            self._stop_spilling(plain["spill_disabled"])
        if "reservoir" in plain:
            self._sample(tensors["rows"].dtype).merge(tensors, plain["reservoir"])
        if "shard" in plain:
            assert self._folder is not None
            saved = plain["shard"]
            dtype = getattr(torch, saved["dtype"])
            shard = SpillShard(self._folder, saved["name"], self.num_features, dtype, self._disk_bytes)
            shard.resume(saved["count"])
            if saved["name"] == self._name and self._shard is None and self._spills():
                self._shard = shard
            else:
                self._copy(shard)

    def clear(self, files: bool) -> None:
        """Forget the rows; ``files``: also delete those on disk."""
        if self._reservoir is not None:
            self._reservoir.clear()
        if files:
            if self._shard is not None:
                self._shard.remove()
            self.remove_given_up()
        self._reservoir, self._shard, self._given_up, self.spill_disabled = None, None, [], None
