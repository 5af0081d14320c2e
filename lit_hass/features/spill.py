"""Rows on disk: a pair of append-only files that can be cut back to what a snapshot knows of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import RunError
from lit_hass.records.atomic import check_own_file, write_error

_INDEX_BYTES = 16  # group and key


class SpillShard:
    """Rows ``[n, d]`` in one file, their groups and keys in another, both raw and little-endian.

    Args:
        folder: where the files are; it is there.
        name: of the files, without an ending.
        num_features: d.
        dtype: of the rows.
        max_bytes: of both files.
    """

    def __init__(self, folder: Path, name: str, num_features: int, dtype: torch.dtype, max_bytes: int) -> None:
        self.rows_path, self.index_path = folder / f"{name}.rows", folder / f"{name}.index"
        self.num_features, self.dtype, self.max_bytes = num_features, dtype, max_bytes
        self._row_bytes = num_features * torch.empty(0, dtype=dtype).element_size()
        self._count = 0

    def __len__(self) -> int:
        """The number of rows."""
        return self._count

    @property
    def nbytes(self) -> int:
        """Bytes of both files."""
        return self._count * (self._row_bytes + _INDEX_BYTES)

    def room(self, rows: int) -> bool:
        """Whether so many rows more are within the budget."""
        return self.nbytes + rows * (self._row_bytes + _INDEX_BYTES) <= self.max_bytes

    def append(self, rows: Tensor, groups: Tensor, keys: Tensor) -> None:
        """Write rows behind the others; after an error the files are as before.

        Raises:
            OSError: the disk is full, or something else is in the way.
        """
        index = torch.stack((groups.to("cpu"), keys.to("cpu")), dim=1)
        for path, tensor, size in (
            (self.rows_path, rows.to("cpu", self.dtype), self._row_bytes),
            (self.index_path, index, _INDEX_BYTES),
        ):
            check_own_file(path)
            with open(path, "ab", buffering=0) as file:
                if file.tell() != self._count * size:
                    os.truncate(path, self._count * size)
                _write_all(file, tensor)
        self._count += len(groups)

    def sync(self) -> None:
        """Return when the rows are on the disk.

        Raises:
            UserError: the files cannot be written.
            RunError: the disk is full or failed.
        """
        for path in (self.rows_path, self.index_path):
            try:
                if self._count:
                    with open(path, "rb") as file:
                        os.fsync(file.fileno())
            except OSError as error:
                raise write_error(path, error) from error

    def index(self) -> tuple[Tensor, Tensor]:
        """Groups and keys of all rows, ``[n]`` int64 each."""
        if not self._count:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64)
        both = torch.from_file(str(self.index_path), shared=False, size=2 * self._count, dtype=torch.int64)
        both = both.view(-1, 2)
        return both[:, 0].clone(), both[:, 1].clone()

    def rows(self) -> Tensor:
        """All rows ``[n, d]``, memory-mapped; changes are not written."""
        if not self._count:
            return torch.empty(0, self.num_features, dtype=self.dtype)
        size = self._count * self.num_features
        return torch.from_file(str(self.rows_path), shared=False, size=size, dtype=self.dtype).view(
            self._count, self.num_features
        )

    def gather(self, index: Tensor) -> Tensor:
        """Copies of some rows ``[n, d]``, by their places.

        They are read, not mapped: around each row that is touched the system maps others, up to sixteen pages, which
        count as this process's memory. Rows that follow each other are read at once.
        """
        result = torch.empty(len(index), self.num_features, dtype=self.dtype)
        if not len(index):
            return result
        numbers: Any = result.view(torch.uint8).numpy()
        into = memoryview(numbers).cast("B")
        breaks = (index.diff() != 1).nonzero()[:, 0] + 1
        starts = [0, *breaks.tolist(), len(index)]
        places = index.tolist()
        with open(self.rows_path, "rb", buffering=0) as file:
            for start, stop in zip(starts, starts[1:], strict=False):
                file.seek(places[start] * self._row_bytes)
                part = into[start * self._row_bytes : stop * self._row_bytes]
                while part:
                    read = file.readinto(part)
                    if not read:
                        raise RunError(f"{self.rows_path}: was cut off while the run went on")
                    part = part[read:]
        return result

    def state(self) -> dict[str, Any]:
        """What a snapshot has to know to find the rows again."""
        return {"count": self._count, "name": self.rows_path.stem}

    def resume(self, count: int) -> None:
        """Go on behind the first ``count`` rows; what stands behind them came after the snapshot and is cut off.

        Raises:
            RunError: there are fewer; names the file.
        """
        for path, size in ((self.rows_path, self._row_bytes), (self.index_path, _INDEX_BYTES)):
            try:
                found = path.stat().st_size if path.exists() else 0
                if found < count * size:
                    what = "is shorter than when it was written" if path.exists() else "is gone"
                    raise RunError(
                        f"{path}: {what} ({found} of {count * size} bytes): the features of answered questions are "
                        "lost; put the file back, or begin a new run"
                    )
                if found > count * size:
                    check_own_file(path)
                    os.truncate(path, count * size)
            except OSError as error:
                raise write_error(path, error) from error
        self._count = count

    def remove(self) -> None:
        """Delete the files."""
        for path in (self.rows_path, self.index_path):
            path.unlink(missing_ok=True)
        self._count = 0


def _write_all(file: Any, tensor: Tensor) -> None:
    numbers: Any = tensor.contiguous().view(torch.uint8).numpy()
    rest = memoryview(numbers).cast("B")
    while rest:
        rest = rest[file.write(rest) :]
