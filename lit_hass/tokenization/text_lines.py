"""Reading a file or the standard input line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path


def read_lines(name: str, errors: str = "strict") -> Iterator[str]:
    r"""Read UTF-8 text; lines end in ``\n`` or ``\r\n`` and are given without.

    Args:
        name: of the file; ``-`` is the standard input.
        errors: as for `open`.

    Raises:
        FileNotFoundError: there is no such file, or no standard input.
        IsADirectoryError: it is a folder.
        ValueError: not UTF-8, with file, line and byte.
    """
    if name == "-":
        if sys.stdin is None:  # closed by who called, as with <&-
            raise FileNotFoundError("standard input: closed")
        yield from _lines(sys.stdin.buffer, "standard input", errors)
        return
    path = Path(name)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no such file")
    if path.is_dir():
        raise IsADirectoryError(f"{name}: a folder; name a file")
    with path.open("rb") as file:
        yield from _lines(file, name, errors)


def _lines(file: Iterator[bytes], name: str, errors: str) -> Iterator[str]:
    at = 0
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8", errors)
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}:{number}: not UTF-8 ({error.reason} at byte {at + error.start})") from error
        at += len(line)
        yield text.removesuffix("\n").removesuffix("\r")
