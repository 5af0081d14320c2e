"""A progress bar that says how fast answers come."""

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

from lit_hass.records.predictions import Prediction


class GenerationProgressBar(ProgressBar):
    """Batches done, tokens per second (end to end, of what this process decoded) and the time left, on rank 0."""

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        self._enabled = True
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._tokens = 0
        self._seconds = 0.0

    def disable(self) -> None:
        """Show nothing (Lightning calls this on the ranks above 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show the bar."""
        self._enabled = True

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        self._tokens, self._seconds = 0, 0.0
        if not self._enabled:
            return
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            # Not where a user may pipe the figures to.
            console=Console(stderr=True),
        )
        total = trainer.num_predict_batches[0] if trainer.num_predict_batches else None
        self._task = self._progress.add_task("answering", total=total, speed="warming up")
        self._progress.start()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Advance by a batch."""
        for outcome in outputs:
            if isinstance(outcome, Prediction):
                self._tokens, self._seconds = self._tokens + outcome.gen_tokens, self._seconds + outcome.seconds
                continue
            for part in getattr(outcome, "parts", {"": outcome}).values():
                for turns in part.choices:
                    self._tokens += sum(len(turn.generation.output_ids) for turn in turns)
                    self._seconds += sum(turn.time_share for turn in turns)
        if self._progress is not None and self._task is not None:
            speed = f"{self._tokens / self._seconds:.0f} tokens/s" if self._seconds else ""
            self._progress.update(self._task, completed=batch_idx + 1, speed=speed)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen, above what is printed when the run ends."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the screen back."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
