"""Speed, length and correctness of a predict run, in TensorBoard, on the screen and as ``statistics.json``."""

from __future__ import annotations

import logging
import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from rich.table import Table

from callbacks.answer_writer import AnswerWriter
from lit_hass.errors import UserError
from lit_hass.metrics.functional.acceptance import tau_micro
from lit_hass.records import RunFolder, read_answers, write_json
from lit_hass.reports import environment, generation_statistics
from lit_hass.reports.screen import Screen

if TYPE_CHECKING:
    from lit_hass.modules.conversation import QuestionOutcome, TurnOutcome

log = logging.getLogger(__name__)


class GenerationStatistics(Callback):
    """Log a run's speed while it goes on, and summarise its answers when it is done.

    While it runs (rank 0, its own share): scalars ``predict/tokens_per_second``, ``predict/new_tokens``,
    ``predict/prefill_seconds``, ``predict/decode_seconds`` and, with a draft, ``predict/acceptance_length`` by the
    number of answered questions, and the first answers as text beside their references. At the end: the summary of
    `generation_statistics` over the whole ``answers.jsonl`` (so that a resumed run counts everything once), as
    ``statistics.json``, histograms, scalars and a table on the screen. It needs an `AnswerWriter` in the run. Where the
    module answers by several methods, there is one of these for each; its names in TensorBoard begin with the method's,
    and its table is left to the comparison.

    Args:
        samples: how many questions to show as text.
        method: which of the module's methods to summarise; None for a module with one.
    """

    def __init__(self, samples: int = 8, method: str | None = None) -> None:
        """See the class."""
        if samples < 0:
            raise UserError(f"GenerationStatistics.samples must not be negative, found {samples}")
        self.samples, self.method = samples, method
        self._prefix = "" if method is None else f"{method}/"
        self.statistics: dict[str, Any] = {}
        self._seen = 0

    def check(self, trainer: Trainer, module: LightningModule, data: LightningDataModule | None) -> None:
        """Check that there will be answers to read.

        Raises:
            UserError: no `AnswerWriter` is in the run.
        """
        _writer(trainer, self.method)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew."""
        if stage == "predict":
            _writer(trainer, self.method)
        self._seen = 0

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Log the batch (Lightning forbids ``self.log`` in predict hooks, so the loggers are called)."""
        for output in outputs:
            outcome: QuestionOutcome = output if self.method is None else output.parts[self.method]
            self._seen += 1
            turns = [turn for choice in outcome.choices for turn in choice]
            if turns:
                scalars = {self._prefix + name: value for name, value in _scalars(turns).items()}
                for logger in trainer.loggers:
                    logger.log_metrics(scalars, step=self._seen)
            if self._seen <= self.samples:
                for board in _boards(trainer):
                    board.add_text(
                        f"{self._prefix}answers/{outcome.question.question_id}", _sample(outcome), self._seen
                    )

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Summarise the merged answers (rank 0; `AnswerWriter` merges when the epoch ends, which is before)."""
        folder = RunFolder(_writer(trainer, self.method).folder)
        if not trainer.is_global_zero:
            return
        answers = read_answers(folder.answers)
        data: Any = getattr(trainer, "datamodule", None)
        categories = {q.question_id: q.category for q in data.questions} if data is not None else {}
        self.statistics = {
            **generation_statistics(answers, categories, _nodes_per_step(pl_module, self.method)),
            "devices": trainer.world_size,
            "environment": environment(),
        }
        write_json(folder.statistics, self.statistics)
        self._board_summary(trainer, answers)
        if self.method is None:
            _print_table(self.statistics)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            log.info("wrote %s", folder.statistics)

    def _board_summary(self, trainer: Trainer, answers: list[dict[str, Any]]) -> None:
        summary = self.statistics
        scalars = {
            "summary/tokens_per_second": summary["tokens_per_second"]["end_to_end"],
            "summary/decode_tokens_per_second": summary["tokens_per_second"]["decode_only"],
            "summary/exact_match": summary["exact_match"]["share"],
            "summary/failed": float(summary["questions"]["failed"]),
        }
        if summary["acceptance"] is not None:
            scalars["summary/acceptance_length"] = summary["acceptance"]["micro"]
        for logger in trainer.loggers:
            finite = {self._prefix + name: value for name, value in scalars.items() if math.isfinite(value)}
            logger.log_metrics(finite, step=len(answers))
        choices = [choice for answer in answers for choice in answer["choices"]]
        for board in _boards(trainer):
            for key in ("new_tokens", "prompt_tokens", "wall_time"):
                values = np.array([value for choice in choices for value in choice[key]], dtype=np.float64)
                if values.size:
                    board.add_histogram(f"{self._prefix}answers/{key}", values, len(answers))
            accepted = np.array([a for choice in choices for a in choice["accept_length"]], dtype=np.float64)
            if accepted.size:
                board.add_histogram(f"{self._prefix}answers/accept_length", accepted, len(answers))
            board.flush()


def _writer(trainer: Trainer, method: str | None) -> AnswerWriter:
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AnswerWriter) and callback.method == method:
            return callback
    which = "" if method is None else f" with method {method}"
    raise UserError(f"GenerationStatistics reads answers.jsonl: add callbacks.AnswerWriter{which} to trainer.callbacks")


def _nodes_per_step(module: LightningModule, method: str | None) -> int | None:
    """Drafted nodes of a tree, the root not counted; None without a draft, or with a size that is found by timing."""
    if method == "baseline" or getattr(module, "draft", None) is None:
        return None
    tree: Any = getattr(module, "tree", None)
    return tree.nodes if tree is not None and tree.total_tokens >= 1 else None


def _boards(trainer: Trainer) -> list[Any]:
    """TensorBoard writers (dummies that do nothing on the ranks above 0)."""
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _scalars(turns: list[TurnOutcome]) -> dict[str, float]:
    tokens = sum(len(turn.generation.output_ids) for turn in turns)
    seconds = sum(turn.time_share for turn in turns)
    accepted = [a for turn in turns for a in turn.generation.accept_lengths]
    return {
        **({"predict/acceptance_length": tau_micro(accepted)} if accepted else {}),
        "predict/tokens_per_second": tokens / seconds if seconds else 0.0,
        "predict/new_tokens": tokens / len(turns),
        "predict/prefill_seconds": sum(turn.generation.prefill_seconds for turn in turns) / len(turns),
        "predict/decode_seconds": sum(turn.generation.decode_seconds for turn in turns) / len(turns),
    }


def _sample(outcome: QuestionOutcome) -> str:
    """Markdown: what was asked, answered and expected (first choice)."""
    question = outcome.question
    if outcome.error is not None:
        return f"**failed:** {outcome.error}"
    parts = []
    for i, turn in enumerate(outcome.choices[0]):
        parts += [f"**question**\n\n{_fenced(question.turns[i])}", f"**answer**\n\n{_fenced(turn.raw_text)}"]
        if accepted := question.accepts(i):
            verdict = "matches" if any(map(turn.matches, accepted)) else "differs from"
            parts.append(f"{verdict} the reference\n\n" + "\n\nor\n\n".join(map(_fenced, accepted)))
    return "\n\n".join(parts)


def _fenced(text: str) -> str:
    return "\n".join("    " + line for line in text.split("\n"))


def _print_table(statistics: dict[str, Any]) -> None:
    questions, speed, match = statistics["questions"], statistics["tokens_per_second"], statistics["exact_match"]
    table = Table(show_header=False, box=None)
    answered = f"{questions['answered']} of {questions['total']}"
    table.add_row("questions answered", answered + (f", {questions['failed']} FAILED" if questions["failed"] else ""))
    if match["of"]:
        table.add_row("exact match", f"{match['share']:.1%} ({match['matched']} of {match['of']})")
    length = statistics["new_tokens"]
    table.add_row("new tokens", f"{length['total']} ({length['mean']:.1f} an answer)")
    cut = statistics["stop_reasons"]["length"]
    if cut:
        table.add_row("cut by a limit", f"{cut} of {statistics['turns']} answers")
    if context := statistics["stop_reasons"]["context"]:
        table.add_row("", f"{context} of {statistics['turns']} answers by the model's context, not by max_new_tokens")
    both = f"{speed['end_to_end']:.1f} end to end, {speed['decode_only']:.1f} decoding only"
    each = f", each of {statistics['devices']} processes" if statistics["devices"] > 1 else ""
    table.add_row("tokens per second", both + each)
    spent = statistics["tokens_per_processor_second"]
    if math.isfinite(spent["end_to_end"]):
        both = f"{spent['end_to_end']:.1f} end to end, {spent['decode_only']:.1f} decoding only"
        table.add_row("tokens per processor second", both)
    load = statistics["load"]
    if load is not None:
        processors = statistics["environment"]["cpu_count"]
        table.add_row("load of the machine", f"{load['mean']:.1f} (up to {load['max']:.1f}) on {processors} processors")
    if statistics["collected_features"]:
        table.add_row("", "while features were collected: no measure of the decoder's speed")
    acceptance = statistics["acceptance"]
    if acceptance is not None:
        first = f"{acceptance['by_depth'][0]:.0%} of the first drafted tokens accepted"
        both = f"{acceptance['micro']:.2f} tokens a step ({acceptance['mean_of_questions']:.2f} as a mean of questions)"
        table.add_row("acceptance length", f"{both}, {first}")
    seconds = statistics["seconds"]
    table.add_row("seconds", f"{seconds['prefill']:.2f} reading prompts, {seconds['decode']:.2f} decoding")
    memory = statistics["peak_memory_bytes"]
    if memory:
        table.add_row("peak memory", f"{memory / 2**20:.0f} MiB")
    console = Screen()
    with console.capture() as text:
        console.print(table)
    try:
        print(text.get(), end="", flush=True)
    except BrokenPipeError:
        # Whoever read our output, such as head, has seen enough; the files say it all. Nothing more goes there, or
        # Python would complain when it closes the stream.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
