"""The bounded, durable place of a run's features."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer

from lit_hass.errors import UserError
from lit_hass.features.durable import DurableFeatures
from lit_hass.features.measurement import CollapseMeasurement
from lit_hass.features.sequences import FeatureSequence
from lit_hass.features.store import FeatureStore
from lit_hass.ranks import on_rank_zero
from lit_hass.records import QuestionId


class FeatureBuffer(Callback):
    """Own the `FeatureStore` of a `CollapseCollector`, keep it within its budgets, and make it survive a kill.

    In a ``predict`` run with an `AnswerWriter` (a ``test`` run with a `PerplexityReport`, whose windows are its
    questions) each question's features are on the disk, in ``features/`` of the run's folder, before its answer is; a
    resume goes on from there and counts every row once. Journals and snapshots there stay bounded by the size of the
    statistics, however long the run is. Where all rows are kept (``max_samples_per_class: null``) they are spilled into
    that folder too, up to ``disk_bytes``. What the folder holds at the end is needed to resume the run (for questions
    that failed); delete it with the run.

    Budgets are those of the collector's `CollapseConfig`. In trial runs nothing is written.

    Args:
        method: the collector's.

    Attributes:
        store: the rows that wait and the sample that is kept; None outside of a run.
    """

    def __init__(self, method: str | None = None) -> None:
        """See the class."""
        self.method = method
        self.store: FeatureStore | None = None
        self._durable: DurableFeatures | None = None
        self._measurement: CollapseMeasurement | None = None

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Refuse a second buffer of one method, and one without a collector.

        Raises:
            UserError: see above.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(c, FeatureBuffer) and c.method == self.method for c in callbacks) > 1:
            raise UserError("trainer.callbacks has two FeatureBuffers of one method; they would write the same files")
        from callbacks.collapse_collector import CollapseCollector  # which knows this module

        if not any(isinstance(c, CollapseCollector) and c.method == self.method for c in callbacks):
            which = "" if self.method is None else f" with method {self.method}"
            raise UserError(f"FeatureBuffer keeps what a collector takes: add callbacks.CollapseCollector{which}")

    def open(
        self, trainer: Trainer, measurement: CollapseMeasurement, folder: Path | None, answered: Collection[QuestionId]
    ) -> None:
        """Take charge of a measurement, with what earlier processes left of it; a collective call.

        Args:
            trainer: of the run.
            measurement: of this rank, empty.
            folder: of the run's features; None keeps nothing on the disk.
            answered: on rank 0: questions that are not asked again.

        Raises:
            RunError: features of answered questions are not there; names the file.
            UserError: they were collected with other settings, or the folder cannot be written to.
        """
        self._measurement, self.store = measurement, measurement.store
        if folder is None:
            return
        # From here on the folder is not ours to empty, whatever happens: it may hold rows that answers rest on.
        self._durable = durable = DurableFeatures(folder, trainer.global_rank, measurement)
        on_rank_zero(trainer, lambda: durable.take_over(answered, trainer.world_size))
        durable.begin()

    def record(self, questions: Sequence[tuple[QuestionId, Sequence[FeatureSequence]]]) -> None:
        """Take in the features of answered questions; durable, where the run is, when this returns."""
        assert self._measurement is not None
        if self._durable is not None:
            self._durable.record(questions)
            return
        for _, sequences in questions:
            self._measurement.add_question(sequences)

    def on_predict_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Write a snapshot if it is time: all answers of earlier batches are on the disk now."""
        if self._durable is not None:
            self._durable.compact()

    on_test_batch_start = on_predict_batch_start

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave one snapshot of everything."""
        if self._durable is not None:
            self._durable.finish()

    on_test_epoch_end = on_predict_epoch_end

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of all memory."""
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let go of all memory; what is on the disk stays, and can be resumed."""
        self._release()

    def _release(self) -> None:
        durable, self._durable = self._durable, None
        measurement, self._measurement, self.store = self._measurement, None, None
        if durable is not None:
            durable.close()
        if measurement is not None:
            measurement.clear(files=durable is None)
