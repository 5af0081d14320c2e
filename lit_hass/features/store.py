"""Features on their way from the device to the statistics, within bounds (the original's IncrementalMemoryManager)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.features.config import CollapseConfig
from lit_hass.features.kept_rows import KeptRows
from lit_hass.features.reservoir import Reservoir
from lit_hass.features.row_keys import row_keys
from lit_hass.features.rows import RowBlock, joined
from lit_hass.memory_errors import free_memory, is_out_of_memory

log = logging.getLogger(__name__)

# Features that a sink gets at a time: it makes float64 copies of them.
_FOLD_NUMBERS = 2**20
# The share of the host's budget that may wait: joining and moving hold a second copy for a moment, the sample and its
# snapshot take a quarter each, those of the streams a sixteenth.
_HOST_SHARE = 8
#: Rows of each stream that are kept, and their share of the host's budget.
STREAM_ROWS, STREAM_SHARE = 1024, 16

Sink = Callable[[RowBlock], None]
Grouping = Callable[[RowBlock], Tensor]
Streaming = Callable[[RowBlock], list[Tensor]]
Splitting = Callable[[RowBlock], Iterator[RowBlock]]


def token_groups(block: RowBlock) -> Tensor:
    """Rows are kept by their class; ignored ones (-100) not at all."""
    return block.token_ids


class FeatureStore:
    """Stages features on their device, moves them in batches, folds them into statistics, and keeps a sample.

    Rows go through three tiers. On the device they wait until there are `save_every`, or `device_bytes`; then they move
    to host memory with one copy of each tensor, in the storage dtype. There they wait until there are
    `max_buffer_size`, or an eighth of `host_bytes`; then they are *consolidated*: handed to the sink, which adds them
    to sums, and offered to the sample. The sample is a `Reservoir` of `max_samples_per_class` rows of each group in
    host memory; with `max_samples_per_class` None and a folder all rows go to files there. When those meet the end of
    the disk or of `disk_bytes`, spilling ends, the rows on disk go through a reservoir, and `kept.spill_disabled` says
    why.

    A context manager: leaving it lets go of all memory and temporary files, also after an error. What is still staged
    then is not folded: call `consolidate` before.

    Args:
        num_features: d.
        config: its memory settings.
        sink: takes blocks of rows, each whole or not at all; None only keeps them.
        split: parts a block into those that the sink takes one by one; None hands them over whole.
        groups: gives each row's group in the sample, negative for rows that are not kept; None keeps by class.
        keep_rows: whether to keep a sample by group.
        streams: gives groups by which another sample is kept, of `STREAM_ROWS` rows each; several lists of them where a
            row is of several. None keeps none.
        folder: for spilled rows; None is `config.spill_dir`.
        rank: of this process, for the names of its files.

    Attributes:
        rows_added: rows that came in.
        n_dropped_rows: those that could not be folded for lack of memory.
        n_unsampled_rows: those that were folded, but could not be offered to the sample for lack of memory.
        kept: the sample.
        streams: the sample by stream.
        streams_whole: False where an earlier version began the run, which kept none.
    """

    def __init__(
        self,
        num_features: int,
        config: CollapseConfig = CollapseConfig(),
        sink: Sink | None = None,
        groups: Grouping = token_groups,
        keep_rows: bool = True,
        folder: str | Path | None = None,
        rank: int = 0,
        split: Splitting | None = None,
        streams: Streaming | None = None,
    ) -> None:
        if num_features < 1:
            raise UserError(f"num_features must be positive, got {num_features}")
        self.num_features, self.config, self.sink, self.rank = num_features, config, sink, rank
        self.rows_added = self.n_dropped_rows = self.n_unsampled_rows = self._numbered = 0
        self._groups, self._keeps, self._split, self._streaming = groups, keep_rows, split, streams
        self.streams_whole = True
        self.streams = Reservoir(num_features, STREAM_ROWS, config.host_budget(num_features) // STREAM_SHARE)
        place = folder or config.spill_dir
        self.kept = KeptRows(
            num_features,
            config.max_samples_per_class,
            config.host_budget(num_features) // 4,
            config.disk_bytes,
            Path(place) if place else None,
            f"kept.rank{rank}",
        )
        self._staged: list[RowBlock] = []
        self._buffered: list[RowBlock] = []
        self._buffered_rows = self._buffered_bytes = 0
        self._settled = 0  # rows that are in the sums, or counted as dropped

    # -- in ---------------------------------------------------------------------------------------------------------

    def add_features(
        self,
        features: Tensor,
        token_ids: Tensor,
        states: Tensor | None = None,
        keys: Tensor | None = None,
        paired: Tensor | None = None,
    ) -> None:
        """Add rows, on any device; they are copied.

        Args:
            features: ``[n, d]`` floating.
            token_ids: ``[n]`` int64.
            states: ``[n]`` int64.
            keys: ``[n]`` int64 priorities; None numbers the rows as they come (then the sample depends on their order
                and on how they are split over ranks, see `reproducible`).
            paired: ``[n, e]`` floating.

        Raises:
            ValueError: shapes that do not fit; nothing has been added then.
        """
        n = len(token_ids) if token_ids.ndim == 1 else -1
        if tuple(features.shape) != (n, self.num_features) or not features.is_floating_point():
            raise ValueError(
                f"features must be [n, {self.num_features}] floating and token_ids [n], got {tuple(features.shape)} "
                f"{features.dtype} and {tuple(token_ids.shape)}"
            )
        if any(x is not None and len(x) != n for x in (states, keys, paired)):
            raise ValueError(f"states, keys and paired rows must be as many as the features, {n}")
        if not n:
            return
        if keys is None:
            # Items of their own for each rank, with room for 2^40 rows.
            keys = row_keys(self.rank << 20, self._numbered, n, self.config.hash_salt, features.device)
            self._numbered += n
        keys, token_ids = keys.to(features.device), token_ids.to(features.device)
        # In pieces: however many rows come at once, no more than the budget is copied.
        size = features.element_size() * self.num_features * (2 if paired is not None else 1)
        most = max(1, min(self.config.save_every, self.config.device_bytes // size))
        for piece in RowBlock(features, token_ids, states, keys, paired).pieces(most):
            self._staged.append(piece.own())
            self.rows_added += len(piece)
            waiting = sum(map(len, self._staged))
            if waiting >= self.config.save_every or sum(x.nbytes for x in self._staged) >= self.config.device_bytes:
                self.flush()

    @property
    def reproducible(self) -> bool:
        """Whether the sample depends on the rows alone: all of them came with keys."""
        return not self._numbered

    def flush(self) -> None:
        """Move what is staged to host memory, one copy per tensor, and consolidate if that is full."""
        staged, self._staged = self._staged, []
        dtype = self.storage_dtype(staged[0].features.dtype) if staged else None
        for block in joined(staged):
            self._buffer(block.to("cpu", dtype))
        full = self._buffered_bytes * _HOST_SHARE >= self.config.host_budget(self.num_features)
        if full or self._buffered_rows >= self.config.max_buffer_size:
            self._consolidate()

    def _buffer(self, *blocks: RowBlock) -> None:
        self._buffered += blocks
        self._buffered_rows += sum(map(len, blocks))
        self._buffered_bytes += sum(block.nbytes for block in blocks)

    def storage_dtype(self, own: torch.dtype) -> torch.dtype:
        """The dtype that features of dtype ``own`` are stored in."""
        name = self.config.storage_dtype
        return own if name == "auto" else getattr(torch, name)

    def consolidate(self) -> None:
        """Fold everything that waits into the statistics and the sample."""
        self.flush()
        self._consolidate()

    def _consolidate(self) -> None:
        pending, self._buffered = self._buffered, []
        self._buffered_rows = self._buffered_bytes = 0
        rows = max(1, _FOLD_NUMBERS // self.num_features)
        pieces = [piece for block in joined(pending) for piece in block.pieces(rows)]
        del pending
        done, settled = 0, self._settled
        try:
            for piece in pieces:
                settled = self._settled
                for part in (piece,) if self._split is None else self._split(piece):
                    self._fold(part)
                done += 1
        finally:
            if done < len(pieces):  # an error that nobody can mend: what it hit is counted, the rest stays here
                self.n_dropped_rows += len(pieces[done]) - (self._settled - settled)
                self._buffer(*pieces[done + 1 :])

    def _fold(self, block: RowBlock, again: bool = False) -> None:
        """Fold a block, in halves where memory does not suffice for the whole; each row ends in exactly one place."""
        failed = False
        try:
            if self.sink is not None:
                self.sink(block)
        except (MemoryError, RuntimeError) as error:
            if not self._goes_on(error):
                raise
            failed = True
        # Outside of the handler: the error's traceback would keep the block's copies alive.
        if failed:
            if not again:  # it takes a while, and the parts come at once
                free_memory()
            if len(block) > 1:
                half = len(block) // 2
                for part in (block.select(slice(0, half)), block.select(slice(half, None))):
                    self._fold(part, again=True)
                return
            self.n_dropped_rows += 1
            self._settled += 1
            log.warning("a feature row was dropped: there is no memory to add it to the statistics")
            return
        self._settled += len(block)
        try:
            self._keep(block)
            return
        except (MemoryError, RuntimeError) as error:
            if not self._goes_on(error):
                raise
        self.n_unsampled_rows += len(block)
        free_memory()
        log.warning("there is no memory for a sample of %d feature rows; the sums have them", len(block))

    def _goes_on(self, error: BaseException) -> bool:
        return is_out_of_memory(error) and self.config.on_error == "continue"

    def _keep(self, block: RowBlock) -> None:
        for groups in self._streaming(block) if self._streaming is not None else ():
            self.streams.offer(block.features, groups, block.keys)
        if not self._keeps:
            return
        groups = self._groups(block)
        wanted = groups >= 0
        if not bool(wanted.all()):
            block, groups = block.select(wanted), groups[wanted]
        if len(block):
            self.kept.add(block.features, groups, block.keys)

    # -- out --------------------------------------------------------------------------------------------------------

    def iter_rows(self, rows: int = 4096) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the kept rows ``[n, d]`` and their groups ``[n]`` in blocks of at most so many, for a second pass."""
        groups, _ = self.kept.index()
        for start in range(0, len(groups), rows):
            index = torch.arange(start, min(start + rows, len(groups)))
            yield self.kept.gather(index), groups[index]

    def nbytes(self) -> dict[str, int]:
        """Bytes held on the device, in host memory and on disk."""
        return {
            "device": sum(block.nbytes for block in self._staged),
            "host": self._buffered_bytes + self.kept.host_nbytes + self.streams.nbytes,
            "disk": self.kept.disk_nbytes,
        }

    # -- end and resume -----------------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that is kept, folded before, as tensors and plain values; spilled rows stay in their files."""
        self.consolidate()
        tensors, plain = self.kept.state()
        if self._streaming is not None:
            rows, bounds = self.streams.state()
            tensors |= {f"streams.{name}": value for name, value in rows.items()}
            plain["streams"] = {**bounds, "whole": self.streams_whole}
        counted = {"rows_added": self.rows_added, "numbered": self._numbered}
        lost = {"n_dropped_rows": self.n_dropped_rows, "n_unsampled_rows": self.n_unsampled_rows}
        return tensors, {**plain, **counted, **lost}

    def merge(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Take in the `state` of another store; see `KeptRows.merge`.

        Raises:
            RunError: a file with spilled rows is gone or too short; names it.
        """
        self.consolidate()
        self.rows_added += plain["rows_added"]
        self.n_dropped_rows += plain["n_dropped_rows"]
        self.n_unsampled_rows += plain["n_unsampled_rows"]
        self._numbered += plain["numbered"]
        self.kept.merge({name: value for name, value in tensors.items() if not name.startswith("streams.")}, plain)
        if "streams" in plain:
            self.streams.merge(
                {name: tensors[f"streams.{name}"] for name in ("rows", "groups", "keys")}, plain["streams"]
            )
        self.streams_whole &= plain.get("streams", {}).get("whole", not plain["rows_added"])

    def clear(self, files: bool = True) -> None:
        """Forget all rows and let go of their memory.

        Args:
            files: also delete spilled rows; False where a snapshot refers to them.
        """
        self._staged, self._buffered = [], []
        self._buffered_rows = self._buffered_bytes = 0
        self.kept.clear(files)
        self.streams.clear()
        self.streams_whole = True
        self.rows_added = self.n_dropped_rows = self.n_unsampled_rows = self._numbered = 0
        free_memory()

    def __enter__(self) -> FeatureStore:
        """Return the store."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let go of everything."""
        self.clear()
