"""A perplexity report for the screen and as Markdown."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.text import Text

from lit_hass.reports import markdown
from lit_hass.reports.perplexity_rows import (
    COUNT_COLUMNS,
    LADDER_COLUMNS,
    LEGEND,
    RESULT_COLUMNS,
    about_lines,
    answer,
    count_rows,
    ladder_rows,
    result_rows,
    warning_lines,
)
from lit_hass.reports.perplexity_tables import print_table, screen_table
from lit_hass.reports.screen import Screen


def print_perplexity(report: dict[str, Any], console: Console | None = None) -> None:
    """Print a report (of `perplexity_report`): protocols by units, the ladder, one line that says why, warnings."""
    console = console or Screen()
    for line in about_lines(report):
        console.print(Text(line))
    print_table(screen_table(RESULT_COLUMNS, result_rows(report)), console)
    print_table(screen_table(COUNT_COLUMNS, count_rows(report)), console)
    console.print(Text(LEGEND, style="dim"))
    if rows := ladder_rows(report):
        summary = report["ladder_summary"]
        console.print()
        console.print(Text(f"From {summary['from']} to {summary['to']}, one change at a time"))
        print_table(screen_table(LADDER_COLUMNS, rows, wrap=True), console)
    if why := answer(report):
        console.print(Text(why, style="bold"))
    for line in warning_lines(report):
        console.print(Text(f"warning: {line}", style="yellow"))


def to_markdown(report: dict[str, Any], picture: str | None = None) -> str:
    """The report as a Markdown page.

    Args:
        report: of `perplexity_report`.
        picture: file name of the ladder's plot beside it; None has none.
    """
    parts = ["# Perplexity", markdown.bullets(about_lines(report))]
    if why := answer(report):
        parts.append(f"**{markdown.text(why)}**")
    parts += [
        markdown.table(RESULT_COLUMNS, result_rows(report), right=True),
        markdown.table(COUNT_COLUMNS, count_rows(report), right=True),
        markdown.text(LEGEND),
    ]
    if rows := ladder_rows(report):
        summary = report["ladder_summary"]
        parts += [
            f"## From {markdown.text(summary['from'])} to {markdown.text(summary['to'])}, one change at a time",
            markdown.table(LADDER_COLUMNS, rows, right=True),
            "The contributions depend on the order of the changes, which is the table's.",
        ]
        if picture:
            parts.append(f"![ladder]({picture})")
    if lines := warning_lines(report):
        parts += ["## Warnings", markdown.bullets(lines)]
    parts.append("## Protocols")
    for name, protocol in report["protocols"].items():
        card = json.dumps(protocol["card"], ensure_ascii=False)
        parts.append(
            f"* {markdown.code(name)} ({markdown.text(protocol['about'])}), "
            f"fingerprint {markdown.code(protocol['fingerprint'])}: {markdown.code(card)}"
        )
    return "\n\n".join(parts) + "\n"
