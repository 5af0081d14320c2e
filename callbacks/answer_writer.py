"""Writing answers exactly once."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from callbacks.shard_writing import ShardWriting
from lit_hass.errors import UserError
from lit_hass.ranks import on_rank_zero
from lit_hass.records import (
    AnswerRecord,
    ChoiceRecord,
    QuestionId,
    RunFolder,
    RunKey,
    ShardWriter,
    TurnRecord,
    claim,
    failed_answer,
    iter_intact,
    merge_shards,
    read_key,
)

if TYPE_CHECKING:
    from lit_hass.modules.conversation import QuestionOutcome, TurnOutcome

log = logging.getLogger(__name__)


class AnswerWriter(ShardWriting):
    """Write each question's answers into the run's folder, once, whatever happens to the run.

    While the run goes on, rank ``r`` appends to ``answers.rank{r}.jsonl``, flushed to the disk after each batch. At its
    end rank 0 checks that every question is there and writes ``answers.jsonl`` in the order of the question file.
    Naming the same folder again (``--trainer.logger.init_args.version N``) resumes it, with any number of ranks: what
    is answered is kept, what failed is tried again. A resume whose settings would give other answers is refused.

    The module has ``resume_settings()`` and returns `QuestionOutcome`s; the DataModule has ``resume_settings()`` and
    ``question_ids``. All processes see the same folder. Where the module answers by several methods
    (`EvaluationModule`, whose ``methods`` name them), there is one writer for each, which writes into a folder of that
    name in the run's.

    Args:
        method: which of the module's methods to write; None for a module with one.

    Attributes:
        folder: where the answers are (a temporary folder under ``fast_dev_run``).
        failed_ids: after the run, on rank 0: the questions without an answer.
        merged: whether the run came to its end.
    """

    def __init__(self, method: str | None = None) -> None:
        """See the class."""
        super().__init__()
        self.method = method
        self.failed_ids: list[QuestionId] = []
        self.folder = Path()

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Refuse a folder that belongs to another run, without changing anything in it.

        Raises:
            UserError: see above; or there are two writers, or module or DataModule cannot be resumed.
        """
        methods = [c.method for c in trainer.callbacks if isinstance(c, AnswerWriter)]  # type: ignore[attr-defined]
        if len(set(methods)) < len(methods):
            raise UserError("trainer.callbacks has two AnswerWriters; they would write the same files")
        known: tuple[Any, ...] = getattr(module, "methods", (None,))
        if self.method not in known:
            needed = "one AnswerWriter for each of " + ", ".join(known) if known != (None,) else "no method"
            raise UserError(f"AnswerWriter.method is {self.method!r}; {type(module).__name__} takes {needed}")
        settings = _settings(trainer, module, data, self.method)
        log_dir = getattr(trainer.logger, "log_dir", None)
        if not log_dir:
            return
        folder = _part(Path(log_dir), self.method)
        if not folder.exists():
            return
        saved = read_key(folder)
        if saved is not None and (differing := saved.differences(RunKey(settings))):
            raise UserError(f"{folder} holds answers of another run: {'; '.join(differing)}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the run's folder (rank 0) and open this rank's shard."""
        if stage != "predict":
            return
        self.merged = False
        # Reading log_dir is a collective call: every rank does it, here and nowhere else.
        folder = _part(Path(trainer.log_dir or trainer.default_root_dir), self.method)
        self.folder = self._take(
            trainer, folder, lambda: claim(folder, _settings(trainer, pl_module, _datamodule(trainer), self.method))
        )
        self._shard = ShardWriter(self.folder, trainer.global_rank)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Append the batch's answers; they are on the disk when this returns."""
        assert self._shard is not None
        if self.method is None:
            model_id = getattr(pl_module, "model_id", type(pl_module).__name__)
        else:
            module: Any = pl_module
            model_id = module.model_name(self.method)
            outputs = [outcome.parts[self.method] for outcome in outputs]
        temperature = getattr(getattr(pl_module, "sampling", None), "temperature", 0.0)
        self._shard.write([answer_line(outcome, f"{model_id}-temperature-{temperature}") for outcome in outputs])

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for all ranks, then merge their shards (rank 0)."""
        self._await_ranks(
            trainer,
            "answers written",
            f"what is answered is kept in {self.folder}: run the same command with its version to resume",
        )
        order = _datamodule(trainer).question_ids
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]

        def merge() -> None:
            asked = {
                answer["question_id"] for shard in RunFolder(self.folder).shards() for answer in iter_intact(shard)
            }
            path = merge_shards(self.folder, [i for i in order if i in asked] if trial else order)
            self.failed_ids = RunFolder(self.folder).failed_ids()
            if not trial:
                log.info("wrote %s", path)

        on_rank_zero(trainer, merge)
        self.merged = True


def answer_line(outcome: QuestionOutcome, model_id: str) -> dict[str, Any]:
    """The line of the answer file for one question."""
    question = outcome.question
    if outcome.error is not None:
        log.error("question %r failed (%s): %s", question.question_id, model_id, outcome.error)
        return failed_answer(question.question_id, outcome.error)
    choices = [
        ChoiceRecord.from_turns(index, [_turn(turn, question.accepts(i)) for i, turn in enumerate(turns)])
        for index, turns in enumerate(outcome.choices)
    ]
    return AnswerRecord(
        question.question_id,
        model_id,
        choices,
        peak_memory=outcome.peak_memory,
        collected_features=outcome.collected_features,
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,  # Windows has none
    ).to_dict()


def _turn(turn: TurnOutcome, accepted: Sequence[str]) -> TurnRecord:
    generation = turn.generation
    return TurnRecord(
        text=turn.text,
        output_ids=generation.output_ids.tolist(),
        wall_time=generation.prefill_seconds + generation.decode_seconds,
        steps=generation.steps,
        accept_lengths=generation.accept_lengths,
        prefill_time=generation.prefill_seconds,
        decode_time=generation.decode_seconds,
        stop_reason=generation.stop_reason,
        seed=turn.seed,
        prompt_tokens=turn.prompt_tokens,
        prompt_digest=turn.prompt_digest,
        batch_rows=turn.batch_rows,
        time_share=turn.time_share,
        exact_match=any(map(turn.matches, accepted)) if accepted else None,
        wall_times=turn.wall_times,
        divergence_gap=turn.divergence_gap,
        text_tokens=turn.text_tokens,
        processor_time=turn.processor_share,
        processor_prefill_time=turn.processor_prefill_share,
        processor_times=turn.processor_times,
    )


def _part(folder: Path, method: str | None) -> Path:
    return folder if method is None else folder / method


def _datamodule(trainer: Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def _settings(trainer: Trainer, module: Any, data: Any, method: str | None) -> dict[str, Any]:
    for part, what in ((module, "module"), (data, "DataModule")):
        if not hasattr(part, "resume_settings"):
            raise UserError(f"AnswerWriter works with a {what} that has resume_settings(), not {type(part).__name__}")
    return {
        "model": module.resume_settings() if method is None else module.resume_settings(method),
        "data": data.resume_settings(),
        # Decides the dtype where that is "auto", and which generator draws the noise.
        "device": trainer.strategy.root_device.type,
    }
