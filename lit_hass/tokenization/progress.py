"""Progress bars on the standard error, for whoever watches; nothing where nobody does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

#: Called with what is done so far.
Advance = Callable[[int], None]
#: ``with show("merging", total) as advance:``; the total is None where nobody knows it.
Show = Callable[[str, int | None], AbstractContextManager[Advance]]


@contextmanager
def quiet(what: str, total: int | None) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda done: None


@contextmanager
def bar(what: str, total: int | None) -> Iterator[Advance]:
    """Show a bar that is gone when the work is done; nothing where the standard error is no terminal."""
    with _bar(what, total, thread=True) as advance:
        yield advance


@contextmanager
def still_bar(what: str, total: int | None) -> Iterator[Advance]:
    """The same for what is timed: drawn when something is done and at no other moment, by no thread of its own."""
    with _bar(what, total, thread=False) as advance:
        yield advance


@contextmanager
def _bar(what: str, total: int | None, thread: bool) -> Iterator[Advance]:
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, auto_refresh=thread) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done, refresh=not thread)


def bars(total_bytes: int) -> Show:
    """Make a `Show` whose bar for reading knows how many bytes there are."""
    return lambda what, total: bar(what, total_bytes if what == "reading" else total)
