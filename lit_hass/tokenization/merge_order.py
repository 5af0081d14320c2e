"""Which pair is merged next: by frequency from a heap, by the other criteria from arrays.

Ties go to the pair whose strings come first, so that the order depends on nothing but the counts.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np

from lit_hass.tokenization.word_symbols import Pair, WordSymbols

#: See `train_wordpiece`.
Score = Literal["frequency", "pmi", "likelihood"]
# Scores this close, relative to their size, are a tie: processors round the last digits of a logarithm differently.
_TIE = 1e-12


def merges(words: WordSymbols, score: Score, min_frequency: int) -> Iterator[Pair]:
    """Yield the next pair to merge; the caller merges nothing itself.

    Args:
        words: changed by every step.
        score: the criterion.
        min_frequency: pairs that are rarer are never merged.

    Yields:
        each merged pair, until none is left that may be merged.
    """
    return _by_frequency(words, min_frequency) if score == "frequency" else _by_array(words, score, min_frequency)


def _by_frequency(words: WordSymbols, min_frequency: int) -> Iterator[Pair]:
    """A heap whose entries may be too high: a count falls silently and is looked up again when its turn comes."""
    symbols, pairs = words.symbols, words.pairs
    heap = [(-count, symbols[a], symbols[b], (a, b)) for (a, b), count in pairs.items() if count >= min_frequency]
    heapq.heapify(heap)
    while heap:
        negative, first, second, pair = heapq.heappop(heap)
        count = pairs.get(pair, 0)
        if count != -negative:
            # A count that rose has an entry of its own already.
            if min_frequency <= count < -negative:
                heapq.heappush(heap, (-count, first, second, pair))
            continue
        new, changed = words.merge(pair)
        for one in changed:
            # Only pairs with the new symbol can have become more.
            if new in one and (count := pairs.get(one, 0)) >= min_frequency:
                heapq.heappush(heap, (-count, symbols[one[0]], symbols[one[1]], one))
        yield pair


def _by_array(words: WordSymbols, score: Score, min_frequency: int) -> Iterator[Pair]:
    """All pairs scored anew for every merge: a unit that becomes rarer raises the scores of all its pairs."""
    table = _PairTable(words, min_frequency)
    while True:
        pair = table.best(score)
        if pair is None:
            return
        _, changed = words.merge(pair)
        table.update(changed, pair)
        yield pair


class _PairTable:
    """The pairs that may be merged, as arrays with room to grow; a pair keeps its row, a rare one has count 0."""

    def __init__(self, words: WordSymbols, min_frequency: int) -> None:
        self._words, self._min = words, min_frequency
        self._rows: dict[Pair, int] = {}
        self._pairs: list[Pair] = []
        self._count, self._left, self._right = (np.zeros(1024, dtype=np.int64) for _ in range(3))
        self._units = np.zeros(1024, dtype=np.float64)
        self._total = 0
        for symbol in words.units:
            self._set_unit(symbol)
        self._set(words.pairs)

    def best(self, score: Score) -> Pair | None:
        """The pair with the highest score; None where none may be merged."""
        n = len(self._pairs)
        count = self._count[:n].astype(np.float64)
        possible = count > 0
        if not possible.any():
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            lift = count / (self._units[self._left[:n]] * self._units[self._right[:n]])
            scores = np.where(possible, count * np.log(lift * self._total) if score == "pmi" else lift, -np.inf)
        top = float(scores.max())
        if not math.isfinite(top) or (score == "pmi" and top <= 0):
            return None
        ties = np.nonzero(scores >= top - abs(top) * _TIE)[0]
        symbols = self._words.symbols
        return min((self._pairs[i] for i in ties), key=lambda pair: (symbols[pair[0]], symbols[pair[1]]))

    def update(self, changed: Iterable[Pair], merged: Pair) -> None:
        """Take over what a merge changed."""
        for symbol in {*merged, self._words.intern(self._words.merged(merged))}:
            self._set_unit(symbol)
        self._set(changed)

    def _set_unit(self, symbol: int) -> None:
        self._units = _grown(self._units, symbol)
        count = self._words.units[symbol]
        # Every merge makes one unit of two, so the sum of all units falls.
        self._total += count - int(self._units[symbol])
        self._units[symbol] = count

    def _set(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            count = self._words.pairs.get(pair, 0)
            row = self._rows.get(pair)
            if row is None:
                if count < self._min:
                    continue
                row = self._rows[pair] = len(self._pairs)
                self._pairs.append(pair)
                self._count, self._left, self._right = (_grown(a, row) for a in (self._count, self._left, self._right))
                self._left[row], self._right[row] = pair
            self._count[row] = count if count >= self._min else 0


def _grown(array: np.ndarray[Any, Any], index: int) -> np.ndarray[Any, Any]:
    """The array, doubled until it has the index."""
    while index >= len(array):
        array = np.concatenate([array, np.zeros_like(array)])
    return array
