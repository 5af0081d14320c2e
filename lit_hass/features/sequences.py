"""The features of one sequence as a decoder returns them, named, so that they can be kept and counted once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_hass.features.row_keys import item_number, row_keys
from lit_hass.features.rows import RowBlock
from lit_hass.metrics.accumulator import STATE_NAMES

#: Codes of the states whose rows are treated apart.
PROMPT, REJECTED = STATE_NAMES.index("prompt"), STATE_NAMES.index("rejected")
_TENSORS = ("features", "token_ids", "states", "rejected", "draft_features", "draft_rows")


@dataclass(frozen=True)
class FeatureSequence:
    """One sequence: a prompt and what was answered, or a piece of text.

    Attributes:
        name: what it is, such as question id, choice and turn: it chooses which rows a sample keeps.
        features: ``[n, d]`` floating.
        token_ids: ``[n]`` int64, the token behind each feature's position.
        states: ``[n]`` int64 codes of `STATE_NAMES`: how the token at the feature's own position came to be there.
        rejected: ``[m, d]`` floating: features of draft tokens that were verified and dropped; they have no class.
        draft_features: ``[k, d]`` floating, what a draft predicted in the place of some features.
        draft_rows: ``[k]`` int64, the rows of ``features`` that those predict.
    """

    name: tuple[Any, ...]
    features: Tensor
    token_ids: Tensor
    states: Tensor
    rejected: Tensor
    draft_features: Tensor
    draft_rows: Tensor

    @classmethod
    def of(cls, name: tuple[Any, ...], found: Any) -> FeatureSequence:
        """Name a `lit_hass.decoding.TokenFeatures`; what it does not have is empty."""
        features = found.features.detach()
        none, no_rows = features[:0], torch.empty(0, dtype=torch.int64, device=features.device)
        rejected, draft_features, draft_rows = (
            empty if (tensor := getattr(found, name, None)) is None else tensor.detach()
            for name, empty in (("rejected", none), ("draft_features", none), ("draft_rows", no_rows))
        )
        return cls(name, features, found.token_ids, found.states, rejected, draft_features, draft_rows)

    @classmethod
    def of_text(cls, name: tuple[Any, ...], features: Tensor, token_ids: Tensor, states: Tensor) -> FeatureSequence:
        """Name the features of a text that was given, for which nothing was drafted."""
        features = features.detach()
        return cls(name, features, token_ids, states, features[:0], features[:0], token_ids[:0])

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {name: getattr(self, name) for name in _TENSORS}

    def blocks(self, states: Collection[int], placeholder: int, salt: int) -> Iterator[RowBlock]:
        """Yield the rows of some states: without a draft's prediction, with one, and the rejected ones.

        Args:
            states: codes.
            placeholder: the token id that rejected rows carry, since they have none.
            salt: of the keys.
        """
        device, n = self.features.device, len(self.token_ids)
        item = item_number(*self.name)
        keys = row_keys(item, 0, n, salt, device)
        drafted = torch.full((n,), -1, dtype=torch.int64, device=device)
        drafted[self.draft_rows] = torch.arange(len(self.draft_rows), device=device)
        wanted = torch.isin(self.states, torch.tensor(sorted(states), device=device))
        for paired in (False, True):
            rows = (wanted & ((drafted >= 0) == paired)).nonzero()[:, 0]
            if len(rows):
                other = self.draft_features[drafted[rows]] if paired else None
                yield RowBlock(self.features[rows], self.token_ids[rows], self.states[rows], keys[rows], other)
        if REJECTED in states and len(self.rejected):
            ids = torch.full((len(self.rejected),), placeholder, dtype=torch.int64, device=device)
            keys = row_keys(item, n, len(ids), salt, device)
            yield RowBlock(self.rejected, ids, torch.full_like(ids, REJECTED), keys)


def on_host(sequences: Sequence[FeatureSequence], dtype: torch.dtype | None = None) -> list[FeatureSequence]:
    """Move sequences to host memory with one copy per kind of tensor, the floating ones in another dtype."""
    moved: dict[str, Sequence[Tensor]] = {}
    for name in _TENSORS if sequences else ():
        parts = [getattr(sequence, name) for sequence in sequences]
        joined = torch.cat(parts)
        if dtype is not None and joined.is_floating_point():
            joined = joined.to(dtype)
        moved[name] = joined.to("cpu").split([len(part) for part in parts])
    return [
        FeatureSequence(sequence.name, **{name: moved[name][i] for name in _TENSORS})
        for i, sequence in enumerate(sequences)
    ]
