"""Rows of token ids as padded batches for language modelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

#: Targets that are not scored, as in `torch.nn.functional.cross_entropy`.
IGNORE = -100


@dataclass
class TokenBatch:
    """A batch of sequences, padded on the right.

    Attributes:
        input_ids: ``[B, L]`` int64, zeros where padded.
        attention_mask: ``[B, L]`` int64, 1 where a token stands.
        labels: ``[B, L]`` int64; ``labels[b, t]`` is ``input_ids[b, t]`` where that token is to be predicted, `IGNORE`
            elsewhere (not shifted).
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> TokenBatch:
        """The batch on another device (Lightning moves batches by this name)."""
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device))

    @property
    def size(self) -> int:
        """The number of sequences."""
        return self.input_ids.shape[0]


def collate(rows: Sequence[tuple[list[int], int]]) -> TokenBatch:
    """Pad rows of ``(ids, how many of them are not scored at the beginning)`` into one batch."""
    longest = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    labels = torch.full_like(input_ids, IGNORE)
    for i, (ids, skip) in enumerate(rows):
        row = torch.tensor(ids)
        input_ids[i, : len(ids)] = row
        mask[i, : len(ids)] = 1
        labels[i, skip : len(ids)] = row[skip:]
    return TokenBatch(input_ids, mask, labels)


def by_length(rows: Sequence[tuple[list[int], int]], tokens: int) -> list[list[tuple[list[int], int]]]:
    """Group rows of similar length so that no group has more than ``tokens`` tokens once padded.

    A row longer than ``tokens`` is a group of its own.
    """
    groups: list[list[tuple[list[int], int]]] = []
    for row in sorted(rows, key=lambda row: len(row[0])):
        if groups and len(row[0]) * (len(groups[-1]) + 1) <= tokens:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
