"""The end of a perplexity run: its report on the screen, on disk and in TensorBoard."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.shard_writing import ShardWriting
from lit_hass.errors import UserError
from lit_hass.ranks import on_rank_zero
from lit_hass.records import RunKey, claim, read_key
from lit_hass.records.scored_windows import ScoredBatch, read_scored, remove_scored, window_shards, window_writer
from lit_hass.reports.environment import environment
from lit_hass.reports.perplexity_files import FILES, RESULT, write_perplexity
from lit_hass.reports.perplexity_plot import ladder_figure
from lit_hass.reports.perplexity_result import perplexity_report
from lit_hass.reports.perplexity_view import print_perplexity, to_markdown
from lit_hass.reports.screen import Screen

log = logging.getLogger(__name__)


class PerplexityReport(ShardWriting):
    """Write what a test run of `PerplexityModule` found.

    Into the run's folder: ``perplexity.json``, ``perplexity.md``, ``perplexity_ladder.png`` and
    ``perplexity_documents.jsonl``; they appear when all windows have been scored, and not before. While the run goes
    on, rank ``r`` appends what it has scored to ``windows.rank{r}.jsonl``, flushed to the disk after each batch: naming
    the same folder again (``--trainer.logger.init_args.version N``) resumes a run that was stopped, with any number of
    ranks, and no window is scored twice. A resume whose settings would give other numbers is refused. In TensorBoard,
    beside the module's scalars ``ppl/PROTOCOL/UNIT``: the ladder as a picture, the documents' ln PPL as a histogram,
    the page as text.

    Attributes:
        report: after the run, on rank 0: see `lit_hass.reports.perplexity_result.perplexity_report`.
        folder: of the run (a temporary one under ``fast_dev_run``).
        earlier: batches that an earlier part of this run has scored; the same on every rank.
    """

    def __init__(self) -> None:
        """See the class."""
        super().__init__()
        self.report: dict[str, Any] = {}
        self.folder = Path()
        self.earlier: list[ScoredBatch] = []
        self._reported = False

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Check that there will be something to report, and a place for it.

        Raises:
            UserError: another module or DataModule is run, or the folder holds a finished run, or another one.
        """
        if not hasattr(module, "describe_model") or not hasattr(data, "describe"):
            raise UserError("PerplexityReport reports a PerplexityModule on a PerplexityDataModule")
        if sum(isinstance(one, PerplexityReport) for one in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise UserError("trainer.callbacks has two PerplexityReports; they would write the same files")
        folder = _named_folder(trainer)
        if folder is None:
            return
        if (folder / RESULT).exists() and not window_shards(folder):
            raise UserError(f"{folder} holds a finished run ({RESULT}); name another version, or none")
        saved = read_key(folder)
        if saved is not None and (differing := saved.differences(RunKey(_settings(trainer, module, data)))):
            raise UserError(f"{folder} holds another run: {'; '.join(differing)}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the folder (rank 0), open this rank's shard, and leave out what is scored already."""
        if stage != "test":
            return
        self.merged = self._reported = False
        data: Any = getattr(trainer, "datamodule", None)
        # Reading log_dir is a collective call: every rank does it.
        place = Path(trainer.log_dir or trainer.default_root_dir)
        files = [place / name for name in FILES]
        self.folder = self._take(
            trainer, place, lambda: claim(place, _settings(trainer, pl_module, data), (*files, *window_shards(place)))
        )
        self.earlier = on_rank_zero(trainer, lambda: read_scored(self.folder))
        data.done = frozenset(window for batch in self.earlier for window in batch.windows)
        self._shard = window_writer(self.folder, trainer.global_rank)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hand what is scored already to the module (on rank 0, so that it counts once)."""
        super().on_test_start(trainer, pl_module)
        module: Any = pl_module
        module.earlier = self.earlier if trainer.is_global_zero else ()

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append what the batch gave; it is on the disk when this returns."""
        assert self._shard is not None
        if outputs["windows"]:
            self._shard.write([outputs["scored"].to_dict()])

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for all ranks, before their sums are added up."""
        self._await_ranks(
            trainer,
            "windows scored",
            f"what is scored is kept in {self.folder}: run the same command with its version to resume",
        )

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report (rank 0)."""
        on_rank_zero(trainer, lambda: self._report(trainer, pl_module))
        self.merged = True

    def _report(self, trainer: Trainer, module: Any) -> None:
        if not module.outcomes:
            return
        data: Any = getattr(trainer, "datamodule", None)
        description = data.describe()
        self.report = perplexity_report(description, module.outcomes, module.describe_model(), environment())
        files = write_perplexity(self.folder, self.report, description, module.outcomes)
        self._reported = True
        log.info("wrote %s into %s", ", ".join(path.name for path in files), self.folder)
        self._board(trainer, description, module.outcomes)
        _print(self.report)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the folder; see `finish`."""
        if self.held is None:
            self.finish()
        data: Any = getattr(trainer, "datamodule", None)
        if stage == "test" and data is not None:
            data.done = frozenset()
        super().teardown(trainer, pl_module, stage)

    def finish(self) -> None:
        """Remove the shards that are in the result (rank 0); a command calls it when all callbacks have written theirs.

        Until then the run can be resumed, to write what a kill has left out.
        """
        if self._reported:
            remove_scored(self.folder, window_shards(self.folder))

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


def _settings(trainer: Trainer, module: Any, data: Any) -> dict[str, Any]:
    return {
        "model": module.resume_settings(),
        "data": data.resume_settings(),
        # Decides the dtype where that is "auto".
        "device": trainer.strategy.root_device.type,
        "precision": str(trainer.precision),
    }


def _print(report: dict[str, Any]) -> None:
    console = Screen()
    with console.capture() as text:
        print_perplexity(report, console)
    try:
        print(text.get(), end="", flush=True)
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough; the files say it all.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
