"""Text from files and command lines on its way to a terminal: nothing in it may steer the terminal or flood it."""

from __future__ import annotations

import re

#: Characters of one message, and of one name in it; what is longer is cut in its middle.
MAX_MESSAGE, MAX_SHOWN = 2000, 200

# Control characters (escape sequences begin with one), what turns the writing direction, halves of surrogate pairs.
_STEERS = "\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_CONTROL = re.compile(f"[\x00-\x0a{_STEERS}]")
_CONTROL_BUT_LINES = re.compile(f"[\x00-\x08{_STEERS}]")
_LINE_BREAKS = re.compile("\r?\n|[\r\t\u2028\u2029]")


def control_in(text: str) -> str | None:
    r"""The first character that would steer a terminal, as its escape such as ``\x1b``; None without one."""
    found = _CONTROL.search(text)
    return None if found is None else _escape(found)


def one_line(text: str, limit: int = MAX_MESSAGE) -> str:
    r"""A message in one line: line breaks become spaces, what steers a terminal its escape, the middle is cut.

    Args:
        text: anything.
        limit: the most characters.
    """
    return _CONTROL.sub(_escape, _LINE_BREAKS.sub(" ", shorten(text, limit)))


def printable(text: str) -> str:
    r"""Text of several lines for a terminal: ``\n`` and tabs stay, and so does its length."""
    return _CONTROL_BUT_LINES.sub(_escape, text)


def shorten(text: str, limit: int = MAX_SHOWN) -> str:
    """A text, its middle left out where it is longer than ``limit``."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[:half]}...{text[len(text) - half :]}"


def _escape(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]
