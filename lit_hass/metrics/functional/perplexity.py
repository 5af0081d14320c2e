"""Perplexity in its units, and how sure it is, from sums of negative log-likelihoods. numpy and scipy only.

One evaluation of a text yields a total ``S`` (nats) over ``T`` scored tokens; the text has ``W`` words and ``B`` bytes.
Every published number is a function of these four. The sampling unit of all uncertainties here is the document, because
tokens of one document depend on each other (a ratio estimator, as in Cochran, *Sampling Techniques*, chapter 6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_hass.metrics.functional.jackknife import ratio_interval


def exp(value: float) -> float:
    """``e`` to a power; infinite where it has no float64, NaN of NaN."""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


def ratio(total: float, count: float) -> float:
    """``total / count``; NaN where nothing was counted."""
    return total / count if count else math.nan


def perplexity(nll: float, count: float) -> float:
    """``exp(S / count)``: per token, word or byte, whatever is counted; NaN where nothing was, inf beyond float64."""
    return exp(ratio(nll, count))


def bits(nll: float, count: float) -> float:
    """``S / (count ln 2)``: bits per token or per byte; NaN where nothing was counted."""
    return ratio(nll, count) / math.log(2)


@dataclass(frozen=True)
class Estimate:
    """A mean in nats and its uncertainty.

    Attributes:
        mean: ``sum S_d / sum w_d``, the logarithm of a perplexity or of a ratio of two.
        standard_error: of the mean; NaN with fewer than two documents.
        documents: how many documents it is of.
        interval: 95 % bounds of ``exp(mean)`` over documents (`lit_hass.metrics.functional.jackknife`); None where
            there are too few of them, or a sum is not finite.
    """

    mean: float
    standard_error: float
    documents: int
    interval: tuple[float, float] | None = None


def ratio_estimate(sums: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Mean of sums by weight, with the standard error of a ratio over documents.

    ``R = sum S_d / sum w_d`` and ``se = sqrt(n / (n - 1) * sum (S_d - R w_d)^2) / sum w_d``. Two of these to
    either side are no interval of 95 %: few documents of unlike lengths need the wider one that comes with it.

    Args:
        sums: S_d of each document, nats.
        weights: w_d of each document: its words, bytes or scored tokens. Documents without weight and without a sum
            are no documents.

    Raises:
        ValueError: the two differ in length.
    """
    pairs = [(s, w) for s, w in zip(sums, weights, strict=True) if w or s]
    total = math.fsum(w for _, w in pairs)
    mean = ratio(math.fsum(s for s, _ in pairs), total)
    n = len(pairs)
    if n < 2 or not total:
        return Estimate(mean, math.nan, n)
    squares = math.fsum((s - mean * w) ** 2 for s, w in pairs)
    columns = np.array(pairs, dtype=np.float64)
    bounds = ratio_interval(columns, lambda found: found[0] / found[1], columns[:, 1])
    interval = None if bounds is None else (exp(bounds[0]), exp(bounds[1]))
    return Estimate(mean, math.sqrt(n / (n - 1) * squares) / total, n, interval)


def paired_estimate(one: Sequence[float], other: Sequence[float], weights: Sequence[float]) -> Estimate:
    """Difference of two models on the same documents, ``other - one`` in nats per weight, with its standard error.

    What makes a document hard for both cancels, so this is the only fair comparison of two models: its standard error
    is often a hundred times smaller than that of either model alone. ``exp`` of it is the ratio of the perplexities.

    Args:
        one: S_d of the first model.
        other: S_d of the second.
        weights: w_d, the same for both.

    Raises:
        ValueError: they differ in length.
    """
    differences = [b - a for a, b in zip(one, other, strict=True)]
    return ratio_estimate(differences, weights)


@dataclass(frozen=True)
class GapParts:
    """Why two perplexities of one model differ, in nats; the parts add up to the total.

    Attributes:
        total: ``ln(other / one)``.
        unit: what the unit alone does: ``a (T / W - 1)`` with ``a = ln one``.
        rest: everything else (text form, windows, special tokens), in the other's unit.
    """

    total: float
    unit: float
    rest: float


def unit_gap(token_ppl: float, unit_ppl: float, tokens_per_unit: float) -> GapParts:
    """Divide the gap between a token perplexity and a word (or byte) perplexity into the unit and the rest.

    Args:
        token_ppl: of the one protocol, per token.
        unit_ppl: of the other, per word or byte.
        tokens_per_unit: the other's scored tokens over its words or bytes.
    """
    one, other = math.log(token_ppl), math.log(unit_ppl)
    unit = one * (tokens_per_unit - 1)
    return GapParts(other - one, unit, tokens_per_unit * (other / tokens_per_unit - one))
