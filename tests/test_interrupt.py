"""Ctrl-C leaves no lock behind."""

import os
import queue
import signal
import threading
import time

import pytest

from lit_hass.interrupt import interruptible


def _ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0)  # the handler runs between two instructions


class _Interrupted(queue.Queue[int]):
    """Ctrl-C comes while it is locked and before it has counted the item."""

    def _put(self, item: int) -> None:
        super()._put(item)
        # This file is none of those that take locks; the frame that called it is.
        _ctrl_c()


@pytest.fixture(autouse=True)
def _default_handler():
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def test_python_alone_breaks_the_queue():
    """What this module is for: an item that was put and never counted, so that ``join`` would not wait for it."""
    items = _Interrupted()
    with pytest.raises(KeyboardInterrupt):
        items.put(1)
    assert items.qsize() == 1 and items.unfinished_tasks == 0


def test_a_queue_is_left_whole():
    items = _Interrupted()
    done = False
    with pytest.raises(KeyboardInterrupt), interruptible():
        items.put(1)
        done = True
        time.sleep(10)
    assert done and items.unfinished_tasks == 1 and not items.mutex.locked()


def test_anything_else_is_interrupted_at_once():
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), interruptible():
        _ctrl_c()
        time.sleep(10)
    assert time.monotonic() - start < 5


def test_a_second_one_does_not_wait():
    event = threading.Event()  # waiting for it is code of threading, for ever
    pressed = []

    def press() -> None:
        for _ in range(2):
            time.sleep(0.3)
            pressed.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt), interruptible():
        event.wait(20)
    assert len(pressed) == 2


def test_it_takes_no_handler_from_others():
    for other in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, other)
        with interruptible():
            assert signal.getsignal(signal.SIGINT) == other
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with interruptible():
        assert signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
