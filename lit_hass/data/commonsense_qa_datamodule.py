"""Multiple-choice questions as prompts for a predict run."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from lit_hass.data.commonsense_qa_prompts import build_prompt, read_shots, shot_stems
from lit_hass.data.commonsense_qa_questions import (
    SHIPPED,
    MultipleChoiceQuestion,
    commonsense_qa_digest,
    commonsense_qa_file,
    read_commonsense_qa,
)
from lit_hass.data.prompt_batches import PromptBatch, PromptRow, left_padded, longest_first, padding_waste
from lit_hass.errors import UserError
from lit_hass.models import context_of_run, load_tokenizer, model_digest
from lit_hass.records import prompts_digest
from lit_hass.records.questions import draw, key_hash

log = logging.getLogger(__name__)

Part = Literal["all", "train", "validation"]
OnLong = Literal["raise", "skip", "drop_shots"]

#: A row belongs to the validation part where the hash of its id, as a share of all hashes, is below the share wanted.
_HASHES = 2**64


class CommonsenseQADataModule(LightningDataModule):
    """Questions in CommonsenseQA's schema with shots before them, each given to exactly one rank.

    Questions that the shots answer are left out. Prompts are sorted by length, longest first, cut into batches and
    padded on the left to the longest of the batch. A prompt that leaves no room for an answer is refused, left out, or
    loses its shots, one after the other from the first on; the question is never cut. The base of the module that is
    run (`RationaleModule`) names the tokenizer, unless one is named here, and its ``max_new_tokens`` is the room.

    Args:
        questions: a file of CommonsenseQA's schema, one object a line; ``commonsense_qa`` names 44 questions of our
            own.
        shots: a file of solved examples, see `read_shots`; ``commonsense_qa`` names four of our own, None has none.
        hint_shots: likewise with the answer named behind each question; used by ``hints``.
        hints: name the right answer behind the question, and use ``hint_shots`` (STaR's rationalisation).
        max_length: limit on prompt and answer together, in tokens; None takes the base's context.
        limit: at most so many questions, drawn by ``seed``; None takes all.
        seed: of that draw.
        part: which of the questions: ``"train"`` and ``"validation"`` share them out by a hash of the id.
        validation_share: share of the validation part.
        exclude_shots: leave out questions whose stem is one of the shots'.
        batch_size: questions decoded together.
        on_long: what to do with a prompt over the budget ``max_length - max_new_tokens``.
        on_bad: what to do with a line that cannot be used: stop, or leave it out and count it.
        tokenizer: folder or name, when it is not the base's.

    Attributes:
        only: ids to which the run is limited (the hint pass asks only what was answered wrongly); None is no limit.
        is_done: names the ids that need not be asked again, or None; a callback that writes answers sets it.

    Raises:
        UserError: from `check` and `setup`, see there.
    """

    def __init__(
        self,
        questions: str = SHIPPED,
        shots: str | None = SHIPPED,
        hint_shots: str | None = SHIPPED,
        hints: bool = False,
        max_length: int | None = None,
        limit: int | None = 500,
        seed: int = 0,
        part: Part = "all",
        validation_share: float = 0.2,
        exclude_shots: bool = True,
        batch_size: int = 8,
        on_long: OnLong = "raise",
        on_bad: Literal["raise", "skip"] = "raise",
        tokenizer: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        for name, value in (("batch_size", batch_size), ("limit", limit), ("max_length", max_length)):
            if value is not None and value < 1:
                raise UserError(f"data.{name} must be at least 1, found {value}")
        if not 0 <= validation_share < 1:
            raise UserError(f"data.validation_share must be at least 0 and below 1, found {validation_share}")
        self.question_name, self.tokenizer_name = questions, tokenizer
        self.shot_name, self._hint_shot_name = hint_shots if hints else shots, hint_shots
        self.hints, self.max_length, self.limit, self.seed = hints, max_length, limit, seed
        self.part, self.validation_share, self.exclude_shots = part, validation_share, exclude_shots
        self.batch_size, self.on_long, self.on_bad = batch_size, on_long, on_bad
        self.only: frozenset[str] | None = None
        self.is_done: Callable[[], set[str]] | None = None
        self.rows: list[PromptRow] = []
        self.skipped_long: list[str] = []
        self._pad_id = 0
        self._shots: tuple[str, ...] = ()

    def ask_with_hints(self) -> None:
        """Name the right answers behind the questions, as ``hints: true`` does; before anything is read."""
        self.hints, self.shot_name = True, self._hint_shot_name

    @property
    def questions(self) -> list[MultipleChoiceQuestion]:
        """The questions that are asked, in the file's order."""
        return [row.question for row in self.rows]

    def check(self, module: LightningModule) -> None:
        """Read and check everything that can be known before the model is loaded; further calls cost nothing.

        Args:
            module: the one that will answer; its ``base`` names tokenizer and context, its ``max_new_tokens`` the room
                for an answer.

        Raises:
            UserError: a file or selection that cannot be used, a base without a tokenizer or without any token to pad
                with, an answer limit that leaves no room for a prompt, or (``on_long: raise``) a long prompt.
        """
        if self.rows:
            return
        questions = self._select(read_commonsense_qa(self.question_name, self.on_bad))
        base = getattr(module, "base", None)
        name = self.tokenizer_name or base
        if not isinstance(name, str):
            raise UserError("the questions need a tokenizer: give --data.tokenizer, or a module with a base")
        tokenizer = load_tokenizer(name)
        self._pad_id = _pad_id(tokenizer, name)
        context = context_of_run(module)
        budget = self._budget(getattr(module, "max_new_tokens", 1), context)
        rows = [self._row(question, tokenizer, budget) for question in questions]
        self.skipped_long = [q.id for q, row in zip(questions, rows, strict=True) if row is None]
        self.rows = [row for row in rows if row is not None]
        path = commonsense_qa_file(self.question_name)
        if not self.rows:
            raise UserError(f"{path}: all {len(questions)} prompts are longer than the budget of {budget} tokens")
        if self.skipped_long:
            shown = ", ".join(map(repr, self.skipped_long[:5]))
            log.warning("left out %d questions with prompts over %d tokens: %s", len(self.skipped_long), budget, shown)
        if dropped := sum(row.shots < len(self._shots) for row in self.rows):
            log.warning("%d of %d prompts lost shots to keep to %d tokens", dropped, len(self.rows), budget)

    def _select(self, questions: list[MultipleChoiceQuestion]) -> list[MultipleChoiceQuestion]:
        path = commonsense_qa_file(self.question_name)
        self._shots = read_shots(self.shot_name, self.hints) if self.shot_name else ()
        if self.exclude_shots:
            known = shot_stems(self._shots)
            kept = [question for question in questions if question.stem not in known]
            if len(kept) < len(questions):
                log.info("left out %d questions that the shots answer", len(questions) - len(kept))
            questions = kept
        if self.part != "all":
            wanted = self.part == "validation"
            share = self.validation_share * _HASHES
            questions = [q for q in questions if (key_hash("part", q.id) < share) == wanted]
        chosen = draw([question.id for question in questions], self.limit, self.seed)
        if len(chosen) < len(questions):
            log.info("asking %d of %d questions (data.limit)", len(chosen), len(questions))
            questions = [questions[i] for i in chosen]
        if self.only is not None:
            questions = [question for question in questions if question.id in self.only]
        if not questions:
            raise UserError(f"{path}: no question is left (shots excluded, part {self.part})")
        return questions

    def _budget(self, gen_length: int, context: int | None) -> int | None:
        if context is not None and self.max_length is not None and self.max_length > context:
            raise UserError(f"data.max_length {self.max_length} is beyond the model's context of {context} tokens")
        limit = self.max_length if self.max_length is not None else context
        if limit is None:
            return None
        if gen_length >= limit:
            what = "data.max_length" if self.max_length is not None else "the model's context of"
            raise UserError(
                f"model.max_new_tokens {gen_length} leaves no room for a prompt in {what} {limit}; "
                "prompt and answer together must fit into it"
            )
        return limit - gen_length

    def _row(self, question: MultipleChoiceQuestion, tokenizer: Any, budget: int | None) -> PromptRow | None:
        shots, hint = self._shots, question.answer if self.hints else None
        while True:
            prompt = build_prompt(question, shots, hint)
            ids = tokenizer(prompt)["input_ids"]
            if budget is None or len(ids) <= budget:
                if not ids:
                    raise UserError(f"question {question.id!r} has an empty prompt after tokenisation")
                plain = build_prompt(question)
                return PromptRow(question, prompt, tuple(ids), plain, self.hints, len(shots))
            if self.on_long != "drop_shots" or not shots:
                break
            shots = shots[1:]
        if self.on_long == "skip":
            return None
        cure = "" if self.on_long == "drop_shots" else " (data.on_long: drop_shots or skip)"
        raise UserError(
            f"{commonsense_qa_file(self.question_name)}:{question.line}: question {question.id!r} has a prompt of "
            f"{len(ids)} tokens{' without shots' if not shots else ''}; the budget is {budget}: max_length less "
            f"max_new_tokens{cure}"
        )

    def prepare_data(self) -> None:
        """Check the input once per machine, before a logger or a model is touched."""
        if self.trainer is not None:
            self.check(self.trainer.lightning_module)

    def setup(self, stage: str) -> None:
        """Read questions and tokenizer (see `check`)."""
        if self.trainer is not None:
            self.check(self.trainer.lightning_module)

    def batches(self, rows: Sequence[PromptRow]) -> list[PromptBatch]:
        """Cut rows into batches, longest first."""
        ordered = longest_first(rows)
        size = self.batch_size
        return [left_padded(ordered[i : i + size], self._pad_id) for i in range(0, len(ordered), size)]

    def predict_dataloader(self) -> DataLoader[PromptBatch]:
        """This rank's share of the questions that are not answered yet."""
        trainer = self.trainer
        assert trainer is not None and self.rows
        done = self.is_done() if self.is_done is not None else set()
        todo = longest_first([row for row in self.rows if row.question.id not in done])
        if len(todo) < len(self.rows) and trainer.is_global_zero:
            log.info("resuming: %d of %d questions are answered", len(self.rows) - len(todo), len(self.rows))
        mine = self.batches(todo[trainer.global_rank :: trainer.world_size])
        if trainer.is_global_zero and mine:
            waste = padding_waste([len(row.ids) for batch in mine for row in batch.rows], self.batch_size)
            log.debug("%d batches, %.1f %% of their prompt cells are padding", len(mine), 100 * waste)
        # Lightning skips every hook of a loop without batches, and the other ranks would wait for this one for ever.
        return DataLoader(mine or [left_padded((), 0)], batch_size=None)  # type: ignore[arg-type]

    def resume_settings(self) -> dict[str, Any]:
        """What of the data decides the answers: the content of questions and shots, not the files' names."""
        assert self.rows, "the settings are known after check() or setup()"
        return {
            "questions": commonsense_qa_digest(self.questions),
            "question_count": len(self.rows),
            "shots": hashlib.sha256("\0".join(self._shots).encode()).hexdigest()[:16] if self._shots else None,
            "hints": self.hints,
            "max_length": self.max_length,
            "prompts": prompts_digest(row.ids for row in self.rows),
            "tokenizer": None if self.tokenizer_name is None else model_digest(self.tokenizer_name),
        }


def _pad_id(tokenizer: Any, name: str) -> int:
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(f"{name}: the tokenizer has neither a padding nor an end-of-sequence token to pad with")
