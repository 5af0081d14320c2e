"""Rows of text as tables: for the screen and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text


def screen_table(columns: Sequence[str], rows: Sequence[Sequence[str]], wrap: bool = False) -> Table:
    """A table without lines, the first column to the left.

    Args:
        columns: headings.
        rows: cells; nothing in them is markup.
        wrap: whether the first column may be broken where the screen is narrow.
    """
    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=i > 0 or not wrap)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same in Markdown."""
    lines = ["| " + " | ".join(map(_cell, row)) + " |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(columns) - 1), *lines[1:]])


def _cell(text: str) -> str:
    for sign in "|*[]":
        text = text.replace(sign, "\\" + sign)
    return text.strip() or " "
