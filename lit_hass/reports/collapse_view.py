"""Collapse reports for the screen and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_hass.reports import markdown
from lit_hass.reports.collapse_comparability import Statement, verdict_texts
from lit_hass.reports.collapse_rows import (
    collapse_rows,
    columns,
    error_texts,
    legend_texts,
    note_texts,
    undefined_texts,
)
from lit_hass.reports.collapse_run import CollapseSubject
from lit_hass.reports.screen import Screen

_LEVEL_STYLES = {"comparable": "green", "with care": "yellow", "not comparable": "red"}
#: Reasons for undefined values that the screen shows; all are in the files.
_MOST_REASONS = 6


def print_collapse(
    subjects: Sequence[CollapseSubject], statements: Sequence[Statement], console: Console | None = None
) -> None:
    """Print the figures as a table, and what may be compared.

    Args:
        subjects: the columns.
        statements: of the two subjects, where there are two.
        console: where to; the screen by default.
    """
    console = console or Screen()
    table = Table(title="Representation collapse", title_justify="left", box=None)
    for i, column in enumerate(columns(subjects)):
        # As Text: brackets in a path are no markup.
        table.add_column(Text(column), justify="right" if i else "left", no_wrap=i == 0, overflow="fold")
    rows = collapse_rows(subjects, statements)
    for row in rows:
        cells = [row.label, *row.cells, *([row.difference] if len(subjects) == 2 else [])]
        table.add_row(*map(Text, cells))
    console.print(table)
    for line in legend_texts(rows):
        console.print(Text(line))
    for level, line in verdict_texts(statements):
        console.print(Text(line, style=_LEVEL_STYLES[level]))
    for line in note_texts(subjects):
        console.print(Text(f"note: {line}"))
    undefined = undefined_texts(subjects)
    for line in undefined[:_MOST_REASONS]:
        console.print(Text(f"undefined: {line}"))
    if len(undefined) > _MOST_REASONS:
        console.print(Text(f"undefined: and {len(undefined) - _MOST_REASONS} more reasons, see the page"))
    for line in error_texts(subjects):
        console.print(Text(line, style="bold red"))


def to_markdown(subjects: Sequence[CollapseSubject], statements: Sequence[Statement] = ()) -> str:
    """The same as Markdown."""
    head = columns(subjects)
    found = collapse_rows(subjects, statements)
    rows = [(row.label, *row.cells, *([row.difference] if len(subjects) == 2 else [])) for row in found]
    notes = [
        *legend_texts(found),
        *(line for _, line in verdict_texts(statements)),
        *note_texts(subjects),
        *(f"undefined: {line}" for line in undefined_texts(subjects)),
        *error_texts(subjects),
    ]
    table = markdown.table(head, rows, right=True)
    return "\n\n".join([table, *([markdown.bullets(notes)] if notes else [])]) + "\n"
