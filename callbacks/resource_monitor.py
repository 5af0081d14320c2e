"""Memory, utilisation and throughput of a run, in TensorBoard and as ``resources.json``."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_hass.errors import RunError, UserError
from lit_hass.metrics.resources import ResourceSampler
from lit_hass.ranks import on_rank_zero
from lit_hass.records import write_json
from lit_hass.reports.collapse_run import RESOURCES_FILE

log = logging.getLogger(__name__)

_MEBIBYTE = 2**20


class ResourceMonitor(Callback):
    """Watch what a run takes of the machine; for ``fit``, ``validate``, ``test`` and ``predict``.

    After a batch (not more often than ``every_seconds``) rank 0 logs by the number of batches: ``resources/host_mib``
    (resident), ``host_peak_mib``, ``cpus`` (processor seconds per wall second), ``batches_per_second``, where they are
    known ``tokens_per_second`` and ``questions_per_second``, and on a GPU ``device_mib``, ``device_peak_mib``,
    ``device_reserved_mib`` and ``device_utilization``. At the end ``resources.json`` in the run's folder has peaks and
    means of every rank; after an error or Ctrl-C those of rank 0, with ``"finished": false``.

    Throughput is what is recorded over the wall time up to the last batch, with everything that runs beside decoding:
    it says when a run will be done, not how fast a model decodes (`GenerationStatistics` does).

    Args:
        every_seconds: at least this long from one look to the next; 0 looks after each batch.

    Attributes:
        resources: after the run, on rank 0: what is in ``resources.json``.
    """

    def __init__(self, every_seconds: float = 1.0) -> None:
        """See the class."""
        if not 0 <= every_seconds < float("inf"):
            raise UserError(f"ResourceMonitor.every_seconds must be finite and not negative, found {every_seconds}")
        self.every_seconds = every_seconds
        self.resources: dict[str, Any] = {}
        self._sampler: ResourceSampler | None = None
        self._folder: Path | None = None
        self._stage = ""
        self._last = 0.0
        self._batches = self._questions = 0
        self._batch_seconds = 0.0
        self._tokens: int | torch.Tensor = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder: a collective call, which must not be left to the moment of an error."""
        folder = trainer.log_dir
        self._folder = None if folder is None or trainer.fast_dev_run else Path(folder)  # type: ignore[attr-defined]

    def _begin(self, trainer: Trainer, stage: str) -> None:
        self._stage, self._last, self._batch_seconds = stage, 0.0, 0.0
        self._batches = self._questions = self._tokens = 0
        self._sampler = ResourceSampler(trainer.strategy.root_device)

    def _after_batch(self, trainer: Trainer, outputs: Any, batch: Any) -> None:
        if self._sampler is None:
            return
        self._batches += 1
        self._batch_seconds = self._sampler.seconds
        self._count(outputs, batch)
        now = time.monotonic()
        if now - self._last < self.every_seconds:
            return
        self._last = now
        found = self._sampler.sample()
        scalars = {f"resources/{name.replace('_bytes', '_mib')}": _scaled(name, value) for name, value in found.items()}
        scalars |= {f"resources/{name}": value for name, value in self._throughput().items() if value is not None}
        for logger in trainer.loggers:
            logger.log_metrics(scalars, step=self._batches)

    def _count(self, outputs: Any, batch: Any) -> None:
        if isinstance(outputs, list):  # outcomes of questions
            for outcome in outputs:
                self._questions += 1
                for part in getattr(outcome, "parts", {"": outcome}).values():
                    turns = [turn for choice in part.choices for turn in choice]
                    self._tokens += sum(len(turn.generation.output_ids) for turn in turns)
        elif isinstance(mask := getattr(batch, "attention_mask", None), torch.Tensor):
            # Not int(): on a GPU that would wait for it after each batch.
            self._tokens = self._tokens + mask.sum()

    def _throughput(self) -> dict[str, float | None]:
        # Up to the last batch: what is written after it (reports, say) belongs to no batch.
        seconds = max(self._batch_seconds, 1e-9)
        counts = {"batches": self._batches, "tokens": int(self._tokens), "questions": self._questions}
        # Nothing counted is nothing known: not every run has questions, or says how many tokens it read.
        return {f"{name}_per_second": count / seconds if count else None for name, count in counts.items()}

    def _own(self, trainer: Trainer) -> dict[str, Any]:
        assert self._sampler is not None
        counts = {"batches": self._batches, "tokens": int(self._tokens), "questions": self._questions}
        found = {"rank": trainer.global_rank, **self._sampler.summary(), **counts}
        return {**found, "throughput": self._throughput()}

    def _end(self, trainer: Trainer) -> None:
        if self._sampler is None:
            return
        own = self._own(trainer)
        self._sampler = None
        ranks = [own]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            ranks = [{}] * trainer.world_size
            torch.distributed.all_gather_object(ranks, own)
        on_rank_zero(trainer, lambda: self._write(ranks, True))

    def _write(self, ranks: list[dict[str, Any]], finished: bool) -> None:
        self.resources = {"schema_version": 1, "stage": self._stage, "finished": finished, "ranks": ranks}
        if self._folder is not None:
            write_json(self._folder / RESOURCES_FILE, self.resources)
            log.info("wrote %s", self._folder / RESOURCES_FILE)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what rank 0 has seen; the others may be gone."""
        try:
            if self._sampler is not None and trainer.is_global_zero:
                self._write([self._own(trainer)], False)
        except (UserError, RunError) as error:
            log.warning("no resources are recorded: %s", error)  # the run has an error of its own to tell of
        finally:
            self._sampler = None

    # Lightning names a hook for each stage; they do the same here.

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin(trainer, "fit")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, unless the validation is part of a training."""
        if self._sampler is None:
            self._begin(trainer, "validate")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin(trainer, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin."""
        self._begin(trainer, "predict")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look."""
        self._after_batch(trainer, None, batch)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look, unless the validation is part of a training, whose batches are counted."""
        if self._stage == "validate":
            self._after_batch(trainer, None, batch)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look."""
        self._after_batch(trainer, None, batch)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look."""
        self._after_batch(trainer, outputs, batch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._end(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless the validation is part of a training."""
        if self._stage == "validate":
            self._end(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._end(trainer)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write."""
        self._end(trainer)


def _scaled(name: str, value: float) -> float:
    return value / _MEBIBYTE if name.endswith("_bytes") else value
