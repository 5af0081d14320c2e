"""A batch of token sequences as the rows that a draft is trained on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_hass.data.batches import IGNORE, TokenBatch


@dataclass
class DraftRows:
    """A batch as the draft reads it; row t of a sequence of n tokens has ``0 <= t <= n - 3``.

    Attributes:
        token_ids: ``[B, L]`` int64, token t + 1.
        features: ``[B, L, H]``, the base's feature t.
        targets: ``[B, L, H]``, the base's feature t + 1.
        mask: ``[B, L]`` bool: token t + 2, which the prediction is for, exists and is to be predicted.
    """

    token_ids: Tensor
    features: Tensor
    targets: Tensor
    mask: Tensor

    @classmethod
    def of(cls, batch: TokenBatch, features: Tensor) -> DraftRows:
        """Cut a batch of n tokens and its features ``[B, n, H]`` into rows (none, if n is below 3)."""
        return cls(batch.input_ids[:, 1:-1], features[:, :-2], features[:, 1:-1], trainable(batch))


def trainable(batch: TokenBatch) -> Tensor:
    """Which rows count: ``[B, n - 2]`` bool, row t iff the batch's labels want token t + 2."""
    return batch.labels[:, 2:] != IGNORE


def with_noise(features: Tensor, width: float, lengths: Tensor, seed: int) -> Tensor:
    """Add uniform noise of the given width, times 512 / tokens of the sequence, as the published training does.

    Args:
        features: ``[B, L, H]``.
        width: From end to end; 0.2 is published.
        lengths: ``[B]`` tokens of each sequence.
        seed: Decides the noise.
    """
    generator = torch.Generator(features.device).manual_seed(seed % 2**63)
    noise = torch.rand(features.shape, generator=generator, dtype=torch.float32, device=features.device) - 0.5
    return features + noise.mul_(width * 512 / lengths[:, None, None]).to(features.dtype)
