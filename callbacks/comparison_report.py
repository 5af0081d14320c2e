"""The end of ``lit-hass evaluate``: both methods' runs compared, on the screen, on disk and in TensorBoard."""

from __future__ import annotations

import logging
import math
import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.answer_writer import AnswerWriter
from lit_hass.errors import RunError, UserError
from lit_hass.records import is_failed, read_answers
from lit_hass.reports import compare_runs, print_comparison, write_comparison
from lit_hass.reports.collapse_files import write_page
from lit_hass.reports.collapse_run import METRICS_FILE, PAGE
from lit_hass.reports.comparison_view import to_markdown
from lit_hass.reports.screen import Screen

log = logging.getLogger(__name__)


class ComparisonReport(Callback):
    """Compare the runs that two `AnswerWriter`s of this run have written.

    Writes ``comparison.json``, ``comparison.md``, ``comparison.png`` and ``report.html`` into the run's folder, and
    logs the speedups and the acceptance length. It stands behind the writers and their `GenerationStatistics`, whose
    files it reads.

    Args:
        baseline: the writer's method that is compared to.
        hass: the method that is compared.

    Attributes:
        comparison: after the run, on rank 0: see `lit_hass.reports.compare_runs`.
        lossless: False where the second method gave other tokens than it had to.
    """

    def __init__(self, baseline: str = "baseline", hass: str = "hass") -> None:
        """See the class."""
        self.baseline, self.hass = baseline, hass
        self.comparison: dict[str, Any] = {}
        self.lossless = True
        self._collapse: Path | None = None

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Check that there will be two runs.

        Raises:
            UserError: an `AnswerWriter` is missing.
        """
        for method in (self.baseline, self.hass):
            _folder(trainer, method)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compare (rank 0)."""
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        parts = [_folder(trainer, method) for method in (self.baseline, self.hass)]
        answers = [read_answers(part / "answers.jsonl") for part in parts]
        answered = [{answer["question_id"] for answer in lines if not is_failed(answer)} for lines in answers]
        if not answered[0] & answered[1]:
            log.warning("nothing to compare: no question was answered by both methods")
            return
        data: Any = getattr(trainer, "datamodule", None)
        categories = {q.question_id: q.category for q in data.questions if q.category} if data is not None else None
        # Failed questions make the exit status say so; the others are compared all the same, and the report names it.
        failed = any(is_failed(answer) for lines in answers for answer in lines)
        self.comparison = compare_runs(parts[0], parts[1], failed, categories=categories)
        self.lossless = self.comparison["lossless"] is not False
        folder = parts[0].parent
        write_comparison(folder, self.comparison)
        self._collapse = folder if any((part / METRICS_FILE).exists() for part in parts) else None
        self._log(trainer)
        _print(self.comparison)
        log.info("wrote comparison.json, comparison.md, comparison.png and report.html into %s", folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the page of all that callbacks have written by now, where features were collected (rank 0)."""
        folder, self._collapse = self._collapse, None
        if folder is not None:
            write_page(folder / PAGE, folder)

    def verdict(self) -> None:
        """Make the run fail where it must.

        Raises:
            RunError: tokens differ that had to be the same.
        """
        if not self.lossless:
            raise RunError("the draft's answers are not the base's own (comparison.json names the questions)")

    def _log(self, trainer: Trainer) -> None:
        headline = self.comparison["headline"] or {}
        acceptance = (self.comparison["acceptance"] or {}).get(self.hass) or {}
        scalars = {
            "comparison/speedup": headline.get("speedup"),
            "comparison/speedup_decode_only": headline.get("decode_only_speedup"),
            "comparison/acceptance_length": acceptance.get("micro"),
        }
        finite = {name: float(v) for name, v in scalars.items() if v is not None and math.isfinite(v)}
        for logger in trainer.loggers:
            logger.log_metrics(finite, step=0)
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("comparison", to_markdown(self.comparison), 0)
                logger.experiment.flush()


def _folder(trainer: Trainer, method: str) -> Path:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AnswerWriter) and callback.method == method:
            return callback.folder
    raise UserError(f"ComparisonReport reads the answers of two methods: add callbacks.AnswerWriter, method {method}")


def _print(comparison: dict[str, Any]) -> None:
    console = Screen()
    with console.capture() as text:
        print_comparison(comparison, console)
    try:
        print(text.get(), end="", flush=True)
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough; the files say it all.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
