"""Conversations from a file as training data: what the assistant says is scored, what the user says is not."""

from __future__ import annotations

import hashlib
import logging
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

#: A conversation's ids, and which of them the assistant says.
_Row = tuple[list[int], list[bool]]


class ConversationDataModule(LightningDataModule):
    """Questions with their references as answers, one conversation a line.

    The file has the questions' format: ``{"question_id": 1, "turns": ["..."], "reference": ["..."]}``, with one
    reference per turn. Which tokens are the assistant's is found by rendering the conversation turn by turn; a chat
    template whose beginnings do not stay as they are is refused. Whether a conversation is trained or validated on is
    decided by a hash of its id, so more lines in a file move none from one side to the other.

    Training draws each epoch in an order shuffled by (seed, epoch) and goes on at the step where a resumed run stopped.

    Args:
        path: a question file with references, or the name of a shipped benchmark.
        tokenizer: folder, hub id or shipped name; None takes that of the base of a module that trains a draft.
        template: ``"chat"`` or ``"plain"``, see `Prompting`.
        validation_share: share of the conversations to validate on.
        max_length: longer conversations are cut to this many tokens.
        batch_size: conversations per batch.
        seed: of the order.

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
        self.tokenizer: Any = None
        self.validation_names = ["conversations"]
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
        prompting = Prompting(self.tokenizer, self.template)
        for question in self._questions():
            ids, spoken = encode_conversation(prompting, question)
            side = self._validation if _share(question) < self.validation_share else self._train
            side.append((ids[: self.max_length], spoken[: self.max_length]))
        if day := prompting.settings()["date"]:
            log.warning("%s: the chat template writes the date into every conversation, here %s", name, day)
        for side, what in ((self._train, "train"), (self._validation, "validate")):
            if not side:
                raise UserError(
                    f"{self.path}: no conversation falls to the share to {what} on; change data.validation_share"
                )
            if not any(any(spoken[2:]) for _, spoken in side):
                raise UserError(f"{self.path}: no token to {what} on (no answer begins within max_length)")
        log.info("%d conversations to train on, %d to validate on", len(self._train), len(self._validation))

    def _questions(self) -> list[Question]:
        path = questions_file(self.path)
        questions = read_questions(path)
        for question in questions:
            if len(question.reference) != len(question.turns):
                raise UserError(
                    f"{path}: question {question.question_id!r} has {len(question.turns)} turns and "
                    f"{len(question.reference)} references; each turn needs its answer"
                )
        return questions

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


def encode_conversation(prompting: Prompting, question: Question) -> _Row:
    """Ids of a whole conversation, and which of them the assistant says (its end of turn included).

    Raises:
        UserError: The ids of a beginning are not a beginning of the ids of the whole.
    """
    ids: list[int] = []
    spoken: list[bool] = []
    turns, answers = list(question.turns), list(question.reference)
    for turn in range(len(turns)):
        asked = prompting.encode(turns[: turn + 1], answers[:turn]).tolist()
        told = _with_answer(prompting, turns[: turn + 1], answers[: turn + 1])
        for known, longer in ((ids, asked), (asked, told)):
            if longer[: len(known)] != known:
                raise UserError(
                    f"question {question.question_id!r}, turn {turn + 1}: the chat template or the tokenizer writes "
                    "earlier tokens anew when a message is added, so it is not known which are the assistant's"
                )
        spoken += [False] * (len(asked) - len(ids)) + [True] * (len(told) - len(asked))
        ids = told
    return ids, spoken


def _with_answer(prompting: Prompting, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Ids of the conversation up to and with the last answer."""
    tokenizer = prompting.tokenizer
    if prompting.template == "plain":
        return tokenizer(prompting.text(turns, answers[:-1]) + answers[-1])["input_ids"]
    messages = []
    for turn, answer in zip(turns, answers, strict=True):
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": answer}]
    text = prompting.render(messages, generation_prompt=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


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
