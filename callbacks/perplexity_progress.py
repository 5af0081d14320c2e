"""A progress bar that says the perplexity so far."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from callbacks.run_progress import RunProgressBar


class PerplexityProgressBar(RunProgressBar):
    """Batches done, and the token perplexity so far of the protocol at hand (of what rank 0 has scored)."""

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the bar."""
        self._start("scoring", trainer.num_test_batches)

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
        running = outputs["running"]
        self._advance(batch_idx, "" if running is None else f"{running[0]}: token PPL {running[1]:.2f}")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen, above what is printed when the run ends."""
        self._stop()
