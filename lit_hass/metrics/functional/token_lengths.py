"""Token lengths as a histogram of whole numbers, from which every figure about them is exact. numpy only.

A histogram has one bin per length up to a cap and one for all that is longer. Histograms of parts add up to the
histogram of the whole, whatever the parts are: batches, epochs, ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

#: How a data set is cut into batches: as its rows happen to come, or sorted by length.
Order = Literal["random", "sorted"]

#: Lengths up to this have a bin of their own, where nothing else is said.
CAP = 16384


@dataclass(frozen=True)
class LengthHistogram:
    """How often each length occurs, and what follows from it.

    Lengths are in tokens. A *cut* length is that of an answer which hit its limit: all that is known of its true length
    is that it is no less (it is right-censored). What is undefined is NaN; what lies beyond the cap is infinite, never
    the cap.

    Attributes:
        ended: ``[cap + 2]`` int64, how many texts of each length ended by themselves; the last bin is for longer ones.
        cut: ``[cap + 2]`` int64, the same of those that were cut.
        total: sum of all lengths.
        longest: the greatest of them, 0 without any.
        batched: sum of the lengths of which it is known how they were padded.
        cells: tokens and padding of their batches.
    """

    ended: np.ndarray
    cut: np.ndarray
    total: int
    longest: int
    batched: int = 0
    cells: int = 0

    @classmethod
    def of(cls, lengths: Any, cut: Sequence[bool] | np.ndarray | None = None, cap: int = CAP) -> LengthHistogram:
        """Count lengths.

        Args:
            lengths: any sequence of whole numbers, 0 or more.
            cut: for each of them, whether it was cut; None is none.
            cap: the greatest length with a bin of its own.

        Raises:
            ValueError: a length is negative or not whole, or there are not as many ``cut`` as lengths.
        """
        values, is_cut = check_lengths(lengths, cut)
        return cls(
            ended=count_lengths(values[~is_cut], cap),
            cut=count_lengths(values[is_cut], cap),
            total=int(values.sum()),
            longest=int(values.max(initial=0)),
        )

    @property
    def cap(self) -> int:
        """The greatest length with a bin of its own."""
        return len(self.ended) - 2

    @property
    def counts(self) -> np.ndarray:
        """``[cap + 2]`` int64 of all lengths, cut or not."""
        return self.ended + self.cut

    @property
    def n(self) -> int:
        """How many lengths were counted."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / self.n if self.n else math.nan

    @property
    def cut_rate(self) -> float:
        """The share that was cut."""
        return int(self.cut.sum()) / self.n if self.n else math.nan

    def percentile(self, q: float) -> float:
        """The smallest length that at least the share ``q`` of all lengths does not exceed.

        It is ``numpy.quantile(lengths, q, method="inverted_cdf")``, cut lengths taken as they are.

        Returns:
            a whole number; infinity beyond the cap; NaN without lengths.

        Raises:
            ValueError: ``q`` is no share.
        """
        return _percentile(self.counts, self.n, q)

    def coverage_length(self, coverage: float) -> float:
        """The smallest length that at least the share ``coverage`` of the *true* lengths does not exceed.

        A cut length counts as longer than any: with more than ``1 - coverage`` cut there is no such length to be known.

        Returns:
            as `percentile`; infinity also where too many were cut.
        """
        return _percentile(self.ended, self.n, coverage)

    def truncation_rate(self, length: int) -> float:
        """The share of texts longer than ``length``; NaN where that is beyond the cap and cannot be known."""
        if not self.n:
            return math.nan
        if length >= self.longest:
            return 0.0
        if length > self.cap:
            return math.nan
        return int(self.counts[max(length, -1) + 1 :].sum()) / self.n

    @property
    def observed_waste(self) -> float:
        """The share of padding in the batches as they really were; NaN where no batch's padding is known."""
        return 1 - self.batched / self.cells if self.cells else math.nan

    def fixed_waste(self, length: int) -> float:
        """The share of padding when every text is padded, or cut, to ``length``."""
        if not self.n or length < 1 or (length > self.cap and self.longest > self.cap):
            return math.nan
        lengths = np.minimum(np.arange(self.cap + 2), length)
        return 1 - int((self.counts * lengths).sum()) / (self.n * length)

    def batch_waste(self, batch_size: int, order: Order = "random") -> float:
        """The share of padding when each batch is padded to its longest text.

        Args:
            batch_size: texts per batch; the last batch has what is left.
            order: ``"sorted"``: batches of neighbours in length. ``"random"``: the expected padded size, over all
                orders, goes into the share (a batch is a random subset, so the expectation of its maximum is exact).

        Returns:
            NaN without lengths, or where some are beyond the cap.

        Raises:
            ValueError: no such order, or a batch of less than one.
        """
        if order not in get_args(Order) or batch_size < 1:
            raise ValueError(f"order is one of {get_args(Order)} and batch_size at least 1: {order!r}, {batch_size}")
        if not self.total or self.counts[-1]:
            return math.nan
        sizes = [batch_size] * (self.n // batch_size) + ([rest] if (rest := self.n % batch_size) else [])
        if order == "sorted":
            # Longest first, so that the batch with what is left has the shortest.
            lengths = np.repeat(np.arange(self.cap + 2), self.counts)[::-1]
            starts = np.cumsum([0, *sizes[:-1]])
            cells = float((lengths[starts] * np.array(sizes)).sum())
        else:
            cells = sum(size * self._expected_longest(size) * sizes.count(size) for size in set(sizes))
        return 1 - self.total / cells

    def _expected_longest(self, size: int) -> float:
        """Of ``size`` of the lengths, drawn without replacement: the sum over L of P(longest > L)."""
        below = np.cumsum(self.counts)[: self.longest]  # [L] = how many are at most L, for L < longest
        # C(below, size) / C(n, size), as logarithms: the numbers themselves have thousands of digits.
        shares = np.zeros(len(below))
        enough = below >= size
        log_all = math.lgamma(self.n + 1) - math.lgamma(self.n - size + 1)
        log_below = [math.lgamma(b + 1) - math.lgamma(b - size + 1) for b in below[enough]]
        shares[enough] = np.exp(np.array(log_below) - log_all)
        return float((1 - shares).sum())

    def summary(self) -> dict[str, float]:
        """``count, mean, p50, p95, p99, p99.9, max, cut_rate, padding_waste`` (the observed one)."""
        return {
            "count": float(self.n),
            "mean": self.mean,
            **{f"p{100 * q:g}": self.percentile(q) for q in (0.5, 0.95, 0.99, 0.999)},
            "max": float(self.longest) if self.n else math.nan,
            "cut_rate": self.cut_rate,
            "padding_waste": self.observed_waste,
        }


def show_length(value: float, cap: int) -> str:
    """A percentile for people: ``117``, ``> 16384`` beyond the cap, a dash where it is undefined."""
    if math.isnan(value):
        return "–"
    return f"> {cap}" if math.isinf(value) else f"{value:.0f}"


def check_lengths(lengths: Any, cut: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """The lengths as ``[n]`` int64, and ``[n]`` bool, which of them were cut.

    Raises:
        ValueError: see `LengthHistogram.of`.
    """
    values = np.asarray(lengths)
    if values.size == 0:
        values = np.zeros(0, dtype=np.int64)
    if values.ndim != 1 or values.dtype.kind not in "iu" or (values.size and values.min() < 0):
        raise ValueError("lengths must be a sequence of whole numbers, 0 or more")
    is_cut = np.zeros(len(values), dtype=bool) if cut is None else np.asarray(cut, dtype=bool)
    if is_cut.shape != values.shape:
        raise ValueError(f"cut has {is_cut.size} entries for {values.size} lengths")
    return values.astype(np.int64), is_cut


def count_lengths(lengths: np.ndarray, cap: int) -> np.ndarray:
    """``[cap + 2]`` int64: how often each of 0 .. cap occurs in ``[n]`` int64, and how many are longer."""
    return np.bincount(np.minimum(lengths, cap + 1), minlength=cap + 2).astype(np.int64)


def _percentile(counts: np.ndarray, n: int, q: float) -> float:
    if not 0 <= q <= 1:
        raise ValueError(f"a share from 0 to 1 is expected, found {q}")
    if not n:
        return math.nan
    reached = np.cumsum(counts[:-1]) >= max(1, math.ceil(q * n))
    return float(reached.argmax()) if reached.any() else math.inf
