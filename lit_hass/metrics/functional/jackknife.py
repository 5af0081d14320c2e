"""How sure a ratio of sums over questions or documents is: a t interval that holds its level from five of them on.

The usual ways are too sure of themselves where there are few: the percentile bootstrap of 5 questions covers the truth
in about 80 of 100 cases, a normal interval of 12 documents in 87. Here the standard error is that of the jackknife,
which does not shrink where one unit weighs as much as all others; Student's t takes as many degrees of freedom as units
of equal weight would give (Kish 1965); and the side to which the units are skewed is stretched (Johnson 1978). The slow
test of this module simulates what that covers. numpy and scipy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

#: With fewer units nothing is said: whether they are typical, nobody can tell from so few.
FEWEST_UNITS = 5


def ratio_interval(
    columns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    weights: np.ndarray,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Interval of a smooth statistic of sums over independent units, best on a scale on which it is nearly normal.

    It says how the statistic would vary over other units of the same kind, and no more: what hits all of them alike (a
    machine's load, say) is not in it, nor is a rare kind of unit that is not among them.

    Args:
        columns: ``[U, C]`` floating, what each unit contributes to each of C sums. A unit is whatever is independent of
            the others: a question with all its turns, a document with all its tokens.
        statistic: takes sums ``[C]`` or ``[C, U]`` and returns a scalar or ``[U]``, such as the logarithm of a ratio.
        weights: ``[U]`` or ``[U, K]`` floating, not negative: what a unit weighs, in one or in several respects, of
            which the most uneven counts.
        level: share of intervals that shall hold the truth.

    Returns:
        Lower and upper bound; None with fewer than `FEWEST_UNITS`, or where the statistic has no finite value without
        one of the units.
    """
    columns = np.asarray(columns, dtype=np.float64)
    count = len(columns)
    if count < FEWEST_UNITS:
        return None
    sums = columns.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums))
        without = statistic((sums - columns).T)
    if not (math.isfinite(value) and np.isfinite(without).all()):
        return None
    # What each unit adds, to first order.
    parts = without.mean() - without
    error = math.sqrt((count - 1) / count * float(parts @ parts))
    if error == 0:
        return value, value
    from scipy.special import stdtrit  # here, because light verbs import this module

    shares = np.asarray(weights, dtype=np.float64).reshape(count, -1)
    equal = float((shares.sum(axis=0) ** 2 / (shares**2).sum(axis=0)).min())
    quantile = float(stdtrit(max(equal - 1, 1.0), (1 + level) / 2))
    skewness = float(np.mean(parts**3) / np.mean(parts**2) ** 1.5) * math.sqrt(count * (count - 1)) / (count - 2)
    stretch = skewness * error * (1 + 2 * quantile**2) / (6 * math.sqrt(count))
    return value - quantile * error + min(stretch, 0.0), value + quantile * error + max(stretch, 0.0)
