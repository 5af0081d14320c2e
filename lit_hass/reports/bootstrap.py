"""Uncertainty of ratios of sums, by resampling whole questions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Drawn indices held at once; 8 bytes each.
_CHUNK = 4_000_000


def bootstrap_interval(
    columns: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float] | None:
    """Percentile bootstrap of a statistic of sums over questions.

    A question is drawn with everything that belongs to it, so figures of two methods stay paired. The same number of
    questions, resamples and seed draw the same questions.

    Args:
        columns: ``[Q, C]`` float64, what each question contributes to each of C sums.
        statistic: takes sums ``[C, resamples]`` and returns ``[resamples]``.
        resamples: how many times Q questions are drawn with replacement.
        seed: of the draws.
        level: share of the resampled values between the bounds.

    Returns:
        Lower and upper bound; None with fewer than 2 questions, or where a resample has no finite value.

    Raises:
        ValueError: ``resamples`` is less than 1.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, found {resamples}")
    count = len(columns)
    if count < 2:
        return None
    generator = np.random.default_rng(seed)
    sums = []
    for begin in range(0, resamples, chunk := max(1, _CHUNK // count)):
        drawn = generator.integers(0, count, size=(min(chunk, resamples - begin), count))
        # A column at a time: [resamples, Q, C] at once would be C times the memory.
        sums.append(np.stack([column[drawn].sum(axis=1) for column in columns.T]))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = statistic(np.concatenate(sums, axis=1))
    if not np.isfinite(values).all():
        return None
    low, high = np.quantile(values, ((1 - level) / 2, (1 + level) / 2))
    return float(low), float(high)
