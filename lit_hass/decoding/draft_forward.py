"""The draft as decoding uses it: one pass over what was committed, then passes over its own predictions."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from lit_hass.models import DraftCache, DraftModel


class DraftKV(Protocol):
    """Keys and values of the draft's committed rows.

    Attributes:
        lengths: Committed rows of each row of the batch, known without asking the device.
        starts: The same as ``[B]`` int64 on the device.
    """

    lengths: list[int]
    starts: Tensor

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order, and forget the others."""


class DraftForward(ABC):
    """A draft, reduced to what a decoder asks of it. Nothing of a call stays in this object."""

    @abstractmethod
    def new_cache(self, batch: int, capacity: int) -> DraftKV:
        """Return an empty cache for ``batch`` rows of up to ``capacity`` slots, uncommitted ones included."""

    @abstractmethod
    def feed(self, token_ids: Tensor, features: Tensor, counts: Sequence[int], cache: DraftKV) -> Tensor:
        """Commit the rows that the base has verified.

        Args:
            token_ids: ``[B, T]`` int64, the token behind each feature, padded on the right; a row's last one is its
                root.
            features: ``[B, T, H]`` of the base, padded alike.
            counts: Real rows of each row of the batch, 1 .. T.
            cache: Gains them.

        Returns:
            ``[B, H]``, the feature that the draft predicts for each root.
        """

    @abstractmethod
    def extend(
        self,
        token_ids: Tensor,
        features: Tensor,
        cache: DraftKV,
        offset: int,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Go on from the draft's own predictions, without committing anything.

        Args:
            token_ids: ``[B, T]`` int64.
            features: ``[B, T, H]`` predicted features, each the one before its token.
            cache: Is written to, ``offset`` slots behind the committed rows.
            offset: Rows that earlier calls of this step have written.
            positions: ``[B, T]`` int64; by default the rows' own slots.
            visible: ``[B, T, offset + T]`` bool, which of the rows of this step each row sees; by default those before
                it and itself.

        Returns:
            ``[B, T, H]`` predicted features.
        """


class ModuleDraft(DraftForward):
    """The draft's own module: any rotary embedding, any device."""

    def __init__(self, draft: DraftModel) -> None:
        """Take a draft in eval mode."""
        self._draft = draft

    def new_cache(self, batch: int, capacity: int) -> DraftCache:
        """Return an empty cache."""
        return self._draft.new_cache(batch, capacity)

    def feed(self, token_ids: Tensor, features: Tensor, counts: Sequence[int], cache: DraftKV) -> Tensor:
        """Commit the rows that the base has verified."""
        assert isinstance(cache, DraftCache)
        output = self._draft(token_ids.to(self._draft.device), features.to(self._draft.device), cache=cache)
        cache.commit(counts)
        return last_rows(output, counts)

    def extend(
        self,
        token_ids: Tensor,
        features: Tensor,
        cache: DraftKV,
        offset: int,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Go on from the draft's own predictions."""
        assert isinstance(cache, DraftCache)
        return self._draft(token_ids, features, positions, cache, offset, visible)


def last_rows(output: Tensor, counts: Sequence[int]) -> Tensor:
    """``[B, H]``, the last real row of each row of ``[B, T, H]``."""
    if len(counts) == 1:
        return output[:, counts[0] - 1]
    last = torch.tensor([count - 1 for count in counts], device=output.device)
    return output[torch.arange(len(counts), device=output.device), last]
