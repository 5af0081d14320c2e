"""Rows of text as tables for the screen."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
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
        whole = i > 0 or not wrap
        width = max(map(cell_len, (column, *(row[i] for row in rows)))) if whole else None
        table.add_column(column, justify="right" if i else "left", no_wrap=whole, min_width=width)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def print_table(table: Table, console: Console) -> None:
    """Print a table that is broken or made wider than the screen before a figure in it is cut short."""
    needed = Measurement.get(console, console.options.update(width=1000), table).minimum
    console.print(table, width=max(console.width, needed), overflow="ignore", crop=False)
