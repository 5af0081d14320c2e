"""The end of a perplexity run: its report on the screen, on disk and in TensorBoard."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_hass.errors import UserError
from lit_hass.reports.environment import environment
from lit_hass.reports.perplexity_files import RESULT, write_perplexity
from lit_hass.reports.perplexity_plot import ladder_figure
from lit_hass.reports.perplexity_result import perplexity_report
from lit_hass.reports.perplexity_view import print_perplexity, to_markdown
from lit_hass.reports.screen import Screen

log = logging.getLogger(__name__)


class PerplexityReport(Callback):
    """Write what a test run of `PerplexityModule` found.

    Into the run's folder: ``perplexity.json``, ``perplexity.md``, ``perplexity_ladder.png`` and
    ``perplexity_documents.jsonl``; they appear when all windows have been scored, and not before. In TensorBoard,
    beside the module's scalars ``ppl/PROTOCOL/UNIT``: the ladder as a picture, the documents' ln PPL as a histogram,
    the page as text.

    Attributes:
        report: after the run, on rank 0: see `lit_hass.reports.perplexity_result.perplexity_report`.
    """

    def __init__(self) -> None:
        """See the class."""
        self.report: dict[str, Any] = {}

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Check that there will be something to report, and a place for it.

        Raises:
            UserError: another module or DataModule is run, or the folder holds a finished run.
        """
        if not hasattr(module, "describe_model") or not hasattr(data, "describe"):
            raise UserError("PerplexityReport reports a PerplexityModule on a PerplexityDataModule")
        folder = _named_folder(trainer)
        if folder is not None and (folder / RESULT).exists():
            raise UserError(f"{folder} holds a finished run ({RESULT}); name another version, or none")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report (rank 0)."""
        data: Any = getattr(trainer, "datamodule", None)
        module: Any = pl_module
        folder = trainer.log_dir  # a collective call
        if not module.outcomes or not trainer.is_global_zero:
            return
        description = data.describe()
        self.report = perplexity_report(description, module.outcomes, module.describe_model(), environment())
        if folder is not None:
            files = write_perplexity(folder, self.report, description, module.outcomes)
            log.info("wrote %s into %s", ", ".join(path.name for path in files), folder)
        self._board(trainer, description, module.outcomes)
        _print(self.report)

    def _board(self, trainer: Trainer, description: dict[str, Any], outcomes: list[dict[str, Any]]) -> None:
        figure = ladder_figure(self.report)
        for board in (logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)):
            if figure is not None:
                board.add_figure("perplexity/ladder", figure, 0)
            for name, planned in description["protocols"].items():
                outcome = outcomes[planned["plan"]]
                sums = np.array(outcome["document_nll"], dtype=np.float64)
                tokens = np.array(outcome["document_tokens"], dtype=np.float64)
                values = sums[tokens > 0] / tokens[tokens > 0]
                if values.size and np.isfinite(values).all():
                    board.add_histogram(f"perplexity/{name}/ln_ppl_of_{planned['document_kind']}", values, 0)
            board.add_text("perplexity", to_markdown(self.report), 0)
            board.flush()


def _named_folder(trainer: Trainer) -> Path | None:
    """The run's folder where it is already known: where the version was named."""
    logger: Any = trainer.logger
    version = getattr(logger, "_version", None)
    return Path(logger.log_dir) if version is not None and getattr(logger, "log_dir", None) else None


def _print(report: dict[str, Any]) -> None:
    console = Screen()
    with console.capture() as text:
        print_perplexity(report, console)
    try:
        print(text.get(), end="", flush=True)
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough; the files say it all.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
