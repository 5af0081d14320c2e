"""The collapse report of a run: files, a table on the screen, and its views in TensorBoard."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.collapse_collector import CollapseCollector
from callbacks.comparison_report import ComparisonReport
from lit_hass.errors import UserError
from lit_hass.ranks import on_rank_zero
from lit_hass.records import to_jsonable
from lit_hass.reports.collapse_board import (
    add_histograms,
    layout,
    scalars,
    write_board,
    write_class_means,
    write_side_by_side,
)
from lit_hass.reports.collapse_comparability import comparability
from lit_hass.reports.collapse_files import write_collapse_report, write_page
from lit_hass.reports.collapse_run import PAGE, CollapseSubject, read_runs
from lit_hass.reports.collapse_view import print_collapse
from lit_hass.reports.screen import Screen

log = logging.getLogger(__name__)


class CollapseReport(Callback):
    """Report what the `CollapseCollector` of the same method has found, for ``predict`` and ``test``.

    At the end, on rank 0 and after all ranks' features were added up: ``collapse_metrics.json`` and
    ``collapse_report.json`` in the run's folder (its part of the method, where there is one), the run's page
    ``report.html``, a table on the screen, and in TensorBoard scalars ``collapse/...`` by the number of questions,
    entropy along the text as a curve, histograms over tokens and classes, pictures, the class means in the projector, a
    text, and a tab of custom scalars that shows prompt against answer, state against state, draft against base. As the
    run goes, every ``every_n_questions``, the chief numbers of rank 0's own share are logged as
    ``collapse/running/...``.

    Where a run has several methods (``evaluate``), the last report draws them over each other and prints one table; it
    prints none in front of a `ComparisonReport`, whose table has the chief numbers (``lit-hass report RUN`` has all).

    Args:
        method: whose collector; None for a module with one.
        every_n_questions: how often to look while the run goes; 0 does not. A look computes all metrics of what was
            collected so far: where that takes seconds (wide models on a CPU), looks are left out that would make the
            run more than a tenth longer.
        projector_classes: how many class means to show, the most frequent ones; 0 shows none.
        against: folder of an earlier run, which is drawn beside this one: base against base, model against model.

    Attributes:
        subject: after the run, on rank 0: metrics and analysis.
    """

    def __init__(
        self,
        method: str | None = None,
        every_n_questions: int = 16,
        projector_classes: int = 1000,
        against: str | None = None,
    ) -> None:
        """See the class."""
        for name, value in (("every_n_questions", every_n_questions), ("projector_classes", projector_classes)):
            if value < 0:
                raise UserError(f"CollapseReport.{name} must not be negative, found {value}")
        self.method, self.every_n_questions, self.projector_classes = method, every_n_questions, projector_classes
        self.against = against
        self.subject: CollapseSubject | None = None
        self._prefix = "" if method is None else f"{method}/"
        self._folder: Path | None = None
        self._seen = 0
        self._next_look = 0.0
        self._paged = False

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Check that there will be something to report, and that the other run can be read.

        Raises:
            UserError: the collector is missing, there are two reports of one method, or ``against`` cannot be read.
        """
        _collector(trainer, self.method)
        if sum(report.method == self.method for report in _reports(trainer)) > 1:
            raise UserError("trainer.callbacks has two CollapseReports of one method; they would write the same files")
        self._others()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the run's folder: a collective call."""
        self._seen, self._next_look, self.subject, self._paged = 0, 0.0, None, False
        folder = trainer.log_dir
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        self._folder = None if folder is None or trial else Path(folder, self.method or "")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Look, if it is time."""
        before, self._seen = self._seen, self._seen + len(outputs)
        every = self.every_n_questions
        if not every or before // every == self._seen // every or not trainer.is_global_zero or not trainer.loggers:
            return
        begin = time.monotonic()
        if begin < self._next_look:
            return
        metrics = to_jsonable(_collector(trainer, self.method).get_collapse_metrics(sync=False, brief=True))
        found = scalars(metrics)
        end = time.monotonic()
        self._next_look = end + 10 * (end - begin) if end - begin > _LONG_LOOK else 0.0
        running = {f"{self._prefix}collapse/running/{tag.removeprefix('collapse/')}": x for tag, x in found.items()}
        wanted = {tag: x for tag, x in running.items() if any(part in tag for part in _RUNNING)}
        for logger in trainer.loggers:
            # Not the questions seen here: a resumed run goes on where its curves ended.
            logger.log_metrics(wanted, step=metrics["meta"]["questions"])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report."""
        self._report(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the page (rank 0): only now all other callbacks, as `ResourceMonitor`, have written their files."""
        # Of several methods `ComparisonReport` writes one page.
        if self.subject is not None and self.method is None and not self._paged:
            self._paged = True
            write_page(self.subject.path / PAGE, self.subject.path)
            log.info("wrote %s", self.subject.path / PAGE)

    def _report(self, trainer: Trainer) -> None:
        collector = _collector(trainer, self.method)
        # Collective: all ranks' features are added up.
        metrics = to_jsonable(collector.get_collapse_metrics())
        means = collector.class_means(self.projector_classes) if self.projector_classes else None
        quantities = collector.class_quantities()
        on_rank_zero(trainer, lambda: self._write(trainer, collector, metrics, means, quantities))

    def _write(self, trainer: Trainer, collector: Any, metrics: dict[str, Any], means: Any, quantities: Any) -> None:
        if self._folder is None:  # a trial, or nowhere to write
            return
        analysis = write_collapse_report(self._folder, metrics, collector.config)
        log.info("wrote collapse_metrics.json and collapse_report.json into %s", self._folder)
        label = self.method or self._folder.name
        self.subject = CollapseSubject(label, self._folder, metrics, analysis)
        step = int((metrics.get("meta") or {}).get("questions") or 0)
        found = {self._prefix + tag: value for tag, value in scalars(metrics).items()}
        for logger in trainer.loggers:
            logger.log_metrics(found, step=step)
        reports = _reports(trainer)
        for board in _boards(trainer):
            write_board(board, self.subject, step, self._prefix)
            numbers = {f"collapse/class/{name}": value.cpu().numpy() for name, value in quantities.items()}
            add_histograms(board, numbers, step, self._prefix)
            if means is not None:
                ids, rows, vectors = (part.cpu().numpy() for part in means)
                write_class_means(board, self.subject, ids, rows, vectors, step, self._prefix)
        done = [report.subject for report in reports if report.subject is not None]
        if len(done) < len(reports):
            return
        subjects = [*self._others({subject.label for subject in done}), *done]
        for board in _boards(trainer):
            board.add_custom_scalars(layout([report._prefix for report in reports]))
            if len(subjects) > 1:
                write_side_by_side(board, subjects, step)
            board.flush()
        if any(isinstance(callback, ComparisonReport) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            log.info("lit-hass report %s shows the collapse metrics side by side", self._folder.parent)
        else:
            _print(subjects)

    def _others(self, taken: Collection[str] = ()) -> list[CollapseSubject]:
        if self.against is None:
            return []
        (run,) = read_runs([self.against])
        if not run.subjects:
            raise UserError(f"{self.against}: CollapseReport.against must be a run with collapse metrics")
        return [replace(each, label=str(each.path)) if each.label in taken else each for each in run.subjects]


#: Seconds; shorter looks are never left out.
_LONG_LOOK = 1.0
#: Parts of the tags that are logged as the run goes.
_RUNNING = ("/state/", "/gnc2/mean", "/unc3/cov_abs", "/svd_entropy/overall", "/svd_entropy/normalized")


def _collector(trainer: Trainer, method: str | None) -> CollapseCollector:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, CollapseCollector) and callback.method == method:
            return callback
    which = "" if method is None else f" with method {method}"
    raise UserError(f"CollapseReport reports what a collector found: add callbacks.CollapseCollector{which}")


def _reports(trainer: Trainer) -> list[CollapseReport]:
    return [callback for callback in trainer.callbacks if isinstance(callback, CollapseReport)]  # type: ignore[attr-defined]


def _boards(trainer: Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _print(subjects: list[CollapseSubject]) -> None:
    console = Screen()
    with console.capture() as text:
        print_collapse(subjects, comparability(*subjects) if len(subjects) == 2 else [], console)
    try:
        print(text.get(), end="", flush=True)
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough; the files say it all.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
