"""A progress bar that says the perplexity so far."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class PerplexityProgressBar(ProgressBar):
    """Batches done, and the token perplexity so far of the protocol at hand (of what rank 0 has scored)."""

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def disable(self) -> None:
        """Show nothing (Lightning calls this on the ranks above 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        if not self._enabled:
            return
        self._progress = Progress(
            TextColumn("scoring"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[running]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # Not where a user may pipe the figures to.
            console=Console(stderr=True),
        )
        total = trainer.num_test_batches[0] if trainer.num_test_batches else None
        self._task = self._progress.add_task("scoring", total=total, running="")
        self._progress.start()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        if self._progress is not None and self._task is not None:
            running = outputs["running"]
            shown = "" if running is None else f"{running[0]}: token PPL {running[1]:.2f}"
            self._progress.update(self._task, completed=batch_idx + 1, running=shown)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen, above what is printed when the run ends."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the screen back."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
