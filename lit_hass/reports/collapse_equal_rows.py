"""Entropies of equally many rows of each state, as reports show them."""

from __future__ import annotations

from collections.abc import Sequence

from lit_hass.reports.collapse_run import CollapseSubject

#: What is shown, in this order; "answer" only beside several states of answers.
STREAMS = ("prompt", "answer", "accepted", "rejected", "bonus", "baseline")
_OF_ANSWERS = ("accepted", "bonus", "baseline")


def rows_in_common(subjects: Sequence[CollapseSubject]) -> int | None:
    """The largest number of rows of which every stream of every subject has an entropy; None without any.

    Streams of too few rows for any are left out of account.
    """
    sizes = [set(found) for subject in subjects for found in _streams(subject).values() if found]
    common = set.intersection(*sizes) if sizes else set()
    return max(map(int, common), default=None)


def streams_shown(subjects: Sequence[CollapseSubject]) -> list[str]:
    """The streams that a subject has an entropy of."""
    found = {name for subject in subjects for name, sizes in _streams(subject).items() if sizes}
    several = any(sum(bool(_streams(s).get(name)) for name in _OF_ANSWERS) > 1 for s in subjects)
    return [name for name in STREAMS if name in found and (name != "answer" or several)]


def normalized_of(subject: CollapseSubject, stream: str, rows: int) -> tuple[float, float, float] | None:
    """Normalised entropy of so many rows of a stream and the ends of its interval; None where there is none."""
    found = _streams(subject).get(stream, {}).get(str(rows)) or {}
    values = [found.get(f"normalized_{key}") for key in ("entropy", "low", "high")]
    return None if any(value is None for value in values) else (values[0], values[1], values[2])  # type: ignore[return-value]


def _streams(subject: CollapseSubject) -> dict[str, dict[str, dict[str, float | None]]]:
    return subject.metrics.get("equal_rows") or {}
