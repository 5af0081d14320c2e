"""Statistics over all pairs of classes, tile by tile: the K x K matrix never exists.

Products of a tile come from one matrix product in `tile_dtype`. Squared distances ``a_i + a_j - 2 x_i.x_j`` lose their
digits where the rows are close together, so those entries are computed again from differences in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.metrics.functional.moments import Moments
from lit_hass.numerics import plain_numbers

Duplicates = Literal["skip", "inf", "clamp"]
Kernel = Literal["log", "riesz"]

#: Two unit rows closer than this are the same direction.
DUPLICATE_DISTANCE = 1e-6
# A squared distance smaller than this share of the rows' squared lengths is computed again from differences.
_REFINE_BELOW = 1e-3
# With so few classes the products cost nothing, and keep all their digits.
_FLOAT64_CLASSES = 2048
# What is smaller than this share of the rows behind a mean is the rounding of their sum. (Features in float32 that
# differ at all differ by more, unless a class has a hundred thousand equal rows and one that differs in its last bit.)
ROUNDING = 1e-12
# Numbers held at a time while distances are computed again: 32 MiB.
_REFINE_NUMBERS = 2**22


@dataclass(frozen=True)
class PairStatistics:
    """Statistics over the pairs of classes.

    Attributes:
        moments: of the values of the pairs that count.
        duplicates: pairs of classes at the same place.
        zero_rows: classes at the global mean itself, which have no direction; they are in no pair.
    """

    moments: Moments
    duplicates: int = 0
    zero_rows: int = 0


def gnc2_statistics(
    class_means: Tensor,
    global_mean: Tensor | None = None,
    *,
    kernel: Kernel = "log",
    exponent: float = 1.0,
    duplicates: Duplicates = "skip",
    norm_eps: float = 0.0,
    tile: int | None = None,
    tile_dtype: torch.dtype | None = None,
) -> PairStatistics:
    """Summarise the pair kernel of GNC2 over unordered pairs of centred, normalised class means.

    With u = m / norm(m), m = mean - global mean: ``"log"`` is ln(1 / norm(u - u')), ``"riesz"`` is
    norm(u - u') ** -exponent (so ``exponent=-1`` is the distance itself).

    Args:
        class_means: ``[K, d]`` floating.
        global_mean: ``[d]``; the mean of the class means where none is given.
        kernel: see above.
        exponent: of the Riesz kernel.
        duplicates: what a pair closer than 1e-6 does: it is left out (``"skip"``), its distance is taken as 0
            (``"inf"``) or as 1e-6 (``"clamp"``). It is counted in all cases.
        norm_eps: added to norm(m); the original scripts add 1e-8.
        tile: rows of a tile; by default 512 on a CPU and 4096 elsewhere.
        tile_dtype: of the products. float32 is exact to about 1e-8 on average, and the default above 2048 classes;
            float64 is below.

    Raises:
        UserError: a setting that does not exist.
    """
    if kernel not in ("log", "riesz") or duplicates not in ("skip", "inf", "clamp"):
        raise UserError(f"no such GNC2 kernel or duplicates rule: {kernel!r}, {duplicates!r}")
    centred = centre(class_means, global_mean)
    norms = torch.linalg.vector_norm(centred, dim=1)
    present = norms > 0
    unit = centred[present] / (norms[present] + norm_eps)[:, None]

    def value(squared: Tensor, _: slice, __: slice) -> Tensor:
        # squared ** (-exponent / 2) and -ln(squared) / 2
        return squared.log_().mul_(-0.5) if kernel == "log" else squared.pow_(-0.5 * exponent)

    moments, count = _distance_moments(unit, value, DUPLICATE_DISTANCE**2, None, duplicates, tile, tile_dtype)
    return PairStatistics(moments, count, int((~present).sum()))


def cdnv_statistics(
    class_means: Tensor,
    class_variances: Tensor,
    *,
    exponent: float = 1.0,
    tile: int | None = None,
    tile_dtype: torch.dtype | None = None,
) -> PairStatistics:
    """Summarise the class-distance normalised variance over unordered pairs (Galanti et al. 2021).

    (v + v') / 2 / (squared distance of the means) ** exponent. Pairs at the same place, up to the rounding of a mean of
    such rows (1e-12 of their size), are left out and counted.

    Args:
        class_means: ``[K, d]`` floating.
        class_variances: ``[K]``, the mean squared distance of a class's rows from their mean.
        exponent: 1 is the definition; linguistic-collapse uses 2, which depends on the scale of the features.
        tile: see :func:`gnc2_statistics`.
        tile_dtype: likewise.
    """
    centred = centre(class_means)
    tile_dtype = tile_dtype or _dtype_for(len(centred))
    variances = class_variances.to(tile_dtype)

    def value(squared: Tensor, i: slice, j: slice) -> Tensor:
        return (variances[i, None] + variances[None, j]).mul_(0.5).div_(squared.pow_(exponent))

    sizes = class_means.to(torch.float64).square().sum(1) + class_variances.to(centred)
    moments, count = _distance_moments(centred, value, 0.0, ROUNDING**2 * sizes, "skip", tile, tile_dtype)
    return PairStatistics(moments, count)


def product_statistics(
    class_means: Tensor,
    global_mean: Tensor | None = None,
    *,
    similarity: Literal["cos", "dot"] = "cos",
    deviation_from: float | None = None,
    tile: int | None = None,
    tile_dtype: torch.dtype | None = None,
) -> PairStatistics:
    """Summarise cosines or dot products of centred class means over unordered pairs.

    Args:
        class_means: ``[K, d]`` floating.
        global_mean: ``[d]``; the mean of the class means where none is given.
        similarity: ``"cos"`` leaves out classes at the global mean (counted), ``"dot"`` does not.
        deviation_from: summarise the absolute deviation from this value instead.
        tile: see :func:`gnc2_statistics`.
        tile_dtype: likewise.
    """
    rows = centre(class_means, global_mean)
    zero = 0
    if similarity == "cos":
        norms = torch.linalg.vector_norm(rows, dim=1)
        zero = int((norms == 0).sum())
        rows = rows[norms > 0] / norms[norms > 0, None]
    moments = Moments()
    low = rows.to(tile_dtype or _dtype_for(len(rows)))
    with plain_numbers():
        for i, j in _tiles(len(rows), tile, rows.device):
            values = low[i] @ low[j].T
            if deviation_from is not None:
                values = values.sub_(deviation_from).abs_()
            moments = moments.merged(_tile_moments(_pairs_of(values, i, j), moments.mean))
    return PairStatistics(moments, zero_rows=zero)


def centre(class_means: Tensor, global_mean: Tensor | None = None, class_variances: Tensor | None = None) -> Tensor:
    """Return the class means in float64, less the global mean.

    A class at the global mean has no direction, but the rounding of the sums would give it one at random: what is left
    of a mean is exactly 0 if it is smaller than 1e-12 of the largest mean or of the rows behind it.

    Args:
        class_means: ``[K, d]`` floating.
        global_mean: ``[d]``; the mean of the class means where none is given.
        class_variances: ``[K]``, the mean squared distance of a class's rows from their mean, where it is known.
    """
    means = class_means.to(torch.float64)
    if not len(means):
        return means
    centred = means - (means.mean(0) if global_mean is None else global_mean.to(means))
    size = means.square().sum(1).max()
    if class_variances is not None:
        size = size + class_variances.to(means)
    return centred.masked_fill((centred.square().sum(1) <= ROUNDING**2 * size)[:, None], 0.0)


def _dtype_for(classes: int) -> torch.dtype:
    return torch.float64 if classes <= _FLOAT64_CLASSES else torch.float32


def _tiles(count: int, tile: int | None, device: torch.device) -> Iterator[tuple[slice, slice]]:
    tile = tile or (512 if device.type == "cpu" else 4096)
    for i in range(0, count, tile):
        for j in range(i, count, tile):
            yield slice(i, min(i + tile, count)), slice(j, min(j + tile, count))


def _pairs_of(values: Tensor, i: slice, j: slice) -> Tensor:
    """Take the values of the pairs c < c' out of a tile."""
    if i != j:
        return values
    return values[torch.ones_like(values, dtype=torch.bool).triu_(1)]


def _distance_moments(
    rows: Tensor,
    value: Callable[[Tensor, slice, slice], Tensor],
    same: float,
    floors: Tensor | None,
    duplicates: str,
    tile: int | None,
    tile_dtype: torch.dtype | None,
) -> tuple[Moments, int]:
    """Summarise what ``value`` makes of tiles of squared distances, which it may overwrite.

    Rows whose squared distance is smaller than ``same``, or not above the sum of their ``floors``, are duplicates.
    """
    tile_dtype = tile_dtype or _dtype_for(len(rows))
    low = rows.to(tile_dtype)
    lengths = rows.square().sum(1)
    moments, found = Moments(), 0
    with plain_numbers():
        for i, j in _tiles(len(rows), tile, rows.device):
            scale = (lengths[i, None] + lengths[None, j]).to(tile_dtype)
            squared = torch.addmm(scale, low[i], low[j].T, alpha=-2)
            scale.mul_(_REFINE_BELOW)
            if floors is not None:
                scale.add_((2 * (floors[i, None] + floors[None, j])).to(tile_dtype))
            near = squared <= scale
            if i == j:
                near.triu_(1)
                squared.masked_fill_(torch.ones_like(near).tril_(), 1.0)
            skipped = None
            if near.any():
                skipped = _refine(squared, near, rows, floors, (i.start, j.start), same, duplicates)
                found += int(skipped.sum())
            values = value(squared, i, j)
            if skipped is not None and duplicates == "skip" and skipped.any():
                keep = ~skipped
                values = values[keep.triu_(1) if i == j else keep]
            else:
                values = _pairs_of(values, i, j)
            moments = moments.merged(_tile_moments(values, moments.mean))
    return moments, found


def _refine(
    squared: Tensor,
    near: Tensor,
    rows: Tensor,
    floors: Tensor | None,
    corner: tuple[int, int],
    same: float,
    duplicates: str,
) -> Tensor:
    """Compute near entries of the tile at a corner again in place; return where the duplicates are."""
    found = torch.zeros_like(near)
    where_i, where_j = near.nonzero(as_tuple=True)
    block = max(1, _REFINE_NUMBERS // max(1, rows.shape[1]))
    for start in range(0, len(where_i), block):
        i, j = where_i[start : start + block], where_j[start : start + block]
        a, b = i + corner[0], j + corner[1]
        exact = (rows[a] - rows[b]).square().sum(1)
        double = exact < same
        if floors is not None:
            double |= exact <= floors[a] + floors[b]
        found[i, j] = double
        if duplicates == "clamp":
            exact = exact.masked_fill(double, same)
        elif duplicates == "inf":
            exact = exact.masked_fill(double, 0.0)
        else:
            exact = exact.masked_fill(double, 1.0)  # any number that is defined; the pair is left out
        squared[i, j] = exact.to(squared.dtype)
    return found


def _tile_moments(values: Tensor, pivot: float) -> Moments:
    """Describe the values of one tile, which may be overwritten.

    Deviations are taken from the mean so far: squares of the values themselves would lose the digits of a small spread.
    """
    if values.numel() == 0:
        return Moments()
    low, high = values.aminmax()
    if math.isfinite(pivot):
        start = torch.as_tensor(pivot, dtype=values.dtype, device=values.device)
    else:
        start = values.mean().nan_to_num(posinf=0.0, neginf=0.0)
    residual = values.sub_(start)
    total = residual.sum()
    square = residual.square_().sum()
    count = values.numel()
    numbers = torch.stack([x.to(torch.float64) for x in (start, total, square, low, high)]).tolist()
    mean = numbers[0] + numbers[1] / count
    if not math.isfinite(mean):
        return Moments(count, mean, math.nan, numbers[3], numbers[4])
    return Moments(count, mean, max(numbers[2] - numbers[1] * numbers[1] / count, 0.0), numbers[3], numbers[4])
