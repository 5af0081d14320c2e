"""A random number generator that gives the same numbers on every machine and in every version of Python.

``random.Random`` promises that only for ``random()``; ``choice`` and ``shuffle`` have changed before. Data that is
addressed by a seed must not change under a user's feet, so the few draws needed are defined here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

_MASK = (1 << 64) - 1


class SplitMix:
    """SplitMix64 (Steele, Lea and Flood 2014), seeded by any sequence of words and numbers.

    Args:
        parts: what the stream is for, such as ``("train", 1, 42)``; each different tuple is an independent stream.
    """

    def __init__(self, *parts: str | int) -> None:
        """See the class."""
        digest = hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).digest()
        self._state = int.from_bytes(digest[:8], "little")

    def bits(self) -> int:
        """The next 64 random bits as an unsigned integer."""
        self._state = (self._state + 0x9E3779B97F4A7C15) & _MASK
        z = self._state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)

    def below(self, n: int) -> int:
        """An integer in ``0 .. n - 1`` (multiply-shift; its bias is below ``n / 2**64``)."""
        return (self.bits() * n) >> 64

    def between(self, low: int, high: int) -> int:
        """An integer in ``low .. high``, both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100 draws; whole percents keep the arithmetic free of rounding."""
        return self.below(100) < percent

    def pick(self, options: Sequence[T]) -> T:
        """One of ``options``, each equally likely."""
        return options[self.below(len(options))]

    def weighted(self, options: Sequence[tuple[T, int]]) -> T:
        """One of ``(option, weight)`` pairs, in proportion to the whole-numbered weights."""
        at = self.below(sum(weight for _, weight in options))
        for option, weight in options:
            at -= weight
            if at < 0:
                return option
        raise ValueError("weights must be positive")

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """The items in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = self.below(i + 1)
            out[i], out[j] = out[j], out[i]
        return out
