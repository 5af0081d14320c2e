"""Collapse metrics of the features that a run computes anyway."""

from __future__ import annotations

import logging
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from callbacks.answer_writer import AnswerWriter
from callbacks.feature_buffer import FeatureBuffer
from callbacks.perplexity_report import PerplexityReport
from lit_hass.errors import RunError, UserError
from lit_hass.features import CollapseConfig, CollapseMeasurement, FeatureSequence
from lit_hass.features.class_views import class_means, class_quantities
from lit_hass.features.other_layers import check_run_layer, features_of_layer, tell_layer
from lit_hass.features.run_model import model_of, tokenizer_of
from lit_hass.ranks import on_rank_zero
from lit_hass.records import QuestionId, completed_ids, write_json

log = logging.getLogger(__name__)

_PACKAGES = ("torch", "transformers", "torchmetrics", "lit-hass")


class CollapseCollector(Callback):
    """Take the features out of a run's outcomes, pair each with its next token, and measure their collapse.

    It sets the module's switch ``collect_features`` while a run lasts. Decoders then hand over what they compute
    anyway, with the state of each token (prompt, accepted, rejected, bonus, baseline), so there is no second forward
    (``config.layer`` says when there is); timings of a ``predict`` run are marked as taken while collecting, and
    ``evaluate`` collects in a pass of its own that nobody times. Works with ``predict`` of a `GenerationModule` (with a
    draft or without), of an `EvaluationModule` (one collector per method), and ``test`` of `PerplexityModule` (prompt).

    A question counts when every method of the run answered it; failed questions have no features. With a
    `FeatureBuffer` of the same method the features survive a kill: rows are on the disk before the answer line they
    belong to. For that the collector moves itself in front of the `AnswerWriter` in ``trainer.callbacks``.

    Args:
        config: what to collect and how to measure it.
        method: which of the module's methods; None for a module with one.

    Attributes:
        metrics: after the run, on every rank: see `get_collapse_metrics`.
    """

    def __init__(self, config: CollapseConfig = CollapseConfig(), method: str | None = None) -> None:
        """See the class."""
        self.config, self.method = config, method
        self.metrics: dict[str, Any] | None = None
        self._measurement: CollapseMeasurement | None = None
        self._buffer: FeatureBuffer | None = None
        self._meta: dict[str, Any] = {}
        self._model: Any = None
        self._views: tuple[Any, dict[str, Tensor]] | None = None
        self._warned, self._whole = False, True
        self._partial: Path | None = None

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Refuse what cannot be collected, before anything is loaded.

        Raises:
            UserError: the module gives no features or has other methods, a layer that the base does not have, or
                two collectors of one method.
        """
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(c, CollapseCollector) and c.method == self.method for c in callbacks) > 1:
            raise UserError("trainer.callbacks has two CollapseCollectors of one method")
        if not hasattr(module, "collect_features"):
            raise UserError(f"CollapseCollector works with a module that gives features, not {type(module).__name__}")
        known: tuple[Any, ...] = getattr(module, "methods", (None,))
        if self.method not in known:
            needed = "one CollapseCollector for each of " + ", ".join(known) if known != (None,) else "no method"
            raise UserError(f"CollapseCollector.method is {self.method!r}; {type(module).__name__} takes {needed}")
        check_run_layer(module, self.config.layer)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stand in front of the answer writers."""
        self.metrics, self._views = None, None
        self.check(trainer, pl_module, None)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        # Before their buffers, which let go of the features; a new list, since Lightning is going through the old one.
        first = [c for kind in (CollapseCollector, FeatureBuffer) for c in callbacks if isinstance(c, kind)]
        trainer.callbacks = first + [c for c in callbacks if c not in first]  # type: ignore[attr-defined]

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on with what an earlier process left; collective."""
        writers = [c for c in trainer.callbacks if isinstance(c, AnswerWriter)]  # type: ignore[attr-defined]
        mine = next((writer for writer in writers if writer.method == self.method), None)
        lasting = mine is not None and not trainer.fast_dev_run  # type: ignore[attr-defined]
        answered = on_rank_zero(trainer, lambda: _answered(writers)) if lasting else set()
        folder = mine.folder if lasting and mine is not None else None
        self._resume(trainer, pl_module, folder, answered, "questions are answered")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin, or go on with what an earlier process left; collective."""
        report = next((c for c in trainer.callbacks if isinstance(c, PerplexityReport)), None)  # type: ignore[attr-defined]
        lasting = report is not None and not trainer.fast_dev_run  # type: ignore[attr-defined]
        scored = _scored(trainer, report) if lasting and report is not None else set()
        folder = report.folder if lasting and report is not None else None
        self._resume(trainer, pl_module, folder, scored, "windows are scored")

    def _resume(
        self, trainer: Trainer, module: Any, folder: Path | None, answered: set[QuestionId], are_done: str
    ) -> None:
        """Begin in a run's folder, of which some questions (or windows) are not asked again; None keeps nothing."""
        if folder is not None and answered and _buffer(trainer, self.method) is None:
            raise UserError(
                f"{folder}: {len(answered)} {are_done} already, and only a FeatureBuffer could have "
                "kept their features: add callbacks.FeatureBuffer to both runs, or begin a new one"
            )
        self._begin(trainer, module, None if folder is None else folder / "features", answered)

    def _begin(self, trainer: Trainer, module: Any, folder: Path | None, answered: set[QuestionId]) -> None:
        model = self._model = model_of(module)
        data: Any = getattr(trainer, "datamodule", None)
        draft = getattr(module, "draft", None) if self.method in (None, "hass") else None
        self._measurement = CollapseMeasurement.for_model(
            model, tokenizer_of(module, data), self.config, paired=draft is not None and self.config.layer == -1,
            folder=folder, rank=trainer.global_rank,
        )  # fmt: skip
        self._buffer = _buffer(trainer, self.method)
        if self._buffer is not None:
            self._buffer.open(trainer, self._measurement, folder, answered)
        log_dir, trial, self._partial = trainer.log_dir, bool(trainer.fast_dev_run), None  # type: ignore[attr-defined]
        if log_dir is not None and not trial:
            rank = f".rank{trainer.global_rank}" if trainer.world_size > 1 else ""
            self._partial = Path(log_dir, self.method or "", f"collapse_metrics.partial{rank}.json")
            self._partial.unlink(missing_ok=True)
        module.collect_features = True
        if trainer.is_global_zero:
            tell_layer(self.config.layer, draft is not None)
        name = getattr(module, "model_id", None) or str(getattr(module, "base", type(module).__name__))
        self._meta = {
            "model": module.model_name(self.method) if self.method is not None else name,
            "method": self.method,
            "draft": None if draft is None else str(draft),
            "question_file": getattr(data, "question_name", None),
            "feature_dtype": str(self._measurement.store.storage_dtype(model.dtype)).removeprefix("torch."),
            "world_size": trainer.world_size,
            "versions": {package.replace("-", "_"): version(package) for package in _PACKAGES},
        }

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the batch's features, before its answers are written."""
        found: list[tuple[QuestionId, list[FeatureSequence]]] = []
        for outcome in outputs:
            parts = [outcome] if self.method is None else list(outcome.parts.values())
            mine = outcome if self.method is None else outcome.parts[self.method]
            if any(part.error is not None for part in parts):
                self._count("questions_failed")
                continue
            found.append((mine.question.question_id, self._sequences(mine)))
        self._record(found)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take the batch's features; each window is a sequence of its own."""
        features = outputs.get("features") if isinstance(outputs, dict) else None
        if features is None or not len(features.token_ids):
            return
        windows, outputs["features"] = outputs["feature_windows"], None
        found: list[tuple[QuestionId, list[FeatureSequence]]] = []
        for window in windows.unique_consecutive().tolist():
            name, rows = _window_name(window), windows == window
            parts = (x[rows] for x in (features.features, features.token_ids, features.states))
            found.append((name, [FeatureSequence.of_text((name,), *parts)]))
        self._record(found)

    def _record(self, found: list[tuple[QuestionId, list[FeatureSequence]]]) -> None:
        assert self._measurement is not None
        if any(not sequences for _, sequences in found) and not self._warned:
            log.warning("the module gave no features for an answered question; they are counted")
            self._warned = True
        for sequence in (sequence for _, sequences in found for sequence in sequences):
            self._measurement.check(sequence)
        self._whole = False
        if self._buffer is not None:
            self._buffer.record(found)
        else:
            for _, sequences in found:
                self._measurement.add_question(sequences)
        self._whole = True

    def _count(self, name: str) -> None:
        assert self._measurement is not None
        counts = self._measurement.counts
        counts[name] = counts.get(name, 0) + 1

    def get_collapse_metrics(self, sync: bool = True, brief: bool = False) -> dict[str, Any]:
        """Return all metrics as plain JSON types (None where undefined); after the run those of its end.

        Args:
            sync: over all ranks, a collective call; False is this rank's share so far.
            brief: without what takes long: for a look while the run goes.

        Raises:
            UserError: nothing is being collected.
        """
        if sync and self.metrics is not None:
            return self.metrics
        if self._measurement is None:
            raise UserError("CollapseCollector has no features: no run has begun")
        metrics = self._measurement.get_collapse_metrics(sync, brief)
        metrics["meta"] |= {**self._meta, "questions": metrics["counts"].get("questions", 0)}
        return metrics

    def class_means(self, limit: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return ids ``[K]``, counts ``[K]`` and means ``[K, d]`` of the most frequent eligible classes of all ranks.

        Collective during a run; after it what was found at its end.

        Args:
            limit: at most so many.
        """
        ids, counts, means = self._class_views()[0]
        order = counts.argsort(descending=True, stable=True)[:limit]
        return ids[order], counts[order], means[order]

    def class_quantities(self) -> dict[str, Tensor]:
        """Return by name one number per eligible class: ``count``, ``norm``, ``variance``, ``classifier_cosine``."""
        return self._class_views()[1]

    def _class_views(self) -> tuple[Any, dict[str, Tensor]]:
        if self._views is not None:
            return self._views
        if self._measurement is None:
            raise UserError("CollapseCollector has no features: no run has begun")
        return class_means(self._measurement), class_quantities(self._measurement)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange and compute, on all ranks; `AnswerWriter` has merged the answers before."""
        self.metrics, self._views = self.get_collapse_metrics(), self._class_views()

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange and compute, on all ranks."""
        self.metrics, self._views = self.get_collapse_metrics(), self._class_views()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Switch off, and let go of all memory."""
        self._release(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what this process has measured as ``collapse_metrics.partial.json``, and let go of all memory."""
        try:
            found = self._measurement
            if self.metrics is None and found is not None and found.counts["questions"] and self._partial is not None:
                self._write_partial(self._partial, found)
        finally:
            self._release(pl_module)

    def _write_partial(self, path: Path, measurement: CollapseMeasurement) -> None:
        if not (self._whole and measurement.whole):
            log.warning("the run ended amid an update of the collapse statistics; no partial metrics are written")
            return
        try:
            # The loop's own mode, which an error has left by now: its tensors may not be written to in another.
            with torch.inference_mode():
                metrics = self.get_collapse_metrics(sync=False)
            write_json(path, {**metrics, "meta": {**metrics["meta"], "complete": False}})
        except (UserError, RunError) as error:
            log.warning("no partial collapse metrics: %s", error)  # the run has an error of its own to tell of
            return
        log.warning("wrote the collapse metrics of %d questions into %s", metrics["meta"]["questions"], path)

    def _release(self, module: Any) -> None:
        if hasattr(module, "collect_features"):
            module.collect_features = False
        if self._measurement is not None and self._buffer is None:
            self._measurement.clear()
        self._measurement = self._buffer = self._model = None
        self._whole = True

    def _sequences(self, outcome: Any) -> list[FeatureSequence]:
        """Take the features of all choices and turns out of an outcome; none if one of them has none."""
        found = []
        for choice, turns in enumerate(outcome.choices):
            for turn, each in enumerate(turns):
                features, each.generation.features = each.generation.features, None
                if features is not None:
                    features = features_of_layer(features, self._model, self.config.layer)
                    found.append(FeatureSequence.of((outcome.question.question_id, choice, turn), features))
        return found if len(found) == sum(map(len, outcome.choices)) else []


def _answered(writers: list[AnswerWriter]) -> set[QuestionId]:
    """Questions that are not asked again: those that every method has answered."""
    return set.intersection(*(completed_ids(writer.folder) for writer in writers))


def _scored(trainer: Trainer, report: PerplexityReport) -> set[QuestionId]:
    """Windows that are not scored again, and whose features are taken: those of the first protocol."""
    plan = trainer.datamodule.plan  # type: ignore[attr-defined]
    windows = {found.window for batch in report.earlier for found in batch.sums}
    return {_window_name(w) for w in windows if any(recipe == 0 for recipe, _ in plan.windows[w].members)}


def _window_name(window: int) -> QuestionId:
    return f"window {window}"


def _buffer(trainer: Trainer, method: str | None) -> FeatureBuffer | None:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, FeatureBuffer) and callback.method == method:
            return callback
    return None
