"""A comparison for the screen and as Markdown."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_hass.reports import markdown
from lit_hass.reports.comparison_rows import (
    CATEGORY_COLUMNS,
    FIGURE_COLUMNS,
    category_rows,
    difference_texts,
    figure_rows,
    headline,
    number,
    verdict,
)
from lit_hass.reports.screen import Screen

#: Differing answers that Markdown lists.
_MOST_DIVERGENCES = 20


def print_comparison(comparison: dict[str, Any], console: Console | None = None) -> None:
    """Print a comparison (of `compare_runs`) as a table; differences and a loss are printed loudly."""
    console = console or Screen()
    runs = comparison["runs"]
    # As Text: brackets in a path are no markup.
    title = Text(f"{runs['hass']['path']} against {runs['baseline']['path']}")
    table = Table(title=title, title_justify="left", box=None)
    for column in FIGURE_COLUMNS:
        table.add_column(column, justify="right" if column else "left", no_wrap=not column)
    for row in figure_rows(comparison):
        table.add_row(*row)
    console.print(table)
    for line in difference_texts(comparison):
        console.print(Text(f"DIFFERENCE {line}", style="yellow"))
    loud = {True: "green", False: "bold red", None: "yellow"}[comparison["lossless"]]
    console.print(Text(verdict(comparison), style=loud))
    console.print(Text(headline(comparison), style="bold"))
    for note in comparison["notes"]:
        console.print(Text(f"note: {note}"))


def to_markdown(comparison: dict[str, Any]) -> str:
    """The comparison as a Markdown page, without the plot's file: it lies beside it as ``comparison.png``."""
    runs = comparison["runs"]
    joined = comparison["joined"]
    parts = [
        "# Draft against baseline",
        f"**{markdown.text(headline(comparison))}**",
        f"**{markdown.text(verdict(comparison))}**",
        f"{markdown.code(runs['hass']['path'])} against {markdown.code(runs['baseline']['path'])}: "
        f"{joined['questions']} questions, {joined['turns']} answers.",
        markdown.table(FIGURE_COLUMNS, figure_rows(comparison)),
        "![speed and acceptance](comparison.png)",
    ]
    if comparison["differences"]:
        parts += ["## Differences", markdown.bullets(difference_texts(comparison))]
    if comparison["notes"]:
        parts += ["## Notes", markdown.bullets(comparison["notes"])]
    if comparison["categories"]:
        parts += ["## By category", markdown.table(CATEGORY_COLUMNS, category_rows(comparison))]
    if divergences := comparison["agreement"]["divergences"]:
        columns = ("question", "choice", "turn", "first differing token", "baseline", "hass", "gap of logits")
        rows = [
            (str(d["question_id"]), str(d["choice"]), str(d["turn"]), str(d["index"]), str(d["baseline_token"]),
             str(d["hass_token"]), number(d["gap"], 6))
            for d in divergences[:_MOST_DIVERGENCES]
        ]  # fmt: skip
        parts += ["## Differing answers", markdown.table(columns, rows)]
        if len(divergences) > len(rows):
            parts.append(f"and {len(divergences) - len(rows)} more in `comparison.json`.")
    return "\n\n".join(parts) + "\n"
