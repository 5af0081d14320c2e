"""Lengths, limits and memory for the screen."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_hass.reports.lengths_recommendation import USABLE, context_text, show_bytes

_COLUMNS = ("count", "mean", "p50", "p95", "p99", "p99.9", "max", "cut_rate")


def print_lengths(report: dict[str, Any], console: Console) -> None:
    """Print the distributions, and the three lines that the original printed."""
    console.print(Text(f"tokens of {report['file']}"), soft_wrap=True)
    table = Table(box=None)
    for name in ("", "n", *_COLUMNS[1:-1], "cut"):
        table.add_column(name, justify="right" if name else "left")
    for name, figures in report["lengths"].items():
        if figures["count"]:
            cells = [f"{figures[key]:.1f}" if key == "mean" else f"{figures[key]:.0f}" for key in _COLUMNS[:-1]]
            # Whether a text was cut is a question of what was generated.
            generated = name == "answer" and (report["limit"] is not None or figures["cut_rate"])
            cut = f"{figures['cut_rate']:.1%}" if generated else ""
            table.add_row(name, *cells, cut)
    console.print(table)
    if report["shot_tokens"]:
        console.print(Text(f"{report['shot_tokens']} tokens of each prompt are examples"))
    if report["answers_from"]:
        console.print(Text(f"answers from {report['answers_from']}"))
    for note in report["notes"]:
        console.print(Text(f"note: {note}"))
    original = report["original"]
    console.print(Text(f"maximum total tokens: {original['max_total']}"))
    generated = original["max_generated"]
    console.print(Text(f"maximum generated tokens: {'no answers' if generated is None else generated}"))


def print_recommendation(report: dict[str, Any], console: Console) -> None:
    """Print the limits, what they cut, what padding costs, and the memory by what it is for."""
    found = report["recommendation"]
    limits = f"prompt {found['prompt_budget']}"
    if found["gen_length"] is not None:
        limits += f" + gen_length {found['gen_length']} = max_length {found['max_length']}"
    context = "" if report["context"] is None else f" ({context_text(report)})"
    console.print(Text(f"covering {report['coverage']:.5g} of them: {limits}{context}", style="bold"))
    padding = report["padding"]
    sizes = f"{padding['batch_size']}"
    console.print(
        Text(
            f"padding of prompts: {padding['max_length']:.1%} at a fixed {found['max_length']}, "
            f"{padding['longest']:.1%} at the longest of all, {padding['batches']:.1%} in batches of {sizes} as they "
            f"come, {padding['sorted']:.1%} in batches sorted by length"
        )
    )
    memory = report["memory"]
    if memory is None:
        return
    table = Table(show_header=False, box=None)
    table.add_column()
    table.add_column(justify="right")
    for name, value in memory["terms"].items():
        table.add_row(name.replace("_", " "), show_bytes(value))
    table.add_row("total", show_bytes(memory["total"]), style="bold")
    console.print(Text(f"memory of a batch of {found['batch_size']}, {memory['dtype']}, {memory['model']}:"))
    console.print(table)
    fits = f"{memory['largest_batch']} rows fit into {USABLE:.0%} of {show_bytes(memory['budget'])}"
    more = f"; there are {found['batch_size']}" if found["batch_size"] < memory["largest_batch"] else ""
    console.print(Text(f"batch_size {found['batch_size']}: {fits}{more}", style="bold"))
    verified = memory.get("verified")
    if verified is not None:
        console.print(Text(verified["text"], style="bold"))
