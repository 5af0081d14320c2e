"""Writing predictions exactly once, and the correct ones as training data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.shard_writing import ShardWriting
from lit_hass.errors import UserError
from lit_hass.ranks import on_rank_zero
from lit_hass.records import RunKey, claim, read_key, write_json
from lit_hass.records.predictions import PredictionFolder, kept_of
from lit_hass.reports.rationale_statistics import rationale_statistics, rationale_summary

log = logging.getLogger(__name__)


class CorrectDataWriter(ShardWriting):
    """Write each question's prediction into the run's folder, once, and what is worth training on beside them.

    While the run goes on, rank ``r`` appends to ``predictions.rank{r}.jsonl``, flushed to the disk after each batch. At
    its end rank 0 checks that every question is there and writes, in the order of the question file,
    ``predictions.jsonl`` (all), ``correct.jsonl`` (right and not cut, without shots and hint), ``correct_data.txt``
    (the same in the original scripts' format) and ``metrics.json``. Naming the same folder again resumes it, with any
    number of ranks; a resume whose settings would give other predictions is refused.

    It works with a `RationaleModule` and a `CommonsenseQADataModule`. All processes see the same folder.

    Args:
        folder: where to write; None is the run's folder (``--trainer.logger.init_args.version N`` names it again).

    Attributes:
        path: the folder in use (a temporary one under ``fast_dev_run``).
        statistics: after the run, on rank 0: what ``metrics.json`` holds.
    """

    def __init__(self, folder: str | None = None) -> None:
        """See the class."""
        super().__init__()
        self.folder = folder
        self.path = Path()
        self.statistics: dict[str, Any] = {}

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Refuse a folder that belongs to another run, without changing anything in it.

        Raises:
            UserError: see above; or module or DataModule are of another kind.
        """
        settings = _settings(trainer, module, data)
        place = self.folder or getattr(trainer.logger, "log_dir", None)
        if place and Path(place).exists():
            saved = read_key(place)
            if saved is not None and (differing := saved.differences(RunKey(settings))):
                raise UserError(f"{place} holds predictions of another run: {'; '.join(differing)}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the folder (rank 0) and open this rank's shard."""
        if stage != "predict":
            return
        self.merged = False
        # Reading log_dir is a collective call: every rank does it.
        place = Path(self.folder or trainer.log_dir or trainer.default_root_dir)
        there = PredictionFolder(place)
        self.path = self._take(
            trainer,
            place,
            lambda: claim(place, _settings(trainer, pl_module, _data(trainer)), there.files()),
        )
        folder = PredictionFolder(self.path)
        # One rank reads and tells the others: a rank that read by itself could already see what a faster one has just
        # written, and the ranks would share out different lists.
        _data(trainer).is_done = lambda: on_rank_zero(trainer, lambda: set(folder.completed()))
        self._shard = folder.writer(trainer.global_rank)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch's predictions; they are on the disk when this returns."""
        assert self._shard is not None
        self._shard.write([prediction.to_dict() for prediction in outputs])

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for all ranks, then merge their shards and summarise them (rank 0)."""
        self._await_ranks(
            trainer,
            "predictions written",
            f"what is predicted is kept in {self.path}: run the same command again to resume",
        )
        data = _data(trainer)

        def merge() -> None:
            folder = PredictionFolder(self.path)
            order = [question.id for question in data.questions]
            if trainer.fast_dev_run:  # type: ignore[attr-defined]
                done = folder.completed()
                order = [key for key in order if key in done]
            predictions = folder.merge(order)
            self.statistics = {**rationale_statistics(predictions), "skipped_long": len(data.skipped_long)}
            write_json(folder.metrics, self.statistics)
            if self.folder is None:
                self._show(trainer, len(kept_of(predictions)))

        on_rank_zero(trainer, merge)
        self.merged = True

    def _show(self, trainer: Trainer, kept: int) -> None:
        for line in rationale_summary(self.statistics):
            print(line)
        scalars = {f"rationale/{k}": v for k, v in self.statistics.items() if isinstance(v, int | float)}
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_metrics(scalars, step=0)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("wrote %s, %d of them to train on", self.path, kept)


def _data(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _settings(trainer: Trainer, module: Any, data: Any) -> dict[str, Any]:
    if not hasattr(module, "iteration") or not hasattr(data, "skipped_long"):
        raise UserError(
            "CorrectDataWriter works with a RationaleModule and a CommonsenseQADataModule, not with "
            f"{type(module).__name__} and {type(data).__name__}"
        )
    return {
        "model": module.resume_settings(),
        "data": data.resume_settings(),
        # Decides the dtype where that is "auto", and which generator draws the noise.
        "device": trainer.strategy.root_device.type,
    }
