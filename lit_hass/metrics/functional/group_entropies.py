"""SVD entropies of many groups of rows at once: the rows of each class, of each chunk of an answer, of each state.

Groups of similar size share one padded batch, whose small Gram matrices are decomposed together. Padding with zero rows
adds zero eigenvalues only, so the result is exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.metrics.functional.decline import decline_pattern
from lit_hass.metrics.functional.spectrum import ENTROPY_EPS, Base, bounded_entropy, check_entropy_settings

ChunkRule = Literal["array_split", "floor_last_rest"]

_EPS64 = torch.finfo(torch.float64).eps
# Float64 numbers of one padded batch: 8 MiB on a CPU, whose caches and allocator like that, 512 MiB elsewhere.
_CPU_BATCH_NUMBERS = 2**20
_BATCH_NUMBERS = 2**26

# Rows of a large Gram matrix that are computed together.
_GRAM_BLOCK = 128


@dataclass(frozen=True)
class GroupedEntropy:
    """SVD entropies of groups of rows.

    Attributes:
        ids: ``[C]`` int64, the groups that have at least ``min_samples`` rows, ascending.
        counts: ``[C]`` int64, their rows.
        entropies: ``[C]`` float64; NaN where undefined (one row; all rows zero; centred and all rows equal).
        normalized: ``[C]`` float64, over the logarithm of min(n, d), or min(n - 1, d) of centred rows; NaN where that
            is 0.
    """

    ids: Tensor
    counts: Tensor
    entropies: Tensor
    normalized: Tensor

    def summary(self) -> dict[str, float]:
        """Return mean, population std and row-weighted mean over the groups that are defined, and how many are not."""
        defined = ~self.entropies.isnan()
        values, counts = self.entropies[defined], self.counts[defined].to(torch.float64)
        normal = self.normalized[~self.normalized.isnan()]
        some = values.numel() > 0
        return {
            "mean": float(values.mean()) if some else math.nan,
            "std": float(values.std(correction=0)) if some else math.nan,
            "weighted_mean": float((values * counts).sum() / counts.sum()) if some else math.nan,
            "normalized_mean": float(normal.mean()) if normal.numel() else math.nan,
            "n_defined": int(defined.sum()),
            "n_undefined": int((~defined).sum()),
            "min_samples": int(counts.min()) if some else 0,
            "max_samples": int(counts.max()) if some else 0,
        }


def grouped_entropy(
    features: Tensor,
    ids: Tensor,
    *,
    power: int = 1,
    center: bool = False,
    base: Base = "e",
    eps: float = ENTROPY_EPS,
    min_samples: int = 2,
) -> GroupedEntropy:
    """Return the SVD entropy of the rows of each id.

    Args:
        features: ``[N, d]`` floating, in any order; computed in float64.
        ids: ``[N]`` int64: token ids, states, sequence numbers.
        power: 1 for p = s / sum s, 2 for p = s^2 / sum s^2.
        center: subtract the group's mean first.
        base: ``"e"`` for nats, 2 for bits.
        eps: added inside the logarithm.
        min_samples: smaller groups are left out.

    Raises:
        UserError: a setting that does not exist.
        ValueError: shapes that do not fit.

    Example:
        >>> import torch
        >>> rows = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [1.0, 1.0], [3.0, 0.0]])
        >>> result = grouped_entropy(rows, torch.tensor([7, 7, 9, 9, 4]), eps=0.0)
        >>> result.ids.tolist(), result.entropies.round(decimals=4).tolist()
        ([7, 9], [0.6931, 0.0])
    """
    check_entropy_settings(power, base)
    if features.ndim != 2 or ids.shape != features.shape[:1]:
        raise ValueError(f"features must be [N, d] and ids [N], got {tuple(features.shape)} and {tuple(ids.shape)}")
    order = ids.argsort(stable=True)
    found, counts = ids[order].unique_consecutive(return_counts=True)
    starts = counts.cumsum(0) - counts
    eligible = counts >= max(1, min_samples)
    found, counts, starts = found[eligible], counts[eligible], starts[eligible]
    entropies = torch.full(counts.shape, math.nan, dtype=torch.float64, device=features.device)
    normalized = entropies.clone()
    d = features.shape[1]
    for members, size in _buckets(counts, d):
        values = _eigenvalues(features, order, starts[members], counts[members], size, center)
        found_here = bounded_entropy(values, counts[members], d, power, center, base, eps)
        entropies[members], normalized[members] = found_here
    return GroupedEntropy(found, counts, entropies, normalized)


def _buckets(counts: Tensor, d: int) -> Iterator[tuple[Tensor, int]]:
    """Yield the indices of groups of similar size with the largest of their sizes."""
    if counts.numel() == 0:
        return
    budget = _CPU_BATCH_NUMBERS if counts.device.type == "cpu" else _BATCH_NUMBERS
    by_size = counts.argsort(stable=True)
    sizes = counts[by_size].tolist()
    start = 0
    while start < len(sizes):
        low = sizes[start]
        # Exact sizes up to 8, where most classes are, and from 64, where the cube of a padded size outweighs a batch.
        limit = low * 1.25 if 8 < low < 64 else low
        most = max(1, budget // (max(1, d) * low))
        end = start + 1
        while end < len(sizes) and end - start < most and sizes[end] <= limit:
            end += 1
        yield by_size[start:end], sizes[end - 1]
        start = end


def _eigenvalues(features: Tensor, order: Tensor, starts: Tensor, counts: Tensor, size: int, center: bool) -> Tensor:
    """Return ``[b, min(size, d)]`` eigenvalues of the groups' Gram matrices, NaN for centred rows without spread."""
    offsets = torch.arange(size, device=counts.device)
    inside = offsets < counts[:, None]
    index = (starts[:, None] + offsets).clamp_(max=order.numel() - 1)
    x = features[order[index].view(-1)].to(torch.float64).view(len(counts), size, -1)
    if int(counts.min()) < size:
        x.masked_fill_(~inside[:, :, None], 0.0)
    d = x.shape[2]
    raw = x.square().sum((1, 2)) if center else None
    if center:
        x = torch.where(inside[:, :, None], x - x.sum(1, keepdim=True) / counts[:, None, None], 0.0)
    gram = _lower_gram(x if size <= d else x.transpose(1, 2))
    return small_gram_eigenvalues(gram, counts, d, center, raw)


def small_gram_eigenvalues(gram: Tensor, counts: Tensor, d: int, center: bool, sizes: Tensor | None = None) -> Tensor:
    """Return the eigenvalues of Gram matrices of few rows, largest first, without the noise of those that are zero.

    Args:
        gram: ``[b, k, k]`` float64, of which the lower triangle is read.
        counts: ``[b]`` int64, the rows behind each.
        d: the numbers of a row.
        center: whether the rows were centred.
        sizes: ``[b]``, sums of squares of the rows before that; without spread beside these all are NaN.
    """
    values = torch.linalg.eigvalsh(gram, UPLO="L").flip(1).clamp_(min=0)
    rank = counts.clamp(max=d) if not center else (counts - 1).clamp(max=d)
    noise = counts.clamp(max=d)[:, None] * _EPS64 * values[:, :1]
    zero = (torch.arange(values.shape[1], device=rank.device) >= rank[:, None]) | (values <= noise)
    values = values.masked_fill(zero, 0.0)
    if center and sizes is not None:
        flat = values[:, 0] <= (4 * counts.clamp(min=d) * _EPS64) ** 2 * sizes
        values = values.masked_fill(flat[:, None], math.nan)
    return values


def _lower_gram(x: Tensor) -> Tensor:
    """Return ``x x'`` of ``[b, m, k]``, of large matrices the lower triangle only (and what its blocks cover)."""
    m = x.shape[1]
    if m < 2 * _GRAM_BLOCK or x.device.type != "cpu":
        return x @ x.transpose(1, 2)
    gram = x.new_zeros(len(x), m, m)
    for start in range(0, m, _GRAM_BLOCK):
        end = min(start + _GRAM_BLOCK, m)
        gram[:, start:end, :end] = x[:, start:end] @ x[:, :end].transpose(1, 2)
    return gram


@dataclass(frozen=True)
class ChunkEntropies:
    """SVD entropies along one sequence.

    Attributes:
        entropies: one per chunk, NaN where undefined; empty when the sequence has fewer rows than chunks.
        normalized: over their bounds, as of :class:`GroupedEntropy`.
        first_minus_last: how far the entropy falls from the first chunk to the last; NaN without chunks.
        pattern: ``"strong_decline"`` above 0.5, ``"moderate_decline"`` above 0.1, ``"weak_decline"`` above 0.01, else
            ``"no_decline"``; ``"undefined"`` without a number.
    """

    entropies: list[float]
    normalized: list[float]
    first_minus_last: float
    pattern: str


def chunk_entropies(
    features: Tensor,
    chunks: int = 5,
    rule: ChunkRule = "array_split",
    *,
    power: int = 1,
    center: bool = False,
    base: Base = "e",
    eps: float = ENTROPY_EPS,
) -> ChunkEntropies:
    """Return the SVD entropies of the consecutive chunks of one sequence.

    Args:
        features: ``[T, d]`` floating, in the order of the text.
        chunks: how many.
        rule: ``"array_split"`` makes chunks of equal size, the first T mod chunks one row longer;
            ``"floor_last_rest"`` is the original's: the last chunk takes the rest. The entropy of n rows is at most
            ln n, so with unequal chunks it falls or rises by itself.
        power: see :func:`grouped_entropy`, as the three after it. The limits of the pattern are nats of the defaults.
        center: likewise.
        base: likewise.
        eps: likewise.

    Raises:
        UserError: a rule that does not exist, or no chunks.
    """
    if rule not in ("array_split", "floor_last_rest") or chunks < 1:
        raise UserError(f"no such chunk rule or number of chunks: {rule!r}, {chunks!r}")
    length = features.shape[0]
    if length < chunks:
        return ChunkEntropies([], [], math.nan, "undefined")
    row = torch.arange(length, device=features.device)
    size, rest = divmod(length, chunks)
    if rule == "array_split":
        longer = rest * (size + 1)
        ids = torch.where(row < longer, row // (size + 1), rest + (row - longer) // size)
    else:
        ids = (row // size).clamp(max=chunks - 1)
    found = grouped_entropy(features, ids, power=power, center=center, base=base, eps=eps, min_samples=1)
    entropies = found.entropies.tolist()
    fall = entropies[0] - entropies[-1]
    return ChunkEntropies(entropies, found.normalized.tolist(), fall, decline_pattern(fall))
