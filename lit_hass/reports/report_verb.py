"""``lit-hass report``: what runs left, as one page and on the screen. Needs neither torch nor Lightning."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_hass.errors import EXIT_OK
from lit_hass.records import ensure_writable
from lit_hass.reports.collapse_comparability import comparability, verdict_texts
from lit_hass.reports.collapse_files import write_page
from lit_hass.reports.collapse_run import PAGE, ReportedRun, read_runs
from lit_hass.reports.collapse_view import print_collapse
from lit_hass.reports.comparison_rows import headline, verdict
from lit_hass.reports.run_rows import resource_rows, statistics_rows
from lit_hass.reports.screen import Screen

log = logging.getLogger(__name__)


def report(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments or the runs cannot be used.
        RunError: the page cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass report",
        description="Show what runs left: representation collapse (runs with configs/callbacks/collapse.yaml, and "
        "evaluate), the comparison of draft and baseline, speed, memory. Several runs stand side by side, and what may "
        "be compared is said.",
        epilog="exit status: 0 done; 2 a run cannot be read",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder of a run")
    parser.add_argument(
        "--out", help="the page (default: RUN/report.html; of several runs, side_by_side.html in the last one)"
    )
    options = parser.parse_args(args)
    runs = read_runs(options.runs)
    name = PAGE if len(runs) == 1 else "side_by_side.html"
    out = Path(options.out) if options.out else runs[-1].path / name
    ensure_writable(out.parent)
    write_page(out, runs)
    console = Screen()
    with console.capture() as text:
        print_runs(runs, console)
    sys.stdout.write(text.get())
    sys.stdout.flush()
    log.info("wrote %s", out)
    return EXIT_OK


def print_runs(runs: list[ReportedRun], console: Console) -> None:
    """Print what the runs left."""
    for run in runs:
        if run.comparison is not None:
            console.print(Text(f"{run.path}: {verdict(run.comparison)} {headline(run.comparison)}", style="bold"))
    subjects = [subject for run in runs for subject in run.subjects]
    if subjects:
        print_collapse(subjects, comparability(*subjects) if len(subjects) == 2 else [], console)
    if len(subjects) > 2:
        for other in subjects[1:]:
            for level, line in verdict_texts(comparability(subjects[0], other)):
                if level != "comparable":
                    console.print(Text(f"{other.label} against {subjects[0].label}: {line}", style="yellow"))
    for title, (head, rows) in (("Answers and speed", statistics_rows(runs)), ("Resources", resource_rows(runs))):
        if rows:
            console.print(_table(title, head, rows))


def _table(title: str, head: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for i, column in enumerate(head):
        table.add_column(Text(column), justify="right" if i else "left", no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
