"""Questions as batches for a predict run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule
from torch.utils.data import DataLoader

from lit_hass.data.prompting import Prompting, Template
from lit_hass.errors import UserError
from lit_hass.models import context_of_run, load_tokenizer, model_digest
from lit_hass.pretrained import questions_file
from lit_hass.ranks import on_rank_zero
from lit_hass.records import (
    Question,
    QuestionId,
    completed_ids,
    prompts_digest,
    questions_digest,
    read_questions,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuestionBatch:
    """Questions to be answered together.

    Attributes:
        questions: each is to be answered ``num_choices`` times; none where a rank has nothing to do.
        num_choices: answers per question.
        prompting: makes the prompt of each turn.
    """

    questions: tuple[Question, ...]
    num_choices: int
    prompting: Prompting

    def to(self, device: object) -> QuestionBatch:
        """Itself: prompts become tensors in the decoder (Lightning asks every batch to move)."""
        return self


class QuestionDataModule(LightningDataModule):
    """Questions from a file in MT-bench's format, each given to exactly one rank.

    The base of the module that is run (`GenerationModule`) names the tokenizer, unless one is named here.

    Args:
        questions: a question file, or the name of a shipped benchmark (``html_to_tsv``).
        question_begin: position of the first question taken, from 0.
        question_end: position behind the last one taken; None takes all.
        num_choices: how many answers each question gets. They differ only when sampling.
        batch_size: questions decoded together; ``batch_size * num_choices`` rows.
        template: ``"chat"`` or ``"plain"``, see `Prompting`.
        system_prompt: what the system says first; None says nothing.
        plain_template: for ``"plain"``, a text with ``{turn}`` in it.
        separator: for ``"plain"``, what stands between turns.
        tokenizer: folder or name, when it is not the base's.
        date: what a chat template that asks for the date is told, such as 2026-11-28; None is today. A run is resumed,
            and compared with another, by the date it began with.

    Raises:
        UserError: from `check` and `setup`, see there.
    """

    def __init__(
        self,
        questions: str = "html_to_tsv",
        question_begin: int | None = None,
        question_end: int | None = None,
        num_choices: int = 1,
        batch_size: int = 1,
        template: Template = "chat",
        system_prompt: str | None = None,
        plain_template: str = "{turn}",
        separator: str = "\n\n",
        tokenizer: str | None = None,
        date: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        for name, value in (("num_choices", num_choices), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, found {value}")
        self.question_name = questions
        self.question_begin, self.question_end = question_begin, question_end
        self.num_choices, self.batch_size = num_choices, batch_size
        self.template, self.system_prompt = template, system_prompt
        self.plain_template, self.separator = plain_template, separator
        self.tokenizer_name, self.date = tokenizer, date
        self.questions: list[Question] = []
        self.prompting: Prompting | None = None
        self._prompts = ""

    @property
    def question_ids(self) -> list[QuestionId]:
        """Ids of the selected questions, in the file's order."""
        return [question.question_id for question in self.questions]

    def check(self, module: LightningModule) -> None:
        """Read and check everything that can be known before the model is loaded; further calls cost nothing.

        Args:
            module: the one that will answer; its ``base`` names tokenizer and context length.

        Raises:
            UserError: a question file or selection that cannot be used, a base without a tokenizer, a template that
                does not fit, or a first turn that leaves no room for an answer in the base's context.
        """
        if self.questions:
            return
        path = questions_file(self.question_name)
        questions = read_questions(path, self.question_begin, self.question_end)
        base = getattr(module, "base", None)
        tokenizer = self.tokenizer_name or base
        if not isinstance(tokenizer, str):
            raise UserError("the questions need a tokenizer: give --data.tokenizer, or a module with a base")
        prompting = Prompting(
            load_tokenizer(tokenizer), self.template, self.system_prompt, self.plain_template, self.separator, self.date
        )
        limit = context_of_run(module)
        prompts = []
        for question in questions:
            where = f"{path}:{question.line}: question {question.question_id!r}"
            try:
                first = prompting.encode(question.turns[:1], ())
                prompts.append(first.tolist())
                # The answers are not known yet; that the template takes such a conversation is.
                if len(question.turns) > 1:
                    whole = prompting.encode(question.turns, ["answer"] * (len(question.turns) - 1))
                    prompts.append(whole.tolist())
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            length = len(first)
            if length == 0:
                raise UserError(f"{where} has an empty prompt after tokenisation")
            if limit is not None and length >= limit:
                raise UserError(
                    f"{where} has a prompt of {length} tokens, which leaves no room in the model's context of {limit} "
                    "(--model.context, if the model takes more)"
                )
        if prompting.encode(questions[0].turns[:1], ()).tolist() != prompts[0]:
            raise UserError(f"{tokenizer}: the chat template gives another prompt for the same question each time")
        self.questions, self.prompting, self._prompts = questions, prompting, prompts_digest(prompts)

    def prepare_data(self) -> None:
        """Check the input once per machine, before a logger or a model is touched."""
        if self.trainer is not None:
            self.check(self.trainer.lightning_module)

    def setup(self, stage: str) -> None:
        """Read questions and tokenizer (see `check`); all ranks by the date of rank 0."""
        trainer = self.trainer
        if trainer is None:
            return
        self.check(trainer.lightning_module)
        assert self.prompting is not None
        own = self.prompting.day
        day: str = on_rank_zero(trainer, lambda: own)
        if day != own:  # midnight passed while the processes started
            self.date, self.questions = day, []
            self.check(trainer.lightning_module)

    def predict_dataloader(self) -> DataLoader[QuestionBatch]:
        """This rank's share of the questions that the run's folder does not hold answers to yet."""
        trainer = self.trainer
        assert trainer is not None and self.prompting is not None
        done: set[QuestionId] = set()
        folder = trainer.log_dir
        if folder is not None and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            # One rank reads and tells the others: a rank that read by itself could already see answers which a
            # faster rank has just written, and the ranks would share out different lists.
            done = on_rank_zero(trainer, lambda: _done(Path(folder), trainer.lightning_module))
        todo = [question for question in self.questions if question.question_id not in done]
        if len(todo) < len(self.questions) and trainer.is_global_zero:
            log.info("resuming: %d of %d questions are answered", len(self.questions) - len(todo), len(self.questions))
        mine = batches_of(todo[trainer.global_rank :: trainer.world_size], self)
        if not mine:
            # Lightning skips every hook of a loop without batches: the other ranks would wait for this one for ever,
            # and a run that was killed just before its merge would never be merged.
            mine = [QuestionBatch((), self.num_choices, self.prompting)]
        return DataLoader(mine, batch_size=None)  # type: ignore[arg-type]  # a list is a map-style dataset

    def resume_settings(self) -> dict[str, Any]:
        """What of the data decides the answers: the content of the questions, not the file's name."""
        assert self.prompting is not None, "the settings are known after check() or setup()"
        return {
            "questions": questions_digest(self.questions),
            # Said beside the digest, so that a refusal can name more than two hashes.
            "question_count": len(self.questions),
            "first_question": self.question_ids[0],
            "last_question": self.question_ids[-1],
            "num_choices": self.num_choices,
            # None is the base's own, which is in the base's fingerprint.
            "tokenizer": None if self.tokenizer_name is None else model_digest(self.tokenizer_name),
            **self.prompting.settings(),
            # What is asked in the end, whatever template and tokenizer may read beside what is named here.
            "prompts": self._prompts,
        }


def _done(folder: Path, module: LightningModule) -> set[QuestionId]:
    """Questions that need not be asked again; where there are several methods, those that all have answered."""
    methods = getattr(module, "methods", None)
    if methods is None:
        return completed_ids(folder)
    return set.intersection(*(completed_ids(folder / method) for method in methods))


def batches_of(questions: Sequence[Question], data: QuestionDataModule) -> list[QuestionBatch]:
    """Cut questions into batches, in order."""
    assert data.prompting is not None
    return [
        QuestionBatch(tuple(questions[i : i + data.batch_size]), data.num_choices, data.prompting)
        for i in range(0, len(questions), data.batch_size)
    ]
