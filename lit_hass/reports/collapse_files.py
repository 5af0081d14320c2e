"""Writing collapse metrics and what is made of them into a run's folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_hass.records import ensure_writable, write_json, write_text
from lit_hass.reports.collapse_analysis import CollapseAnalyzer
from lit_hass.reports.collapse_run import METRICS_FILE, REPORT_FILE, ReportedRun, read_runs


def write_collapse_report(
    folder: str | os.PathLike[str], metrics: dict[str, Any], config: object | None = None
) -> dict[str, Any]:
    """Write ``collapse_metrics.json`` and ``collapse_report.json``, each atomically.

    Args:
        folder: made if need be.
        metrics: of the collector.
        config: see `CollapseAnalyzer`.

    Returns:
        The analysis.

    Raises:
        UserError: the folder cannot be written to, or these are no collapse metrics.
        RunError: the disk is full or failed.
    """
    folder = ensure_writable(folder)
    write_json(Path(folder) / METRICS_FILE, metrics)
    return CollapseAnalyzer(config).generate_report(metrics, Path(folder) / REPORT_FILE)


def write_page(path: str | os.PathLike[str], runs: Sequence[ReportedRun] | str | os.PathLike[str]) -> None:
    """Write the page of some runs, atomically.

    Args:
        path: the file.
        runs: as they were read, or the folder of one.

    Raises:
        UserError: the folder cannot be written to, or the run cannot be read.
        RunError: the disk is full or failed.
    """
    # Only here: loading matplotlib takes longer than reading the runs.
    from lit_hass.reports.collapse_page import runs_to_html

    if isinstance(runs, str | os.PathLike):
        runs = read_runs([runs])
    write_text(path, runs_to_html(runs))
