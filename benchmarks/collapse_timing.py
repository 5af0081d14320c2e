"""How the benchmarks of the collapse metrics take CPU time: interleaved, medians, of this process alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence


def interleaved(actions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median CPU seconds of each action; they take turns, so that a noisy moment meets them all."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats):
        for found, action in zip(times, actions, strict=True):
            start = time.process_time()
            action()
            found.append(time.process_time() - start)
    return [statistics.median(found) for found in times]


def report(what: str, ours: float, theirs: float, opponent: str, wanted: float) -> None:
    """Print one comparison."""
    print(f"{what}: {ours:.4g} s, {opponent}: {theirs:.4g} s, ratio {theirs / ours:.1f} (wanted: {wanted:g} or more)")
