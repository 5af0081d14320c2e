"""Ctrl-C that leaves no lock behind.

Python raises `KeyboardInterrupt` between any two instructions, also right behind the one that took a lock and before
the ``with`` that would give it back. A run that is interrupted there, in the queue of its TensorBoard writer for one,
waits for itself for ever when it closes that writer. So the exception waits until no such code is under way.
"""

import _thread
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

#: Packages whose code takes locks in our process, by their first name.
_LOCKING = frozenset({"logging", "multiprocessing", "queue", "rich", "tensorboard", "threading"})
_AGAIN_SECONDS = 0.02


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Within it the first Ctrl-C raises `KeyboardInterrupt` as soon as no lock can be held, a further one at once.

    Does nothing outside of the main thread, and where SIGINT is ignored or somebody else's.
    """
    mine = threading.current_thread() is threading.main_thread()
    if not mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    handler = _Handler()
    signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handler:  # Lightning may have set another for its shutdown
            signal.signal(signal.SIGINT, signal.default_int_handler)


class _Handler:
    def __init__(self) -> None:
        self._waits = False  # for the code under way
        self._own = False  # whether the next signal is our own reminder
        self._main = threading.get_ident()

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._own or not self._waits:
            self._own = False
            if _locking(frame):
                self._waits = True
                _thread.start_new_thread(self._remind, ())  # threading.Timer would take locks itself
                return
        self._waits = False
        raise KeyboardInterrupt

    def _remind(self) -> None:
        time.sleep(_AGAIN_SECONDS)
        if self._waits:
            self._own = True
            signal.pthread_kill(self._main, signal.SIGINT)  # a real one: it also ends a wait


def _locking(frame: FrameType | None) -> bool:
    """Whether code that takes locks is under way."""
    while frame is not None:
        if frame.f_globals.get("__name__", "").split(".", 1)[0] in _LOCKING:
            return True
        frame = frame.f_back
    return False
