"""Prompts with completions as training data: the loss is on the completions."""

from __future__ import annotations

import logging
from typing import Any

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_hass.data.batches import TokenBatch, by_length, collate
from lit_hass.data.shuffled_stream import ShuffledStream
from lit_hass.errors import UserError
from lit_hass.models import load_tokenizer
from lit_hass.records import read_objects

log = logging.getLogger(__name__)

#: Token ids, and how many of them are the prompt's.
Row = tuple[list[int], int]


class CompletionDataModule(LightningDataModule):
    """Training and validation batches of prompts with completions, such as the ``correct.jsonl`` of a predict run.

    Each line is an object with ``prompt`` and ``completion``; other keys are passed over. Prompt and completion are
    tokenised apart and joined, so that the boundary is exact, and an end-of-sequence token follows; only completion and
    end are scored. Nothing is cut: what is longer than ``max_length`` is left out and counted. Batches of an epoch are
    shuffled by (seed, epoch) and go on at the step where a resumed run stopped.

    Args:
        train_file: one object a line.
        tokenizer: folder, hub id or shipped name.
        validation_file: likewise; None has no validation.
        max_length: longest row in tokens, prompt and completion together.
        batch_size: rows per batch.
        seed: of the order.

    Attributes:
        skipped_long: how many training rows were left out.

    Raises:
        UserError: a file cannot be used (names file and line), no row is short enough, or the tokenizer has no
            end-of-sequence token.
    """

    def __init__(
        self,
        train_file: str,
        tokenizer: str,
        validation_file: str | None = None,
        max_length: int = 1024,
        batch_size: int = 16,
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        for name, value in (("max_length", max_length), ("batch_size", batch_size)):
            if value < 1:
                raise UserError(f"data.{name} must be at least 1, found {value}")
        self.save_hyperparameters()
        self.train_file, self.validation_file = train_file, validation_file
        self.tokenizer_name, self.max_length = tokenizer, max_length
        self.batch_size, self.seed = batch_size, seed
        self.tokenizer: Any = None
        self.validation_names = ["completions"]
        self.skipped_long = 0
        self._train: list[Row] = []
        self._validation: list[Row] = []

    def check(self, module: Any) -> None:
        """Read the files and tokenise them; further calls cost nothing.

        Raises:
            UserError: see the class.
        """
        if self._train:
            return
        tokenizer: Any = load_tokenizer(self.tokenizer_name)
        if tokenizer.eos_token_id is None:
            raise UserError(f"{self.tokenizer_name}: the tokenizer has no token that ends a completion")
        self.tokenizer = tokenizer
        self._train, self.skipped_long = self._read(self.train_file)
        if self.validation_file is not None:
            self._validation, _ = self._read(self.validation_file)
        log.info("%d completions to train on, %d to validate on", len(self._train), len(self._validation))

    def setup(self, stage: str) -> None:
        """Read the files (see `check`)."""
        self.check(None)

    def _read(self, path: str) -> tuple[list[Row], int]:
        rows, skipped, count = [], 0, 0
        for number, obj in read_objects(path, "completion file"):
            prompt, completion = obj.get("prompt"), obj.get("completion")
            if not (isinstance(prompt, str) and isinstance(completion, str) and prompt and completion):
                raise UserError(f"{path}:{number}: prompt and completion must be texts that are not empty")
            row = self._encode(prompt, completion)
            count += 1
            if len(row[0]) > self.max_length:
                skipped += 1
            else:
                rows.append(row)
        if not count:
            raise UserError(f"{path}: holds no completions")
        if not rows:
            raise UserError(f"{path}: all {count} rows are longer than data.max_length {self.max_length}")
        if skipped:
            log.warning("%s: left out %d of %d rows longer than %d tokens", path, skipped, count, self.max_length)
        return rows, skipped

    def _encode(self, prompt: str, completion: str) -> Row:
        # As in predict, the prompt has the special tokens that the tokenizer puts before a text.
        before = list(self.tokenizer(prompt)["input_ids"])
        after = self.tokenizer(completion, add_special_tokens=False)["input_ids"]
        return [*before, *after, self.tokenizer.eos_token_id], len(before)

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Endless shuffled batches, beginning with the one that the trainer is at."""
        return DataLoader(ShuffledStream(self, self._train, collate), batch_size=None)

    def val_dataloader(self) -> DataLoader[TokenBatch] | list[DataLoader[TokenBatch]]:
        """This rank's share of the validation rows, similar lengths together; no loader without validation."""
        if not self._validation:
            return []
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self._validation) < world:
            raise UserError(f"{self.validation_file}: too few rows for {world} ranks to validate on")
        longest = max(len(ids) for ids, _ in self._validation)
        groups = by_length(self._validation[rank::world], 4 * self.batch_size * longest)
        return DataLoader([collate(group) for group in groups], batch_size=None)  # type: ignore[arg-type]
