"""A comparison of two perplexity runs for the screen, as Markdown and on disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lit_hass.records import ensure_writable, write_json, write_text
from lit_hass.reports import markdown
from lit_hass.reports.perplexity_rows import NOTHING, bracketed, number
from lit_hass.reports.perplexity_tables import print_table, screen_table

#: On the screen without the last two.
COLUMNS = ("protocol / unit", "one", "other", "change", "95% interval", "ln ratio", "se")
EXPONENT_COLUMNS = ("from / to", "T/W", "one", "other", "gap, one", "gap, other")
#: What the marks in the first table mean.
LEGEND = (
    "[number]: what the protocol's original prints; (number): the same with a softmax in float32, where the original "
    "takes it in half precision and prints another. Change and its interval are paired: document by document, so that "
    "what makes a document hard for both models cancels."
)
#: What the second table shows.
EXPONENTS = "Method or model? Effective exponents, ln word PPL / ln token PPL, and the gap between the protocols"


def rows(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per protocol and unit, for `COLUMNS`."""
    found: list[tuple[str, ...]] = []
    for name, protocol in comparison["protocols"].items():
        for unit, values in protocol["units"].items():
            bounds = values["interval"]
            shown = NOTHING if bounds is None else f"{_percent(bounds[0] - 1)} – {_percent(bounds[1] - 1)}"
            numbers = [number(values["one"]), number(values["other"])]
            if protocol["printed"] == f"{unit}_ppl":
                marks = ({"original": original} for original in protocol["original"])
                numbers = [bracketed(values[run], mark) for run, mark in zip(("one", "other"), marks, strict=True)]
            logarithm = (f"{values['ln_ratio']:+.6f}", number(values["se"], 3))
            found.append((f"{name} / {unit}", *numbers, _percent(values["change"]), shown, *logarithm))
    return found


def exponent_rows(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per pair of protocols that both runs have, for `EXPONENT_COLUMNS`."""
    return [
        (
            f"{e['from']} / {e['to']}", number(e["tokens_per_word"]), number(e["one"]), number(e["other"]),
            _percent(e["gap_one"]), _percent(e["gap_other"]),
        )
        for e in comparison["exponents"]
    ]  # fmt: skip


def _percent(change: float | None) -> str:
    """A relative change; where it is a multiple, as one."""
    if change is None or math.isnan(change):
        return NOTHING
    return f"{change:+.2%}" if change < 10 else f"x {number(1 + change, 4)}"


def print_perplexity_comparison(comparison: dict[str, Any], console: Console) -> None:
    """Print a comparison (of `compare_perplexity`)."""
    runs = comparison["runs"]
    for name in ("one", "other"):
        console.print(Text(f"{name}: {runs[name]['path']} ({runs[name]['model']['base']})"))
    print_table(screen_table(COLUMNS[:-2], [row[:-2] for row in rows(comparison)]), console)
    console.print(Text(LEGEND, style="dim"))
    if comparison["exponents"]:
        console.print(Text(EXPONENTS))
        print_table(screen_table(EXPONENT_COLUMNS, exponent_rows(comparison)), console)
    for line in comparison["differences"]:
        console.print(Text(f"DIFFERENCE {line}", style="yellow"))
    for line in (*_undefined(comparison), *comparison["notes"]):
        console.print(Text(f"note: {line}"))


def to_markdown(comparison: dict[str, Any]) -> str:
    """The comparison as a Markdown page."""
    runs = comparison["runs"]
    parts = ["# Perplexity of two models"]
    named = [(n, markdown.code(runs[n]["path"]), markdown.text(runs[n]["model"]["base"])) for n in ("one", "other")]
    parts.append("\n".join(f"* {n}: {path} ({base})" for n, path, base in named))
    parts += [markdown.table(COLUMNS, rows(comparison), right=True), markdown.text(LEGEND)]
    if comparison["exponents"]:
        table = markdown.table(EXPONENT_COLUMNS, exponent_rows(comparison), right=True)
        parts += ["## Effective exponents", EXPONENTS + ".", table]
    lines = [f"difference: {line}" for line in comparison["differences"]]
    lines += [*_undefined(comparison), *comparison["notes"]]
    if lines:
        parts += ["## Notes", markdown.bullets(lines)]
    return "\n\n".join(parts) + "\n"


def _undefined(comparison: dict[str, Any]) -> list[str]:
    return [
        f"{name} / {unit} has no interval: {values['undefined']}"
        for name, protocol in comparison["protocols"].items()
        for unit, values in protocol["units"].items()
        if values["undefined"]
    ]


def write_perplexity_comparison(folder: Path, comparison: dict[str, Any]) -> list[Path]:
    """Write ``comparison.json`` and ``comparison.md``, each atomically.

    Raises:
        UserError: the folder cannot be written to.
        RunError: the disk is full or failed.
    """
    folder = ensure_writable(folder)
    write_json(folder / "comparison.json", comparison)
    write_text(folder / "comparison.md", to_markdown(comparison))
    return [folder / "comparison.json", folder / "comparison.md"]
