"""Runs as the collapse report reads them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records import read_object
from lit_hass.records.shapes import ALL, AMOUNT, COUNT, SHARE, TEXT, misfit
from lit_hass.reports.collapse_analysis import CollapseAnalyzer
from lit_hass.reports.collapse_earlier import up_to_date
from lit_hass.reports.statistics_shape import check_statistics

#: The metrics of a run, and what is made of them.
METRICS_FILE, REPORT_FILE = "collapse_metrics.json", "collapse_report.json"
#: What a run that was stopped leaves instead, each process its own.
_PARTIAL_FILES = "collapse_metrics.partial*.json"
#: The page of a run.
PAGE = "report.html"
#: Written by `ResourceMonitor`.
RESOURCES_FILE = "resources.json"
#: Folders of the methods in a run of ``evaluate``; "" is the run's own.
_PARTS = ("", "baseline", "hass")
#: What every comparison has.
_OF_COMPARISON = frozenset({"runs", "joined", "headline", "lossless", "speed", "acceptance", "agreement", "questions"})


_RESOURCES = {
    "ranks": [
        {
            "rank": COUNT,
            "device": {"name": TEXT, "mean_utilization": SHARE, "peak_bytes": COUNT, "peak_reserved_bytes": COUNT},
            "host": {"peak_bytes": COUNT, "current_bytes": COUNT, "mean_cpus": AMOUNT},
            "throughput": {ALL: AMOUNT},
            "seconds": AMOUNT,
            "batches": COUNT,
        }
    ]
}


@dataclass(frozen=True)
class CollapseSubject:
    """Collapse metrics of one run, or of one method in it.

    Attributes:
        label: short, and different from that of the others it stands beside.
        path: the folder.
        metrics: what the collector found.
        analysis: of `CollapseAnalyzer`.
    """

    label: str
    path: Path
    metrics: dict[str, Any]
    analysis: dict[str, Any]

    def value(self, name: str, scope: str = "overall") -> float | None:
        """A value of the family; None where it is undefined or was not measured."""
        return ((self.metrics.get("family") or {}).get(scope) or {}).get(name)

    def reason(self, name: str, scope: str = "overall") -> str | None:
        """Why a value is undefined, where that is recorded."""
        return ((self.metrics.get("undefined") or {}).get(scope) or {}).get(name)

    @property
    def meta(self) -> dict[str, Any]:
        """Model, question file, versions; empty where nobody wrote it down."""
        return self.metrics.get("meta") or {}

    @property
    def unfinished(self) -> bool:
        """Whether the run was stopped, and these are the questions until then."""
        return self.meta.get("complete", True) is False

    @property
    def settings(self) -> dict[str, Any]:
        """How it was measured; empty where nobody wrote it down."""
        return self.metrics.get("settings") or {}


@dataclass(frozen=True)
class ReportedRun:
    """What a run left that a report shows.

    Attributes:
        path: as it was named.
        subjects: its collapse metrics; in a run of ``evaluate`` those of both methods.
        comparison: its ``comparison.json``.
        statistics: ``statistics.json`` by label.
        resources: ``resources.json``.
        label: short, and different from that of the others it stands beside; empty where it stands alone.
    """

    path: Path
    subjects: list[CollapseSubject]
    comparison: dict[str, Any] | None = None
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    resources: dict[str, Any] | None = None
    label: str = ""


def read_runs(paths: Sequence[str | os.PathLike[str]]) -> list[ReportedRun]:
    """Read run folders.

    Raises:
        UserError: a folder is not there, is named twice, holds nothing to report, or one of its files is broken; names
            it.
    """
    if not paths:
        raise UserError("no run to report on")
    names = [Path(path) for path in paths]
    places = [path.resolve() for path in names]
    for i, path in enumerate(names):
        if places[i] in places[:i]:
            raise UserError(f"{path}: is named twice, and a run has nothing to be compared with in itself")
    several = len(names) > 1
    return [_read_run(path, label) for path, label in zip(names, _labels(names) if several else [""], strict=True)]


def _read_run(path: Path, label: str) -> ReportedRun:
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder")
    subjects, statistics = [], {}
    for part in _PARTS:
        folder = path / part
        own = "/".join(filter(None, (label, part))) or path.resolve().name
        subjects += _read_subjects(folder, own)
        found = read_object(folder / "statistics.json")
        if found is not None:
            check_statistics(folder / "statistics.json", found)
            statistics[own] = found
    comparison = read_object(path / "comparison.json")
    if comparison is not None and not _OF_COMPARISON <= comparison.keys():
        missing = ", ".join(sorted(_OF_COMPARISON - comparison.keys()))
        raise UserError(
            f"{path / 'comparison.json'}: is no comparison that compare or evaluate wrote, it has no {missing}"
        )
    resources = read_object(path / RESOURCES_FILE)
    ranks = [] if resources is None else resources.get("ranks")
    if not isinstance(ranks, list) or not all(isinstance(rank, dict) and "rank" in rank for rank in ranks):
        raise UserError(f"{path / RESOURCES_FILE}: holds no resources that ResourceMonitor wrote")
    if fault := misfit(resources, _RESOURCES):
        raise UserError(f"{path / RESOURCES_FILE}: {fault}")
    if not subjects and not statistics and comparison is None and resources is None:
        raise UserError(
            f"{path}: holds nothing to report (no {METRICS_FILE}, statistics.json, comparison.json or {RESOURCES_FILE})"
        )
    return ReportedRun(path, subjects, comparison, statistics, resources, label)


def _read_subjects(folder: Path, label: str) -> list[CollapseSubject]:
    whole = folder / METRICS_FILE
    files = [whole] if whole.exists() else sorted(folder.glob(_PARTIAL_FILES))
    subjects = []
    for path in files:
        metrics = read_object(path)
        try:
            analysis = CollapseAnalyzer().analyze_collapse_metrics(metrics or {})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        process = path.name.removeprefix("collapse_metrics.partial").removesuffix(".json").lstrip(".")
        own = label if path == whole else f"{label} ({' of '.join(filter(None, ('part', process)))})"
        subjects.append(CollapseSubject(own, folder, up_to_date(metrics or {}), analysis))
    return subjects


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different."""
    parts = [path.resolve().parts for path in paths]
    length = next(n for n in range(1, max(map(len, parts)) + 1) if len({each[-n:] for each in parts}) == len(parts))
    return ["/".join(each[-length:]) for each in parts]
