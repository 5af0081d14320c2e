"""CPU time of things that take turns."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

Action = Callable[[], object]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep ``tokenizers`` to one thread: CPU time adds up over threads, and ours has one."""
    names = ("TOKENIZERS_PARALLELISM", "RAYON_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def take_turns(
    actions: Sequence[tuple[Action, Action]],
    repeats: int,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[float]]:
    """Time actions in turn, backwards every other time, so that a noisy moment meets them all.

    Args:
        actions: (prepare, run) of each; only ``run`` is timed.
        repeats: passes of each.
        progress: called with the number of passes done.

    Returns:
        the CPU seconds of each action's passes; the garbage collector is off meanwhile.
    """
    seconds: list[list[float]] = [[] for _ in actions]
    collecting = gc.isenabled()
    gc.disable()
    done = 0
    try:
        for turn in range(repeats):
            order = list(zip(seconds, actions, strict=True))
            for times, (prepare, run) in order if turn % 2 == 0 else reversed(order):
                prepare()
                start = time.process_time()
                run()
                times.append(time.process_time() - start)
                done += 1
                progress(done)
    finally:
        if collecting:
            gc.enable()
    return seconds
