"""Conversations from a file as training data: what the assistant says is scored, what the user says is not."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_hass.data.batches import IGNORE, TokenBatch
from lit_hass.data.prompting import Prompting, Template
from lit_hass.data.shuffled_stream import ShuffledStream
from lit_hass.errors import UserError
from lit_hass.models import load_tokenizer
from lit_hass.pretrained import questions_file
from lit_hass.records import Question, read_questions

log = logging.getLogger(__name__)

#: Stands for an answer where it is looked for what a template writes around one.
_MARK = "lit-hass"
_TAG = re.compile(r"<(\w+)>")
#: A conversation's ids, and which of them the assistant says.
_Row = tuple[list[int], list[bool]]


class ConversationDataModule(LightningDataModule):
    """Questions with their references as answers, one conversation a line.

    The file has the questions' format: ``{"question_id": 1, "turns": ["..."], "reference": ["..."]}``, with one
    reference per turn; or it is one of ShareGPT's, the hub's (``messages``) or Alpaca's, see `read_questions`. Which
    tokens are the assistant's is found by rendering the conversation turn by turn. Where a chat template writes earlier
    turns anew (those of thinking models take old thoughts out), only the last turn is trained on, as it is answered
    then; how many conversations this concerns is said. Whether a conversation is trained or validated on is decided by
    a hash of its id, so more lines in a file move none from one side to the other.

    Training draws each epoch in an order shuffled by (seed, epoch) and goes on at the step where a resumed run stopped.

    Args:
        path: a question file with references, or the name of a shipped benchmark.
        tokenizer: folder, hub id or shipped name; None takes that of the base of a module that trains a draft.
        template: ``"chat"`` or ``"plain"``, see `Prompting`.
        validation_share: share of the conversations to validate on.
        max_length: longer conversations are cut to this many tokens.
        batch_size: conversations per batch.
        seed: of the order.
        date: what a chat template that asks for the date is told, such as 2026-11-28; None is today.

    Attributes:
        last_turn_only: how many conversations of several turns are trained or validated on in their last turn alone.

    Raises:
        UserError: the file cannot be used, a turn has no reference, the chat template cannot be used, no conversation
            is left to train or to validate on, or no token of them all is the assistant's.
    """

    def __init__(
        self,
        path: str,
        tokenizer: str | None = None,
        template: Template = "chat",
        validation_share: float = 0.05,
        max_length: int = 2048,
        batch_size: int = 4,
        seed: int = 0,
        date: str | None = None,
    ) -> None:
        """See the class."""
        super().__init__()
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share must lie between 0 and 1, found {validation_share}")
        if max_length < 3 or batch_size < 1:
            raise UserError("data.max_length must be at least 3 and data.batch_size at least 1")
        self.save_hyperparameters()
        self.path, self.tokenizer_name, self.template = path, tokenizer, template
        self.validation_share, self.max_length, self.batch_size, self.seed = (
            validation_share, max_length, batch_size, seed,
        )  # fmt: skip
        self.date = date
        self.tokenizer: Any = None
        self.validation_names = ["conversations"]
        self.last_turn_only = 0
        self._asked: list[Question] = []
        self._train: list[_Row] = []
        self._validation: list[_Row] = []

    def check(self, model: object) -> None:
        """Refuse a file that cannot be read, before anything is loaded."""
        self._questions()

    def setup(self, stage: str) -> None:
        """Read and encode the conversations."""
        if self._train:
            return
        name = self.tokenizer_name or getattr(getattr(self.trainer, "lightning_module", None), "tokenizer_source", None)
        if name is None:
            raise UserError("data.tokenizer is needed: this module names none")
        self.tokenizer = load_tokenizer(name)
        prompting = Prompting(self.tokenizer, self.template, date=self.date)
        questions, silent = self._questions(), 0
        for question in questions:
            ids, spoken, taught = encode_named(prompting, question, self.path)
            self.last_turn_only += taught < len(question.turns)
            row = ids[: self.max_length], spoken[: self.max_length]
            if not any(row[1][2:]):
                silent += 1
                continue
            (self._validation if _share(question) < self.validation_share else self._train).append(row)
        self._asked = []  # tokens are all that is needed from here on
        self._say(len(questions), silent)
        if day := prompting.settings()["date"]:
            log.warning(
                "%s: the chat template writes the date into every conversation, here %s (data.date sets it)", name, day
            )
        log.info("%d conversations to train on, %d to validate on", len(self._train), len(self._validation))

    def _say(self, count: int, silent: int) -> None:
        """Warn of what is trained on in part or not at all; refuse where nothing is left."""
        if self.last_turn_only:
            log.warning(
                "%s: %d of %d conversations are used in their last turn alone: the chat template or the tokenizer "
                "writes their earlier tokens anew when a message is added",
                self.path, self.last_turn_only, count,
            )  # fmt: skip
        if silent == count:
            raise UserError(f"{self.path}: no token to train on (no answer begins within max_length)")
        if silent:
            log.warning(
                "%s: %d of %d conversations left out, no answer begins within %d tokens (data.max_length)",
                self.path, silent, count, self.max_length,
            )  # fmt: skip
        for side, what in ((self._train, "train"), (self._validation, "validate")):
            if not side:
                raise UserError(
                    f"{self.path}: no conversation falls to the share to {what} on; change data.validation_share"
                )

    def _questions(self) -> list[Question]:
        if not self._asked:
            self._asked = read_conversations(self.path)
        return self._asked

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Endless shuffled batches, beginning with the one that the trainer is at."""
        return DataLoader(ShuffledStream(self, self._train, _batch), batch_size=None)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """This rank's share of the validation conversations, by length."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self._validation) < world:
            raise UserError(
                f"{len(self._validation)} conversations to validate on leave some of the {world} ranks none"
            )
        mine = sorted(self._validation[rank::world], key=lambda row: len(row[0]))
        groups = [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]
        return DataLoader([_batch(group) for group in groups], batch_size=None)  # type: ignore[arg-type]


def read_conversations(path: str) -> list[Question]:
    """Questions of which every turn has its answer.

    Args:
        path: a question file with references, or the name of a shipped benchmark.

    Raises:
        UserError: the file cannot be used, or a turn has no reference; names file and question.
    """
    file = questions_file(path)
    questions = read_questions(file, answered=True)
    for question in questions:
        if len(question.reference) != len(question.turns):
            raise UserError(
                f"{file}: question {question.question_id!r} has {len(question.turns)} turns and "
                f"{len(question.reference)} references; each turn needs its answer"
            )
    return questions


def encode_named(prompting: Prompting, question: Question, path: str) -> tuple[list[int], list[bool], int]:
    """`encode_conversation` of a file's question, which a refusal names."""
    try:
        return encode_conversation(prompting, question)
    except UserError as error:
        raise UserError(f"{path}: question {question.question_id!r}: {error}") from error


def encode_conversation(prompting: Prompting, question: Question) -> tuple[list[int], list[bool], int]:
    """Ids of a conversation, which of them the assistant says (its end of turn included), and how many turns these are.

    All turns, where the ids of each beginning are a beginning of the ids of the whole; else the last one alone, as the
    model is asked it and goes on.

    Raises:
        UserError: The chat template refuses the conversation, or does not write an answer down.
    """
    ids: list[int] = []
    spoken: list[bool] = []
    turns, answers = list(question.turns), list(question.reference)
    for turn in range(len(turns)):
        asked = prompting.encode(turns[: turn + 1], answers[:turn]).tolist()
        told = _ids(prompting, _told(prompting, turns[: turn + 1], answers[: turn + 1]), prompting.template == "plain")
        if asked[: len(ids)] != ids or not _goes_on(asked, told, answers[turn]):
            return *_last_turn(prompting, turns, answers), 1
        spoken += [False] * (len(asked) - len(ids)) + [True] * (len(told) - len(asked))
        ids = told
    return ids, spoken, len(turns)


def _last_turn(prompting: Prompting, turns: list[str], answers: list[str]) -> _Row:
    """The last turn: the prompt as it is asked, the answer, and what the template ends an answer with."""
    asked = prompting.encode(turns, answers[:-1]).tolist()
    whole = _told(prompting, turns, answers)
    told = _ids(prompting, whole, prompting.template == "plain")
    if _goes_on(asked, told, answers[-1]):
        return told, [False] * len(asked) + [True] * (len(told) - len(asked))
    before, found, closing = _told(prompting, turns, [*answers[:-1], _MARK]).rpartition(_MARK)
    if not found:
        raise UserError("the chat template does not write an answer down, so nothing of it can be trained on")
    prompt, answer = prompting.text(turns, answers[:-1]), answers[-1]
    # What the prompt opens for the answer, such as a thought.
    opened = prompt.removeprefix(before) if prompt.startswith(before) else ""
    if opened.strip() and answer.lstrip().startswith(opened.strip()):
        # An answer that repeats it: the model only says the rest.
        answer = answer.lstrip().removeprefix(opened.strip()).removeprefix(opened[len(opened.rstrip()) :])
    elif (
        opened and whole == before + answer + closing and not any(f"</{tag}>" in answer for tag in _TAG.findall(opened))
    ):
        # An answer that has none: it stands as it is told later.
        asked = _ids(prompting, before, prompting.template == "plain")
    said = _ids(prompting, answer + closing, False)
    return asked + said, [False] * len(asked) + [True] * len(said)


def _goes_on(asked: list[int], told: list[int], answer: str) -> bool:
    """Whether a conversation with its answer is the prompt and more (a template may also leave the answer out)."""
    return told[: len(asked)] == asked and (len(told) > len(asked) or not answer)


def _told(prompting: Prompting, turns: Sequence[str], answers: Sequence[str]) -> str:
    """The conversation up to and with the last answer."""
    if prompting.template == "plain":
        return prompting.text(turns, answers[:-1]) + answers[-1]
    messages = []
    for turn, answer in zip(turns, answers, strict=True):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    return prompting.render(messages, generation_prompt=False)


def _ids(prompting: Prompting, text: str, special: bool) -> list[int]:
    return prompting.tokenizer(text, add_special_tokens=special)["input_ids"]


def _share(question: Question) -> float:
    """A number from 0 to 1 by the question's id, which has a type: ``1`` and ``"1"`` are two."""
    digest = hashlib.sha256(f"conversation {question.question_id!r}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _batch(rows: Sequence[_Row]) -> TokenBatch:
    longest = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask, labels = torch.zeros_like(input_ids), torch.full_like(input_ids, IGNORE)
    for i, (ids, spoken) in enumerate(rows):
        row = torch.tensor(ids)
        input_ids[i, : len(ids)] = row
        mask[i, : len(ids)] = 1
        labels[i, : len(ids)] = torch.where(torch.tensor(spoken), row, IGNORE)
    return TokenBatch(input_ids, mask, labels)
