"""What runs say of their answers, their speed and their resources, as rows of tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lit_hass.reports.collapse_run import ReportedRun
from lit_hass.reports.comparison_rows import number, share
from lit_hass.reports.html_page import NOTHING

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def statistics_rows(runs: Sequence[ReportedRun]) -> Table:
    """Headings and rows of what every ``statistics.json`` says; no rows without any."""
    found = {label: statistics for run in runs for label, statistics in run.statistics.items()}
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "questions answered": lambda s: f"{_get(s, 'questions', 'answered')} of {_get(s, 'questions', 'total')}",
        "exact match": lambda s: share(_get(s, "exact_match", "share")),
        "new tokens": lambda s: _plain(_get(s, "new_tokens", "total")),
        "tokens/s end to end": lambda s: number(_get(s, "tokens_per_second", "end_to_end"), 1),
        "tokens/s decoding only": lambda s: number(_get(s, "tokens_per_second", "decode_only"), 1),
        "tokens/CPU s end to end": lambda s: number(_get(s, "tokens_per_processor_second", "end_to_end"), 1),
        "tokens/CPU s decoding only": lambda s: number(_get(s, "tokens_per_processor_second", "decode_only"), 1),
        "load of the machine": lambda s: number(_get(s, "load", "mean"), 1),
        "acceptance length": lambda s: number(_get(s, "acceptance", "micro")),
    }
    return _table(found, rows)


def resource_rows(runs: Sequence[ReportedRun]) -> Table:
    """Headings and rows of what every ``resources.json`` says, rank by rank; no rows without any."""
    found = {}
    for run in runs:
        for rank in (run.resources or {}).get("ranks", []):
            found[" ".join(filter(None, (run.label, f"rank {rank['rank']}")))] = rank
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "device": lambda r: _plain(_get(r, "device", "name")),
        "host memory, peak": lambda r: _mebibytes(_get(r, "host", "peak_bytes")),
        "host memory, at the end": lambda r: _mebibytes(_get(r, "host", "current_bytes")),
        "device memory, peak": lambda r: _mebibytes(_get(r, "device", "peak_bytes")),
        "device memory, reserved": lambda r: _mebibytes(_get(r, "device", "peak_reserved_bytes")),
        "device utilisation, mean": lambda r: share(_get(r, "device", "mean_utilization"), 0),
        "processor time / wall time": lambda r: number(_get(r, "host", "mean_cpus")),
        "wall seconds": lambda r: number(r.get("seconds"), 1),
        "batches": lambda r: _plain(r.get("batches")),
        "tokens per wall second": lambda r: number(_get(r, "throughput", "tokens_per_second"), 1),
        "questions per wall second": lambda r: number(_get(r, "throughput", "questions_per_second")),
    }
    return _table(found, rows)


def _table(found: dict[str, dict[str, Any]], rows: dict[str, Callable[[dict[str, Any]], str]]) -> Table:
    if not found:
        return ("",), []
    shown = [(label, *map(of, found.values())) for label, of in rows.items()]
    return ("", *found), [row for row in shown if any(cell != NOTHING for cell in row[1:])]


def _get(source: dict[str, Any], *keys: str) -> Any:
    value: Any = source
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _mebibytes(value: float | None) -> str:
    return NOTHING if value is None else f"{value / 2**20:.0f} MiB"


def _plain(value: object) -> str:
    return NOTHING if value is None else str(value)
