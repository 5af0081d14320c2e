"""Endless shuffled batches that a resumed training goes on with where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import IterableDataset

from lit_hass.data.batches import TokenBatch

Row = TypeVar("Row")


class ShuffledStream(IterableDataset[TokenBatch]):
    """Batches of rows in an order shuffled by (seed, epoch), each rank its own, from the trainer's step on.

    Args:
        data: a DataModule with ``trainer``, ``batch_size`` and ``seed``.
        rows: what the batches are made of, at least one.
        batch: makes a batch of ``batch_size`` rows.
    """

    def __init__(self, data: Any, rows: Sequence[Row], batch: Callable[[list[Row]], TokenBatch]) -> None:
        """See the class."""
        self.data, self.rows, self.batch = data, rows, batch

    def __iter__(self) -> Iterator[TokenBatch]:
        """Batches without end."""
        trainer = self.data.trainer
        assert trainer is not None, "training batches are drawn by the step of a Trainer"
        rows, size = self.rows, self.data.batch_size
        at = trainer.global_step * trainer.accumulate_grad_batches * trainer.world_size + trainer.global_rank
        epoch, order = -1, torch.empty(0)
        while True:
            chosen = []
            for place in range(at * size, (at + 1) * size):
                if place // len(rows) != epoch:
                    epoch = place // len(rows)
                    generator = torch.Generator().manual_seed(self.data.seed * 1_000_003 + epoch)
                    order = torch.randperm(len(rows), generator=generator)
                chosen.append(rows[int(order[place % len(rows)])])
            yield self.batch(chosen)
            at += trainer.world_size
