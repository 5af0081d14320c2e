"""Plain text as training data for a language model."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lit_hass.data.batches import TokenBatch
from lit_hass.data.shuffled_stream import ShuffledStream
from lit_hass.errors import UserError
from lit_hass.models import load_tokenizer
from lit_hass.records.json_lines import kind_of_file, read_bytes

log = logging.getLogger(__name__)

_TABLES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")


class TextDataModule(LightningDataModule):
    """Blocks of equal length cut from text files; every token but a block's first is scored.

    The files are tokenised one by one, an end-of-sequence token behind each, and joined. Training draws the blocks of
    each epoch in an order shuffled by (seed, epoch) and goes on at the step where a resumed run stopped. Validation
    reads its files in order; the last block may be shorter.

    Args:
        train_files: UTF-8 text files, also compressed (``.gz``).
        tokenizer: folder, hub id or shipped name.
        validation_files: text to validate on; None holds out the last ``validation_share`` of the training blocks.
        validation_share: share of blocks held out when there are no validation files.
        block_size: tokens per block.
        batch_size: blocks per batch.
        seed: of the order.

    Raises:
        UserError: a file cannot be read or is not UTF-8, or the text gives no block to train or validate on.
    """

    #: No model predicts every token of a block, so the best one is that of the lowest loss.
    validates_by = "loss"

    def __init__(
        self,
        train_files: list[str],
        tokenizer: str,
        validation_files: list[str] | None = None,
        validation_share: float = 0.05,
        block_size: int = 256,
        batch_size: int = 4,
        seed: int = 0,
    ) -> None:
        """See the class."""
        super().__init__()
        if not train_files:
            raise UserError("data.train_files names no file")
        if block_size < 2 or batch_size < 1:
            raise UserError("data.block_size must be at least 2 and data.batch_size at least 1")
        if not 0 < validation_share < 1:
            raise UserError(f"data.validation_share must lie between 0 and 1, found {validation_share}")
        self.save_hyperparameters()
        self.train_files, self.validation_files = train_files, validation_files
        self.tokenizer_name, self.validation_share = tokenizer, validation_share
        self.block_size, self.batch_size, self.seed = block_size, batch_size, seed
        self.tokenizer: Any = None
        self.validation_names = ["text"]
        self._train: list[torch.Tensor] = []
        self._validation: list[torch.Tensor] = []

    def setup(self, stage: str) -> None:
        """Read and cut the text."""
        if self._train:
            return
        self.tokenizer = load_tokenizer(self.tokenizer_name)
        blocks = self._blocks(self.train_files)
        if self.validation_files:
            self._train = [block for block in blocks if len(block) == self.block_size]
            self._validation = self._blocks(self.validation_files)
        else:
            full = [block for block in blocks if len(block) == self.block_size]
            held_out = max(1, round(len(full) * self.validation_share))
            self._train, self._validation = full[:-held_out], full[-held_out:]
        if not self._train or not self._validation:
            raise UserError(
                f"the text has {sum(map(len, blocks))} tokens, too few for blocks of {self.block_size} to train and to "
                "validate on; lower data.block_size or give more text"
            )
        log.info("%d blocks to train on, %d to validate on", len(self._train), len(self._validation))

    def _blocks(self, files: list[str]) -> list[torch.Tensor]:
        assert self.tokenizer is not None
        ids: list[int] = []
        for name in files:
            if kind_of_file(name) in _TABLES:
                raise UserError(
                    f"{name}: a table, whose brackets and separators would be trained on as text; write its texts into "
                    "a text file"
                )
            try:
                # As Python reads text: whatever ends a line is a line end.
                content = read_bytes(name, "text file").decode("utf-8")
                text = content.replace("\r\n", "\n").replace("\r", "\n")
            except UnicodeDecodeError as error:
                raise UserError(f"{name}: not UTF-8 text ({error.reason} at byte {error.start})") from error
            ids += self.tokenizer(text, add_special_tokens=False)["input_ids"]
            if self.tokenizer.eos_token_id is not None:
                ids.append(self.tokenizer.eos_token_id)
        whole = torch.tensor(ids, dtype=torch.long)
        return [block for block in whole.split(self.block_size) if len(block) > 1]

    def train_dataloader(self) -> DataLoader[TokenBatch]:
        """Endless shuffled batches, beginning with the one that the trainer is at."""
        return DataLoader(ShuffledStream(self, self._train, _batch), batch_size=None)

    def val_dataloader(self) -> DataLoader[TokenBatch]:
        """This rank's share of the validation blocks; blocks of equal length go together."""
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if len(self._validation) < world:
            raise UserError(
                f"{len(self._validation)} blocks to validate on leave some of the {world} ranks without one"
            )
        mine = self._validation[rank::world]
        full = [block for block in mine if len(block) == self.block_size]
        groups = [full[i : i + self.batch_size] for i in range(0, len(full), self.batch_size)]
        groups += [[block] for block in mine if len(block) != self.block_size]
        return DataLoader([_batch(group) for group in groups], batch_size=None)  # type: ignore[arg-type]


def _batch(rows: list[torch.Tensor]) -> TokenBatch:
    ids = torch.stack(rows)
    return TokenBatch(ids, torch.ones_like(ids), ids.clone())
