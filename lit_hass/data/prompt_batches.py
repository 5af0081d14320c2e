"""Prompts of different lengths as batches, padded on the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_hass.data.commonsense_qa_questions import MultipleChoiceQuestion


@dataclass(frozen=True)
class PromptRow:
    """One question as it is asked.

    Attributes:
        question: what is asked.
        prompt: the text that the model continues, shots and hint included.
        ids: its token ids.
        plain_prompt: the same question without shots and without a hint: what is trained on.
        hinted: whether the prompt tells the right answer.
        shots: how many examples come before the question.
    """

    question: MultipleChoiceQuestion
    prompt: str
    ids: tuple[int, ...]
    plain_prompt: str
    hinted: bool = False
    shots: int = 0


@dataclass(frozen=True)
class PromptBatch:
    """Questions to be answered together; without rows where a rank has nothing to do.

    Attributes:
        rows: what is asked.
        input_ids: ``[B, T]`` int64, padded on the left to the longest prompt.
        attention_mask: ``[B, T]`` int64, 1 where a token stands.
    """

    rows: tuple[PromptRow, ...]
    input_ids: Tensor
    attention_mask: Tensor

    @property
    def id(self) -> list[str]:
        """Ids of the questions."""
        return [row.question.id for row in self.rows]

    @property
    def prompts(self) -> list[Tensor]:
        """Each prompt's ids without padding, 1-D int64."""
        return [ids[mask.bool()] for ids, mask in zip(self.input_ids, self.attention_mask, strict=True)]

    def to(self, device: torch.device | str) -> PromptBatch:
        """The batch on another device (Lightning moves batches by this name)."""
        return PromptBatch(self.rows, self.input_ids.to(device), self.attention_mask.to(device))


def left_padded(rows: Sequence[PromptRow], pad_id: int) -> PromptBatch:
    """Put rows into one batch.

    Args:
        rows: any number of them.
        pad_id: what stands where there is no token; the attention mask says where that is, so it may be a token that
            prompts have too.
    """
    longest = max((len(row.ids) for row in rows), default=0)
    input_ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for i, row in enumerate(rows):
        if row.ids:
            input_ids[i, -len(row.ids) :] = torch.tensor(row.ids)
            mask[i, -len(row.ids) :] = 1
    return PromptBatch(tuple(rows), input_ids, mask)


def longest_first(rows: Sequence[PromptRow]) -> list[PromptRow]:
    """Rows sorted by length, so that a batch has little padding and a batch too large for the memory comes first."""
    return sorted(rows, key=lambda row: (-len(row.ids), row.question.id))


def padding_waste(lengths: Sequence[int], batch_size: int) -> float:
    """Share of a run's prompt cells that are padding, when prompts of these lengths are batched in this order.

    ``1 - sum(lengths) / sum of (rows * longest) over batches``; NaN without any.
    """
    cells = sum(
        len(batch) * max(batch) for i in range(0, len(lengths), batch_size) if (batch := lengths[i : i + batch_size])
    )
    return 1 - sum(lengths) / cells if cells else float("nan")
