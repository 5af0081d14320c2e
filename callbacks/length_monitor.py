"""Lengths of prompts and answers, in TensorBoard, while a model answers or is trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks.answer_writer import AnswerWriter
from callbacks.correct_data_writer import CorrectDataWriter
from lit_hass.data.batches import IGNORE, TokenBatch
from lit_hass.errors import UserError
from lit_hass.metrics import TokenLengths
from lit_hass.metrics.functional.token_lengths import CAP, LengthHistogram, show_length
from lit_hass.ranks import on_rank_zero
from lit_hass.records import RunFolder, is_failed, iter_intact, write_json
from lit_hass.records.predictions import Prediction, PredictionFolder
from lit_hass.reports.answer_turns import turns_of_choice

if TYPE_CHECKING:
    from lit_hass.modules.conversation import QuestionOutcome

log = logging.getLogger(__name__)

#: What is counted, apart from each other.
KINDS = ("prompt", "answer", "total")

#: Bars of a histogram, at most.
_BARS = 64

#: Rows of (prompt, answer, whether it was cut).
_Rows = list[tuple[int, int, bool]]


class LengthMonitor(Callback):
    """Count the tokens of prompts, of answers, and of both, in any predict or fit run.

    In predict, answers are what the model generates (``cut`` where its limit ended them); where the module has several
    methods, each is counted by itself. In fit, a row's prompt are its first tokens that are not scored, and its answer
    is the rest. Logged are, for each kind: ``lengths/<kind>/`` p50, p95, p99, p99.9, max, mean, cut_rate, padding_waste
    (of the batches as they really are) and a histogram; the exact numbers go into ``lengths.json`` in the run's folder.
    A predict run is logged when it ends, and a resumed one counts what was answered before; a fit run is logged every
    so many steps as well, and one that is resumed counts from there.

    Args:
        cap: greatest length that is told from others.
        every_n_steps: of a fit run.
        length: also log ``truncation_rate``, the share of texts (prompt and answer) longer than this, and
            ``fixed_waste``, the share of padding if all were padded, or cut, to it.

    Attributes:
        histograms: after the run, on every rank: part of the run (method, ``train``, or nothing) and kind to histogram.
    """

    def __init__(self, cap: int = CAP, every_n_steps: int = 100, length: int | None = None) -> None:
        """See the class."""
        for name, value in (("cap", cap), ("every_n_steps", every_n_steps), ("length", length)):
            if value is not None and value < 1:
                raise UserError(f"LengthMonitor.{name} must be at least 1, found {value}")
        self.cap, self.every_n_steps, self.length = cap, every_n_steps, length
        self.histograms: dict[str, dict[str, LengthHistogram]] = {}
        self._metrics: dict[str, dict[str, TokenLengths]] = {}
        self._logged = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Begin anew, with what an earlier part of this run has answered."""
        self._metrics, self.histograms, self._logged = {}, {}, -1
        if stage == "fit":
            self._part("train")
        elif stage == "predict":
            methods: Iterable[str | None] = getattr(pl_module, "methods", (None,))
            # Asking for the run's folder is a collective call. One rank reads, before any has begun to write.
            place = Path(trainer.log_dir or trainer.default_root_dir)
            trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
            for method in methods:
                metrics = self._part(method or "")
                folder = _written_to(trainer, place, method)
                if folder is not None and not trial:
                    rows = on_rank_zero(trainer, lambda folder=folder: _answered(*folder))  # type: ignore[misc]
                    if trainer.is_global_zero:
                        _count(metrics, rows)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow the module to its device, where ranks can talk to each other."""
        for metrics in self._metrics.values():
            for metric in metrics.values():
                metric.to(pl_module.device)

    on_train_start = on_predict_start

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch's answers."""
        outcomes = list(outputs or ())
        for method, metrics in self._metrics.items():
            own = [outcome.parts[method] for outcome in outcomes] if method else outcomes
            if own and isinstance(own[0], Prediction):
                rows = [(one.prompt_tokens, one.gen_tokens, one.cut) for one in own]
                _count(metrics, rows, max(prompt for prompt, _, _ in rows))
            elif own:
                for rows, decoded_together in _turns(own):
                    _count(metrics, rows, max(row[0] for row in rows) if decoded_together else None)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the whole run, all ranks together."""
        self._log(trainer, None)
        for method, kinds in self.histograms.items():
            answers = kinds["answer"]
            if trainer.is_global_zero and answers.cut.any():
                log.warning(
                    "%s%.1f %% of %d answers hit their limit: their true lengths are not known (lit-hass lengths says "
                    "what to run again)", f"{method}: " if method else "", 100 * answers.cut_rate, answers.n,
                )  # fmt: skip

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch's rows.

        Raises:
            UserError: the DataModule's batches are of a kind that has no lengths.
        """
        if not isinstance(batch, TokenBatch):
            raise UserError(f"LengthMonitor counts TokenBatch rows; this run's batches are {type(batch).__name__}")
        metrics = self._metrics["train"]
        width = batch.input_ids.shape[1]
        total = batch.attention_mask.sum(1)
        scored = batch.labels != IGNORE
        first = torch.where(scored.any(1), scored.int().argmax(1), total)
        metrics["prompt"].update(first)
        metrics["answer"].update(total - first)
        metrics["total"].update(total, padded_to=width)
        step = trainer.global_step
        if step % self.every_n_steps == 0 and step != self._logged:  # several batches may make one step
            self._log(trainer, step)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what was trained on."""
        if trainer.global_step != self._logged:
            self._log(trainer, trainer.global_step)

    def _part(self, name: str) -> dict[str, TokenLengths]:
        return self._metrics.setdefault(name, {kind: TokenLengths(self.cap) for kind in KINDS})

    def _log(self, trainer: Trainer, step: int | None) -> None:
        """Log and write; collective calls, which every rank makes in the same order."""
        self.histograms = {
            part: {kind: metric.histogram() for kind, metric in metrics.items()}
            for part, metrics in self._metrics.items()
        }
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._logged = -1 if step is None else step
        if not trainer.is_global_zero:
            return
        for part, kinds in self.histograms.items():
            prefix = f"{part}/lengths" if part else "lengths"
            for kind, found in kinds.items():
                at = found.n if step is None else step
                scalars = {f"{prefix}/{kind}/{name}": value for name, value in self._figures(kind, found).items()}
                finite = {name: value for name, value in scalars.items() if math.isfinite(value)}
                for logger in trainer.loggers:
                    logger.log_metrics(finite, step=at)
                    if isinstance(logger, TensorBoardLogger) and found.n:
                        logger.experiment.add_histogram_raw(f"{prefix}/{kind}", global_step=at, **bars(found))
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_json(folder / "lengths.json", self._exact())
            log.info("%s; wrote %s", "; ".join(self._sentences()), folder / "lengths.json")

    def _figures(self, kind: str, found: LengthHistogram) -> dict[str, float]:
        figures = found.summary()
        if kind == "total" and self.length is not None:
            figures["truncation_rate"] = found.truncation_rate(self.length)
            figures["fixed_waste"] = found.fixed_waste(self.length)
        return figures

    def _exact(self) -> dict[str, Any]:
        """All numbers as they are; percentiles beyond the cap are null."""
        return {
            part or "all": {
                kind: {
                    **self._figures(kind, found),
                    "cap": found.cap,
                    "ended": {length: int(found.ended[length]) for length in found.ended.nonzero()[0].tolist()},
                    "cut": {length: int(found.cut[length]) for length in found.cut.nonzero()[0].tolist()},
                }
                for kind, found in kinds.items()
            }
            for part, kinds in self.histograms.items()
        }

    def _sentences(self) -> list[str]:
        return [
            f"{part + ' ' if part else ''}{kind}: median {show_length(found.percentile(0.5), found.cap)}, "
            f"99 % within {show_length(found.percentile(0.99), found.cap)}, longest {found.longest}"
            for part, kinds in self.histograms.items()
            for kind, found in kinds.items()
            if found.n
        ]


def bars(found: LengthHistogram) -> dict[str, Any]:
    """A histogram of lengths as TensorBoard takes it, with bars of equal whole width from the shortest to the longest.

    What is beyond the cap stands in one last bar that ends at the longest.
    """
    counts = found.counts
    lengths = counts.nonzero()[0]
    shortest, last = int(lengths[0]), min(found.longest, found.cap)
    width = max(1, math.ceil((last - shortest + 1) / _BARS))
    starts = np.arange(shortest, last + 1, width, dtype=np.int64)
    heights = np.add.reduceat(counts[: last + 1], starts) if len(starts) else np.zeros(0, np.int64)
    # Between whole numbers, so that no length lies on an edge.
    limits = [min(start + width - 1, last) + 0.5 for start in starts.tolist()]
    squares = float((counts[: found.cap + 1] * np.arange(found.cap + 1, dtype=np.float64) ** 2).sum())
    beyond = int(counts[-1])
    if beyond:
        heights, limits = np.append(heights, beyond), [*limits, found.longest + 0.5]
        inside = int((counts[:-1] * np.arange(found.cap + 1)).sum())
        squares += (found.total - inside) ** 2 / beyond  # as if all of them were of their mean length
    return {
        "min": shortest - 0.5,
        "max": found.longest + 0.5,
        "num": found.n,
        "sum": found.total,
        "sum_squares": squares,
        "bucket_limits": limits,
        "bucket_counts": [int(height) for height in heights],
    }


def _count(metrics: dict[str, TokenLengths], rows: _Rows, padded_to: int | None = None) -> None:
    cut = [row[2] for row in rows]
    metrics["prompt"].update([prompt for prompt, _, _ in rows], padded_to=padded_to)
    metrics["answer"].update([answer for _, answer, _ in rows], cut)
    metrics["total"].update([prompt + answer for prompt, answer, _ in rows], cut)


def _turns(outcomes: list[QuestionOutcome]) -> Iterable[tuple[_Rows, bool]]:
    """The rows of each turn of a batch, which are decoded together unless one of them failed."""
    choices = [choice for outcome in outcomes for choice in outcome.choices]
    for number in range(max((len(choice) for choice in choices), default=0)):
        turns = [choice[number] for choice in choices if number < len(choice)]
        rows = [(t.prompt_tokens, len(t.generation.output_ids), t.generation.stop_reason != "stop") for t in turns]
        yield rows, all(turn.batch_rows == len(turns) for turn in turns)


def _written_to(trainer: Trainer, place: Path, method: str | None) -> tuple[type, Path] | None:
    """Which kind of folder the run's answers are written to, and where it is; None where nobody writes them."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, AnswerWriter) and callback.method == method:
            return RunFolder, place if method is None else place / method
        if isinstance(callback, CorrectDataWriter):
            return PredictionFolder, Path(callback.folder or place)
    return None


def _answered(kind: type, path: Path) -> _Rows:
    """What a stopped run has answered in its folder so far."""
    if kind is PredictionFolder:
        return [(one.prompt_tokens, one.gen_tokens, one.cut) for one in PredictionFolder(path).completed().values()]
    folder = RunFolder(path)
    found = {answer["question_id"]: answer for answer in (folder.read_answers() if folder.answers.exists() else ())}
    for shard in folder.shards():
        found |= {answer["question_id"]: answer for answer in iter_intact(shard)}
    return [
        (turn.prompt_tokens or 0, turn.new_tokens, turn.stop_reason != "stop")
        for answer in found.values()
        if not is_failed(answer)
        for choice in answer["choices"]
        for turn in turns_of_choice(choice)
    ]
