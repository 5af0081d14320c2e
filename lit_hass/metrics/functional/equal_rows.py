"""Entropies of unlike numbers of rows on one footing: those of equally many rows, drawn from each.

The entropy of n rows grows with n until these are many, also over its bound, so that 562 rows and 44 of one model
differ by their number alone. The mean over draws of m rows does not depend on n; what it would be of other rows is told
by an interval (Shao and Wu, "A general theory for jackknife variance estimation", 1989: the spread of draws without
replacement, times m / (n - m), is the variance of their mean).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_hass.metrics.functional.group_entropies import small_gram_eigenvalues
from lit_hass.metrics.functional.spectrum import (
    ENTROPY_EPS,
    Base,
    bounded_entropy,
    check_entropy_settings,
    entropy_bound,
)

#: Numbers of rows that are drawn: few, so that several streams have one in common.
EQUAL_ROWS = (16, 24, 32, 48, 64, 96, 128, 256)
#: Of the rows that there are, no more are drawn: what is left out tells how uncertain the mean is.
_MOST_OF_ALL = 0.8
_DRAWS = 64
_Z = 1.959963984540054


@dataclass(frozen=True)
class DrawnEntropy:
    """The SVD entropy that so many rows of a stream have.

    Attributes:
        rows: m.
        entropy: mean over draws of m rows without replacement; NaN where it is undefined for one of them.
        low: lower end of the 95% interval for the expected entropy of m rows, if the stream's rows are independent
            draws. Rows of one text are not: between texts it varies more.
        high: upper end.
        bound: what it can be at most, see :func:`~lit_hass.metrics.functional.spectrum.entropy_bound`.
    """

    rows: int
    entropy: float
    low: float
    high: float
    bound: float


def drawn_entropies(
    features: Tensor,
    sizes: Sequence[int] = EQUAL_ROWS,
    *,
    power: int = 1,
    center: bool = False,
    base: Base = "e",
    eps: float = ENTROPY_EPS,
    draws: int = _DRAWS,
) -> list[DrawnEntropy]:
    """Return the entropies of fewer rows than there are.

    Args:
        features: ``[N, d]`` floating; computed in float64. Their order decides the draws, which are always the same.
        sizes: how many rows to draw; those above 0.8 N are left out.
        power: see :func:`~lit_hass.metrics.functional.spectrum.spectral_entropy`, as the three after it.
        center: likewise.
        base: likewise.
        eps: likewise.
        draws: how many of each size.

    Raises:
        UserError: a setting that does not exist.
    """
    check_entropy_settings(power, base)
    n, d = features.shape
    wanted = [m for m in sizes if 2 <= m <= _MOST_OF_ALL * n]
    if not wanted:
        return []
    x = features.to(torch.float64)
    squares = x.square().sum(1)
    if center:  # that of each draw is taken away from it; this one costs the Gram matrix no digits
        x = x - x.mean(0)
    whole = x @ x.T if min(wanted) <= d else None
    chance = torch.Generator().manual_seed(0)
    found = []
    for m in wanted:
        chosen = torch.rand(draws, n, generator=chance).argsort(1)[:, :m].to(x.device)
        gram = _drawn_columns(x, chosen, center) if whole is None or m > d else _drawn_rows(whole, chosen, center)
        counts = torch.full((draws,), m, device=x.device)
        values = small_gram_eigenvalues(gram, counts, d, center, squares[chosen].sum(1))
        entropies, _ = bounded_entropy(values, counts, d, power, center, base, eps)
        mean, variance = float(entropies.mean()), float(entropies.var())
        reach = _Z * math.sqrt(variance * (m / (n - m) + 1 / draws))
        bound = float(entropy_bound(m, d, center, base))
        found.append(DrawnEntropy(m, mean, max(mean - reach, 0.0), min(mean + reach, bound), bound))
    return found


def _drawn_rows(whole: Tensor, chosen: Tensor, center: bool) -> Tensor:
    """Return the Gram matrices ``[b, m, m]`` of rows drawn ``[b, m]`` out of that of all of them."""
    gram = whole[chosen[:, :, None], chosen[:, None, :]]
    if not center:
        return gram
    means = gram.mean(2, keepdim=True)
    return gram - means - means.transpose(1, 2) + means.mean(1, keepdim=True)


def _drawn_columns(x: Tensor, chosen: Tensor, center: bool) -> Tensor:
    """Return the Gram matrices ``[b, d, d]`` of the columns of rows drawn ``[b, m]``."""
    rows = x[chosen]
    if center:
        rows = rows - rows.mean(1, keepdim=True)
    return rows.transpose(1, 2) @ rows
