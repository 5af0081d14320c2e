"""Markdown in which texts of files stay texts: no HTML, no links, no tables of their own. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lit_hass.terminal import one_line

_SPECIAL = re.compile(r"([\\`*\[\]|])")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def text(value: object) -> str:
    """A value as it may stand in a line or a cell: what Markdown or HTML would read is escaped, breaks are spaces."""
    escaped = _SPECIAL.sub(r"\\\1", "".join(_HTML.get(character, character) for character in str(value)))
    return one_line(escaped, limit=len(escaped)).strip()


def code(value: object) -> str:
    """A value in a code span, whatever backticks it has."""
    shown = one_line(str(value), limit=len(str(value)))
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if "`" in shown else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], right: bool = False) -> str:
    """A table of plain texts.

    Args:
        columns: headings.
        rows: cells.
        right: whether all columns but the first are aligned to the right.
    """
    lines = ["| " + " | ".join(text(cell) or " " for cell in row) + " |" for row in (columns, *rows)]
    rest = "---:|" if right else "---|"
    return "\n".join([lines[0], "|---|" + rest * (len(columns) - 1), *lines[1:]])


def bullets(lines: Iterable[str]) -> str:
    """A list of plain texts."""
    return "\n".join(f"* {text(line)}" for line in lines)
