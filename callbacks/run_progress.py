"""What the progress bars of a run share: a bar of batches with one text that says how it goes."""

from __future__ import annotations

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


class RunProgressBar(ProgressBar):
    """Batches done, a text of the subclass and the time left, on rank 0; a subclass starts, advances and stops it."""

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

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the screen back."""
        self._stop()

    def _start(self, doing: str, batches: list[int | float], running: str = "") -> None:
        """Draw the bar, unless it is disabled.

        Args:
            doing: what is done, such as ``answering``.
            batches: of each dataloader; the first counts.
            running: the text before the first batch.
        """
        if not self._enabled:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[running]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # Not where a user may pipe the figures to.
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task(doing, total=batches[0] if batches else None, running=running)
        self._progress.start()

    def _advance(self, batch_idx: int, running: str) -> None:
        """Show that a batch is done."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=batch_idx + 1, running=running)

    def _stop(self) -> None:
        """Leave the bar as it is on the screen."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
