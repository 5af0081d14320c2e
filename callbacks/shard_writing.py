"""What the writers of a run share: a folder that is theirs alone, and a shard for each rank."""

from __future__ import annotations

import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_hass.errors import RunError, UserError
from lit_hass.ranks import on_rank_zero
from lit_hass.records import FolderLock, ShardWriter, ensure_writable


class ShardWriting(Callback):
    """Takes a folder for a run, lets go of it however the run ends, and waits for all ranks before they are merged.

    Attributes:
        merged: whether the run came to its end.
        held: the folder that the command which runs this has taken already (its lock is the run's); None where there is
            no such command.
    """

    def __init__(self) -> None:
        """See the class."""
        self.merged = False
        self.held: Path | None = None
        self._lock: FolderLock | None = None
        self._shard: ShardWriter | None = None
        self._trial: Path | None = None

    def _take(self, trainer: Trainer, place: Path, claim_it: Callable[[], object]) -> Path:
        """Lock and claim a folder (rank 0); a collective call.

        Args:
            trainer: of the run.
            place: the folder.
            claim_it: writes or checks the folder's key, once it is locked.

        Returns:
            The folder; under ``fast_dev_run`` a temporary one: what a trial of a few batches gives is no run, and
            nothing may take it for one.
        """

        def take() -> Path:
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                return Path(tempfile.mkdtemp(prefix="lit-hass-"))
            ensure_writable(place)
            if self.held is None or self.held.resolve() != place.resolve():
                self._lock = FolderLock(place).acquire()
            try:
                claim_it()
            except (UserError, RunError):
                self._release()
                raise
            return place

        taken: Path = on_rank_zero(trainer, take)
        self._trial = taken if trainer.fast_dev_run else None  # type: ignore[attr-defined]
        return taken

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let SIGTERM end the process.

        Lightning notes the signal and goes on, in predict and test to the end. Everything is on the disk when its batch
        is done, so ending at once loses no more than what is in flight, and a rank that waits for a dead one ends too.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    on_test_start = on_predict_start

    def _await_ranks(self, trainer: Trainer, barrier: str, kept: str) -> None:
        """Close this rank's shard and wait for the others.

        Args:
            trainer: of the run.
            barrier: its name.
            kept: what is kept where, and how to go on, for the error.

        Raises:
            RunError: another rank is gone.
        """
        assert self._shard is not None
        self._shard.close()
        try:
            trainer.strategy.barrier(barrier)
        except RuntimeError as error:  # how torch reports that a peer is gone
            raise RunError(
                f"another process of this run ended before it was done (its error stands above); {kept}"
            ) from error

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the folder."""
        self._release()
        if self._trial is not None and trainer.is_global_zero:
            shutil.rmtree(self._trial, ignore_errors=True)
        self._trial = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of the folder; what is written stays, and can be resumed."""
        self._release()

    def _release(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
