"""A progress bar that says how fast answers come."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.run_progress import RunProgressBar
from lit_hass.records.predictions import Prediction


class GenerationProgressBar(RunProgressBar):
    """Batches done, tokens per second (end to end, of what this process decoded) and the time left, on rank 0."""

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        self._tokens = 0
        self._seconds = 0.0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        self._tokens, self._seconds = 0, 0.0
        self._start("answering", trainer.num_predict_batches, "warming up")

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
        self._advance(batch_idx, f"{self._tokens / self._seconds:.0f} tokens/s" if self._seconds else "")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen, above what is printed when the run ends."""
        self._stop()
