"""How alike two streams of features are (CKA), and how alike the rows of one stream (mean cosine)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Return linear centred kernel alignment of paired rows (Kornblith et al. 2019).

    norm(C)^2 / (norm(A) norm(B)) with C the centred cross Gram, A and B the centred Grams, Frobenius norms.

    Args:
        x: ``[N, d]`` floating.
        y: ``[N, e]`` floating, the same positions in the same order.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 1.0]])
        >>> linear_cka(x, 5 * x + 1).round(decimals=9)
        tensor(1., dtype=torch.float64)
    """
    x, y = x.to(torch.float64), y.to(torch.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    return cka_from_grams(x.T @ x, y.T @ y, y.T @ x)


def cka_from_grams(gram_x: Tensor, gram_y: Tensor, cross: Tensor) -> Tensor:
    """Return linear CKA from centred sums: ``[d, d]``, ``[e, e]`` and ``[e, d]``; NaN if a stream does not vary."""
    scale = torch.linalg.norm(gram_x) * torch.linalg.norm(gram_y)
    return torch.where(scale > 0, cross.square().sum() / scale, math.nan)


def unbiased_hsic(sums: dict[str, Tensor], rows: int) -> Tensor:
    """Return the unbiased estimator of HSIC with linear kernels (Song et al. 2012), from sums over rows.

    Args:
        sums: with a = norm(x)^2 and b = norm(y)^2 of each row: ``xy`` = sum y x' ``[e, d]``, ``x``, ``y`` (sums),
            ``ay`` = sum a y ``[e]``, ``bx`` = sum b x ``[d]``, ``a``, ``b``, ``ab`` (scalars).
        rows: N, at least 4 for a value that is defined.
    """
    if rows < 4:
        return sums["ab"].new_full((), math.nan)
    t = sums["xy"].square().sum() - sums["ab"]
    k = sums["x"].square().sum() - sums["a"]
    m = sums["y"].square().sum() - sums["b"]
    both = sums["y"] @ sums["xy"] @ sums["x"] - sums["x"] @ sums["bx"] - sums["y"] @ sums["ay"] + sums["ab"]
    return (t + k * m / ((rows - 1) * (rows - 2)) - 2 * both / (rows - 2)) / (rows * (rows - 3))


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    """Return CKA from the unbiased HSIC: near 0 for unrelated streams however few the rows; NaN below 4 rows."""
    x, y = x.to(torch.float64), y.to(torch.float64)
    x, y = x - x.mean(0), y - y.mean(0)
    hsic = [unbiased_hsic(hsic_sums(p, q), len(x)) for p, q in ((x, y), (x, x), (y, y))]
    return debiased_ratio(*hsic)


def debiased_ratio(xy: Tensor, xx: Tensor, yy: Tensor) -> Tensor:
    """Return HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y)), NaN where the root is not positive."""
    return torch.where((xx > 0) & (yy > 0), xy / (xx * yy).sqrt(), math.nan)


def hsic_sums(x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Return the sums over rows that :func:`unbiased_hsic` needs, of ``[N, d]`` and ``[N, e]`` float64 rows."""
    a, b = x.square().sum(1), y.square().sum(1)
    return {
        "xy": y.T @ x,
        "x": x.sum(0),
        "y": y.sum(0),
        "ay": a @ y,
        "bx": b @ x,
        "a": a.sum(),
        "b": b.sum(),
        "ab": a @ b,
    }


def shifted_hsic_sums(sums: dict[str, Tensor], dx: Tensor, dy: Tensor, rows: int) -> dict[str, Tensor]:
    """Return what :func:`hsic_sums` gives for the rows x + dx and y + dy, from the sums alone.

    Args:
        sums: of x and y.
        dx: ``[d]``.
        dy: ``[e]``.
        rows: N.
    """
    x, y, xy = sums["x"], sums["y"], sums["xy"]
    x2, y2 = dx @ dx, dy @ dy
    a = sums["a"] + 2 * (dx @ x) + rows * x2
    b = sums["b"] + 2 * (dy @ y) + rows * y2
    ab = sums["ab"] + 2 * (dy @ sums["ay"]) + y2 * sums["a"] + 2 * (dx @ sums["bx"]) + 4 * (dy @ xy @ dx)
    ab = ab + 2 * y2 * (dx @ x) + x2 * sums["b"] + 2 * x2 * (dy @ y) + rows * x2 * y2
    return {
        "xy": xy + torch.outer(y, dx) + torch.outer(dy, x) + rows * torch.outer(dy, dx),
        "x": x + rows * dx,
        "y": y + rows * dy,
        "ay": sums["ay"] + 2 * (xy @ dx) + x2 * y + a * dy,
        "bx": sums["bx"] + 2 * (dy @ xy) + y2 * x + b * dx,
        "a": a,
        "b": b,
        "ab": ab,
    }


def mean_cosine(features: Tensor) -> Tensor:
    """Return the mean cosine over all pairs of rows, the anisotropy of the features (Ethayarajh 2019).

    Args:
        features: ``[N, d]`` floating; rows of length zero have no direction and are left out.

    Example:
        >>> import torch
        >>> mean_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))  # one pair of three is parallel
        tensor(0.3333, dtype=torch.float64)
    """
    x = features.to(torch.float64)
    lengths = torch.linalg.vector_norm(x, dim=1)
    unit = x[lengths > 0] / lengths[lengths > 0, None]
    return mean_cosine_from_sum(unit.sum(0), len(unit))


def mean_cosine_from_sum(unit_sum: Tensor, rows: int) -> Tensor:
    """Return the mean cosine from the sum ``[d]`` of N unit rows: (norm(sum)^2 - N) / (N (N - 1)); NaN for N < 2."""
    if rows < 2:
        return unit_sum.new_full((), math.nan)
    return (unit_sum.square().sum() - rows) / (rows * (rows - 1))
