"""HTML tables and their TSV as training data."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, IterableDataset

from lit_hass.data.batches import TokenBatch, by_length, collate
from lit_hass.data.html_to_tsv import Difficulty, Split, make_example
from lit_hass.data.html_to_tsv.rng import SplitMix
from lit_hass.data.html_to_tsv.tokenizer import train_tokenizer
from lit_hass.data.prompting import Prompting
from lit_hass.errors import UserError
from lit_hass.models import load_tokenizer

log = logging.getLogger(__name__)

#: Batches are cut from pools of this many, sorted by length, so that little of a batch is padding.
_POOL = 8


@dataclass
class Stage:
    """One stage of the curriculum.

    Args:
        difficulty: such as ``"2x2-plain"``, ``"4x4"`` (see `Difficulty.parse`).
        until: the share of the run (0 to 1) at which the stage ends; the last one says 1.
    """

    difficulty: str
    until: float


class HTMLToTSVDataModule(LightningDataModule):
    """Training and validation batches of the benchmark ``html_to_tsv``.

    Training data never repeats: batch ``k`` of rank ``r`` is drawn from the seed, so a resumed run goes on with the
    very batch at which it was stopped. Validation holds the same tables in every epoch, none of which is trained on.

    Args:
        tokenizer: folder or name of a tokenizer with a chat template; None takes that of the base of a module that
            trains a draft (its ``tokenizer_source``), else trains one on the training split.
        vocab_size: of the tokenizer that is trained when none is named.
        tokens_per_batch: about how many tokens, padding included, one training batch has.
        curriculum: stages, by share of the run (of ``max_steps``).
        validation: how many tables of each difficulty are validated on.
        validation_difficulties: their sizes; each is logged under its own name.
        seed: of the data.
    """

    def __init__(
        self,
        tokenizer: str | None = None,
        vocab_size: int = 1280,
        tokens_per_batch: int = 1024,
        curriculum: list[Stage] | None = None,
        validation: int = 200,
        validation_difficulties: list[str] | None = None,
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        # As plain data: checkpoints are read without running code, and a Stage would be refused.
        self.save_hyperparameters(ignore=["curriculum"])
        stages = [Stage(**s) if isinstance(s, dict) else s for s in curriculum or [Stage("4x4", 1.0)]]
        self.hparams["curriculum"] = [asdict(stage) for stage in stages]
        for name, value in (("tokens_per_batch", tokens_per_batch), ("validation", validation)):
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, found {value}")
        self.tokenizer_name = tokenizer
        self.vocab_size = vocab_size
        self.tokens_per_batch = tokens_per_batch
        self.curriculum = [(_difficulty(s.difficulty), s.until) for s in stages]
        ends = [until for _, until in self.curriculum]
        if ends != sorted(ends) or ends[-1] != 1.0:
            raise UserError(f"data.curriculum: the stages end at {ends}; they must rise to 1.0")
        self.validation = validation
        self.validation_names = validation_difficulties or ["4x4"]
        self.validation_difficulties = [_difficulty(d) for d in self.validation_names]
        self.seed = seed
        self.tokenizer: Any = None
        self.prompting: Prompting | None = None

    def setup(self, stage: str) -> None:
        """Load the tokenizer, or train it (seconds).

        Raises:
            UserError: a tokenizer without a chat template, or with one that cannot write the dialogues.
        """
        if self.tokenizer is not None:
            return
        name = self.tokenizer_name or getattr(getattr(self.trainer, "lightning_module", None), "tokenizer_source", None)
        if name:
            tokenizer = load_tokenizer(name)
            if not tokenizer.chat_template:
                raise UserError(f"{name}: the tokenizer has no chat template, which the dialogues need")
            self.tokenizer = tokenizer
        else:
            log.info("training a tokenizer of %d pieces", self.vocab_size)
            self.tokenizer = train_tokenizer(self.vocab_size)
        self.prompting = Prompting(self.tokenizer)
        encode_dialogue(self.prompting, "question", "answer")
        if day := self.prompting.settings()["date"]:
            log.warning("%s: the chat template writes the date into every dialogue, here %s", name, day)

    def encode(self, split: Split, index: int, difficulty: Difficulty) -> tuple[list[int], int]:
        """Token ids of one example, and how many of them are the question's."""
        assert self.prompting is not None
        example = make_example(split, self.seed, index, difficulty)
        return encode_dialogue(self.prompting, example.question, example.tsv)

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Endless batches, beginning with the one that the trainer is at."""
        return DataLoader(_Stream(self), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[TokenBatch]]:
        """One loader per difficulty; each rank has every ``world_size``-th table, so that each counts once."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if self.validation < world:
            raise UserError(f"data.validation {self.validation} leaves some of the {world} ranks without a table")
        loaders: list[DataLoader[TokenBatch]] = []
        for difficulty in self.validation_difficulties:
            rows = [self.encode("validation", i, difficulty) for i in range(rank, self.validation, world)]
            batches = [collate(group) for group in by_length(rows, 4 * self.tokens_per_batch)]
            loaders.append(DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
        return loaders

    def stage_at(self, step: int, max_steps: int) -> Difficulty:
        """The difficulty of the curriculum at a training step."""
        share = step / max_steps if max_steps > 0 else 1.0
        return next((difficulty for difficulty, until in self.curriculum if share < until), self.curriculum[-1][0])


class _Stream(IterableDataset[TokenBatch]):
    def __init__(self, data: HTMLToTSVDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[TokenBatch]:
        trainer = self.data.trainer
        assert trainer is not None, "training batches are drawn by the step of a Trainer"
        rank, world = trainer.global_rank, trainer.world_size
        step = trainer.global_step * trainer.accumulate_grad_batches
        total = trainer.max_steps * trainer.accumulate_grad_batches
        while True:
            pool, at = divmod(step, _POOL)
            batches = self._pool(pool * world + rank, self.data.stage_at(pool * _POOL, total))
            while at < _POOL:
                yield batches[at]
                at += 1
                step += 1

    def _pool(self, number: int, difficulty: Difficulty) -> list[TokenBatch]:
        """``_POOL`` batches of similar size; the order of lengths is shuffled."""
        rows: list[tuple[list[int], int]] = []
        tokens = 0
        while tokens < _POOL * self.data.tokens_per_batch or len(rows) < _POOL:
            # A pool has fewer examples than tokens, so these numbers are never shared between pools.
            row = self.data.encode("train", number * _POOL * self.data.tokens_per_batch + len(rows), difficulty)
            rows.append(row)
            tokens += len(row[0])
        rows.sort(key=lambda row: len(row[0]))
        groups: list[list[tuple[list[int], int]]] = [[] for _ in range(_POOL)]
        seen = 0
        for row in rows:
            groups[min(_POOL - 1, seen * _POOL // tokens)].append(row)
            seen += len(row[0])
        rng = SplitMix("html_to_tsv batches", self.data.seed, number)
        if not all(groups):  # so few rows that one of them fills more than a batch
            groups = [rows[i::_POOL] for i in range(_POOL)]
        return [collate(group) for group in rng.shuffled(groups)]


def encode_dialogue(prompting: Prompting, question: str, answer: str) -> tuple[list[int], int]:
    """Ids of a question and its answer in the tokenizer's chat template, and how many come before the answer.

    Raises:
        UserError: the template refuses them, or does not put the answer behind the generation prompt.
    """
    user = {"role": "user", "content": question}
    whole = prompting.render([user, {"role": "assistant", "content": answer}], generation_prompt=False)
    prompt_ids = prompting.encode([question], []).tolist()
    ids = prompting.tokenizer(whole, add_special_tokens=False)["input_ids"]
    if ids[: len(prompt_ids)] != prompt_ids:
        raise UserError("the tokenizer's chat template does not put the answer behind the generation prompt")
    return ids, len(prompt_ids)


def _difficulty(text: str) -> Difficulty:
    try:
        return Difficulty.parse(text)
    except ValueError as error:
        raise UserError(f"data: {error}") from error
