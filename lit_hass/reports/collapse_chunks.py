"""How the entropy of the features moves along a text: the original's pattern, and one that lengths cannot fake."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lit_hass.metrics.functional.decline import decline_pattern

Numbers = Sequence[float | None]


def analyze_sequence(sequence: dict[str, Any]) -> dict[str, Any]:
    """Judge one sequence of the metrics' ``chunks``.

    The entropy of n rows is at most the logarithm of min(n, d), so chunks of unequal length rise or fall by themselves.
    The corrected fall is that of the normalised entropies, times the mean of both chunks' bounds: the same unit, and
    the same limits for its pattern.

    Returns:
        ``id``, ``choice``, ``turn``, ``length``, ``entropies``, ``normalized``, ``first_minus_last`` and ``pattern`` as
        they came, ``corrected_first_minus_last`` (None where undefined) and ``corrected_pattern``.
    """
    entropies, normalized = sequence.get("entropies") or [], sequence.get("normalized") or []
    fall = corrected_fall(entropies, normalized)
    return {
        "id": sequence.get("question_id"),
        **{key: sequence.get(key) for key in ("choice", "turn", "length")},
        "entropies": entropies,
        "normalized": normalized,
        "first_minus_last": sequence.get("first_minus_last"),
        "pattern": sequence.get("pattern", "undefined"),
        "corrected_first_minus_last": fall,
        "corrected_pattern": pattern_of(fall),
    }


def corrected_fall(entropies: Numbers, normalized: Numbers) -> float | None:
    """Fall from the first chunk to the last as if both had the same bound; None where undefined."""
    if len(entropies) < 2 or len(entropies) != len(normalized):
        return None
    first, last = normalized[0], normalized[-1]
    if first is None or last is None:
        return None
    # An entropy of 0 does not tell its bound; the other chunk's does for both.
    bounds = [e / n for e, n in ((entropies[0], first), (entropies[-1], last)) if e is not None and n]
    return (first - last) * sum(bounds) / len(bounds) if bounds else 0.0


def pattern_of(fall: float | None) -> str:
    """The original scripts' name for a fall; ``"undefined"`` for None."""
    return decline_pattern(math.nan if fall is None else fall)


def analyze_chunks(chunk_metrics: dict[str, Any] | None, sequences: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Summarise the chunks of all sequences.

    Args:
        chunk_metrics: of the metrics: means over the sequences; None where chunks were not measured.
        sequences: of `analyze_sequence`.

    Returns:
        The original's keys ``num_chunks``, ``avg_svd_entropy``, ``std_svd_entropy``, ``chunk_entropies`` and
        ``collapse_pattern`` (of the fall of the mean entropies); beside them ``first_minus_last``,
        ``normalized_entropies`` (means over the sequences), ``corrected_first_minus_last`` (mean over the sequences),
        ``corrected_pattern``, ``sequences``, ``sequences_undefined`` and how many of them have which pattern.
    """
    if chunk_metrics is None:
        return None
    entropies = list(chunk_metrics.get("chunk_svd_entropies") or [])
    both = len(entropies) > 1 and entropies[0] is not None and entropies[-1] is not None
    fall = entropies[0] - entropies[-1] if both else None
    falls = [s["corrected_first_minus_last"] for s in sequences if s["corrected_first_minus_last"] is not None]
    corrected = sum(falls) / len(falls) if falls else None
    return {
        "num_chunks": chunk_metrics.get("num_chunks", len(entropies)),
        "avg_svd_entropy": chunk_metrics.get("avg_svd_entropy"),
        "std_svd_entropy": chunk_metrics.get("std_svd_entropy"),
        "chunk_entropies": entropies,
        "collapse_pattern": pattern_of(fall),
        "first_minus_last": fall,
        "normalized_entropies": _column_means([s["normalized"] for s in sequences]),
        "corrected_first_minus_last": corrected,
        "corrected_pattern": pattern_of(corrected),
        "sequences": len(sequences),
        "sequences_undefined": sum(s["pattern"] == "undefined" for s in sequences),
        "patterns": dict(Counter(s["pattern"] for s in sequences).most_common()),
        "corrected_patterns": dict(Counter(s["corrected_pattern"] for s in sequences).most_common()),
    }


def _column_means(rows: Sequence[Numbers]) -> list[float | None]:
    """Means of the numbers that are there, chunk by chunk."""
    width = max((len(row) for row in rows), default=0)
    columns = [[row[k] for row in rows if k < len(row)] for k in range(width)]
    known = [[value for value in column if value is not None] for column in columns]
    return [sum(values) / len(values) if values else None for values in known]
