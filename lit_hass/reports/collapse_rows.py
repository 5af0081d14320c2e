"""The figures of collapse reports as words, the same on the screen and in HTML."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from lit_hass.reports.collapse_comparability import (
    CHUNKS,
    CKA,
    CLASSES,
    EQUAL_ROWS,
    NORMALISED,
    SPECTRA,
    TOKENS,
    Statement,
)
from lit_hass.reports.collapse_equal_rows import normalized_of, rows_in_common, streams_shown
from lit_hass.reports.collapse_run import CollapseSubject
from lit_hass.reports.html_page import NOTHING

#: Stands for a difference of figures that are not comparable.
NOT_COMPARABLE = "n/c"
#: Stands for a difference that is nothing but rounding.
ROUNDING = "≈ 0"
_LEGENDS = {
    NOT_COMPARABLE: "no difference is shown of what is not comparable",
    ROUNDING: "less than a millionth of the figure: forwards of other shapes round differently",
}

_OF_EQUAL_ROWS = (
    "normalised, so many rows: the mean over draws of that many rows of each, by which states are comparable (over all "
    "their rows they are not: entropies grow with the rows); ± is its 95% interval if rows are independent"
)

#: Label -> (topic, name in the family, scope).
_FAMILY = {
    "SVD entropy": (SPECTRA, "svd_entropy/overall", "overall"),
    "· of prompts": (SPECTRA, "svd_entropy/overall", "prompt"),
    "· of answers": (SPECTRA, "svd_entropy/overall", "answer"),
    "· of answers, normalised": (NORMALISED, "svd_entropy/normalized", "answer"),
    "effective rank": (SPECTRA, "rank/raw/effective_rank", "overall"),
    "mean cosine of rows": (SPECTRA, "anisotropy/mean_cosine", "overall"),
}
_CLASS_FAMILY = {
    "GNC2 (mean)": ("gnc2/mean", "overall"),
    "· of prompts": ("gnc2/mean", "prompt"),
    "· of answers": ("gnc2/mean", "answer"),
    "UNC3 (cov_abs)": ("unc3/cov_abs", "overall"),
    "· of prompts ": ("unc3/cov_abs", "prompt"),
    "· of answers ": ("unc3/cov_abs", "answer"),
    "NC1 (CDNV)": ("nc1/cdnv", "overall"),
    "NC2 (ETF error)": ("nc2/etf_error", "overall"),
    "NC3 (mean cosine)": ("nc3/cos_mean", "overall"),
    "NC4 (agreement)": ("nc4/agreement", "overall"),
}
#: Relative differences up to here are float64's own, and float32's: a tree's forward is no token by token's.
_EXACT, _ROUNDED = 1e-13, 1e-6
_SCOPES = ("prompt", "answer")
_STATES = ("prompt", "accepted", "rejected", "bonus", "baseline")
#: Counters of rows that no metric saw, and what they are called.
_EXCLUDED = {
    "n_special": "special tokens",
    "n_ignored": "ignored targets",
    "n_nonfinite": "not finite",
    "n_dropped_rows": "lost to failures",
    "n_left_out_states": "of states not asked for",
    "questions_failed": "failed questions",
    "questions_without_features": "questions without features",
}


class CollapseRow(NamedTuple):
    """One figure of all subjects."""

    label: str
    cells: tuple[str, ...]
    difference: str = ""


def columns(subjects: Sequence[CollapseSubject]) -> tuple[str, ...]:
    """Headings of `collapse_rows`."""
    return ("", *(subject.label for subject in subjects), *(("difference",) if len(subjects) == 2 else ()))


def collapse_rows(subjects: Sequence[CollapseSubject], statements: Sequence[Statement]) -> list[CollapseRow]:
    """The main table.

    Args:
        subjects: its columns.
        statements: of `comparability`, where there are two; a difference of what is not comparable is not shown.
    """
    parted = any(not any(_is_empty(subject, scope) for scope in _SCOPES) for subject in subjects)
    barred = {statement.topic for statement in statements if statement.level == "not comparable"}

    def row(label: str, topic: str, of: Callable[[CollapseSubject], float | None]) -> CollapseRow:
        values = [of(subject) for subject in subjects]
        return CollapseRow(label.rstrip(), tuple(map(figure, values)), _difference(values, topic in barred))

    def words(label: str, of: Callable[[CollapseSubject], Any]) -> CollapseRow:
        return CollapseRow(label, tuple(_word(of(subject)) for subject in subjects))

    def of_family(label: str, topic: str, name: str, scope: str) -> list[CollapseRow]:
        # Undefined is shown; what nobody measured is not, nor a scope of all rows or none (texts have no answers).
        if scope in _SCOPES and not parted and topic != CKA:
            return []
        measured = any(name in ((s.metrics.get("family") or {}).get(scope) or {}) for s in subjects)
        return [row(label, topic, lambda s: s.value(name, scope))] if measured else []

    rows = [
        words("rows measured", lambda s: s.metrics.get("total_tokens")),
        words("token classes, of those seen", _classes),
        *(r for label, found in _FAMILY.items() for r in of_family(label, *found)),
        row("SVD entropy per token", TOKENS, lambda s: s.analysis["summary"]["avg_svd_entropy"]),
        row("· spread over tokens", TOKENS, lambda s: s.analysis["summary"]["std_svd_entropy"]),
        *(
            _with_rows(row(f"{state}, normalised (rows)", NORMALISED, _of_state(state)), state, subjects)
            for state in _STATES
            if any(((s.metrics.get("states") or {}).get(state) or {}).get("rows") for s in subjects)
        ),
        *_equal_rows(subjects, EQUAL_ROWS in barred),
        *(r for label, found in _CLASS_FAMILY.items() for r in of_family(label, CLASSES, *found)),
        *of_family("draft and base, CKA", CKA, "cka/linear", "answer"),
        *of_family("· debiased", CKA, "cka/debiased", "answer"),
        row("fall along the text", CHUNKS, lambda s: _chunk(s, "first_minus_last")),
        words("· pattern", lambda s: _plain(_chunk(s, "collapse_pattern"))),
        row("· equal lengths", CHUNKS, lambda s: _chunk(s, "corrected_first_minus_last")),
        words("· pattern at equal lengths", lambda s: _plain(_chunk(s, "corrected_pattern"))),
        words("left out", _excluded),
    ]
    return rows


def _equal_rows(subjects: Sequence[CollapseSubject], barred: bool) -> Iterable[CollapseRow]:
    """The states again, by as many rows of each: what is compared with each other."""
    rows = rows_in_common(subjects)
    if rows is None:
        return
    for stream in streams_shown(subjects):
        found = [normalized_of(subject, stream, rows) for subject in subjects]
        cells = tuple(NOTHING if x is None else f"{figure(x[0])} ±{max(x[0] - x[1], x[2] - x[0]):.4f}" for x in found)
        middle = [None if x is None else x[0] for x in found]
        yield CollapseRow(f"{stream}, normalised, {rows} rows", cells, _difference(middle, barred))


def legend_texts(rows: Sequence[CollapseRow]) -> list[str]:
    """What the signs in the column of differences mean, where there are any."""
    shown = {row.difference for row in rows}
    found = [f"{sign}: {meaning}" for sign, meaning in _LEGENDS.items() if sign in shown]
    return [*found, _OF_EQUAL_ROWS] if any(" ±" in cell for row in rows for cell in row.cells) else found


def undefined_texts(subjects: Sequence[CollapseSubject]) -> list[str]:
    """What is undefined and why, values with the same reason together."""
    found = []
    for subject in subjects:
        reasons: dict[tuple[str, str], list[str]] = {}
        for scope, entries in (subject.metrics.get("undefined") or {}).items():
            if entries and _is_empty(subject, scope):
                found.append(f"{subject.label}, {scope}: all of it: {next(iter(entries.values()))}")
                continue
            for name, reason in (entries or {}).items():
                reasons.setdefault((scope, reason), []).append(name)
        found += [
            f"{subject.label}, {scope}: {reason} ({len(names)} undefined: {', '.join(names[:4])}"
            f"{', ...' if len(names) > 4 else ''})"
            for (scope, reason), names in reasons.items()
        ]
    return found


def error_texts(subjects: Sequence[CollapseSubject]) -> list[str]:
    """Metrics that failed."""
    return [
        f"{subject.label}: {error.get('metric')} failed: {error.get('type')}: {error.get('message')}"
        for subject in subjects
        for error in subject.analysis["errors"]
    ]


def note_texts(subjects: Sequence[CollapseSubject]) -> list[str]:
    """What a reader of the figures must know."""
    found = []
    for subject in subjects:
        if subject.unfinished:
            asked = subject.meta.get("questions")
            found.append(f"{subject.label}: the run was stopped; these are the {asked} questions until then")
        found += [f"{subject.label}: {note}" for note in _sample_notes(subject)]
        if lost := subject.analysis["diagnostics"].get("n_dropped_rows"):
            found.append(f"{subject.label}: {lost} rows were lost to failures and enter nothing")
        if subject.settings.get("svd_variant", "a") != "a":
            found.append(
                f"{subject.label}: the limits of the patterns are made for svd_variant a, in nats; these are bits"
            )
    return found


def _sample_notes(subject: CollapseSubject) -> Iterable[str]:
    """Where figures are not of all rows and classes."""
    counts, most = subject.analysis["diagnostics"], subject.settings.get("max_tokens_to_analyze")
    sampled = sum(0 < rows_behind(t) < t["num_samples"] for t in (subject.metrics.get("token_metrics") or {}).values())
    if sampled:
        cap = counts.get("n_kept_cap")
        limit = "" if cap is None else f", at most {cap} of a token"
        yield f"entropies of {sampled} tokens, and NC4, are those of a sample of their rows{limit}"
    if unsampled := counts.get("n_unsampled_rows"):
        yield f"{unsampled} rows are in no sample for lack of memory: neither entropies per token nor NC4 have them"
    if left_out := counts.get("classes_left_out"):
        yield (
            f"{left_out} of {counts['classes_eligible']} token classes are left out of the entropies per token and of "
            "NC4, for which there was no room (collapse.host_bytes)"
        )
    if most is not None and counts.get("classes_eligible") == most:
        yield f"class and token figures are those of the {most} most frequent tokens (max_tokens_to_analyze)"


def rows_behind(token: dict[str, Any]) -> int:
    """How many rows a token's entropy is made of: a sample, where it has more."""
    return token.get("sampled", token["num_samples"])


def family_rows(subjects: Sequence[CollapseSubject]) -> list[tuple[str, ...]]:
    """Every value of every scope, for those who want them all; label, then a cell for each subject."""
    names = dict.fromkeys(
        (scope, name)
        for subject in subjects
        for scope, values in (subject.metrics.get("family") or {}).items()
        for name in values or {}
    )
    return [(f"{scope}: {name}", *(figure(s.value(name, scope), 6) for s in subjects)) for scope, name in names]


def extreme_tokens(subject: CollapseSubject, most: int = 12) -> list[tuple[str, ...]]:
    """The tokens with the lowest normalised entropy: id, token, rows, entropy, normalised."""
    tokens = [
        (key, value)
        for key, value in (subject.analysis["token_analysis"] or {}).items()
        if value.get("normalized_entropy") is not None
    ]
    tokens.sort(key=lambda item: item[1]["normalized_entropy"])
    return [
        (
            key,
            NOTHING if value.get("token") is None else repr(value["token"]),
            _of_all(rows_behind(value), value["num_samples"]),
            figure(value["svd_entropy"]),
            figure(value["normalized_entropy"]),
        )
        for key, value in tokens[:most]
    ]


def _of_all(some: int, all_rows: int) -> str:
    return str(all_rows) if some == all_rows else f"{some} of {all_rows}"


def figure(value: float | None, digits: int = 4) -> str:
    """A figure, or a dash; very small and very large ones with an exponent."""
    if value is None:
        return NOTHING
    return f"{value:.{digits}f}" if value == 0 or 1e-3 <= abs(value) < 1e6 else f"{value:.{max(1, digits - 1)}e}"


def _difference(values: Sequence[float | None], barred: bool) -> str:
    if len(values) != 2 or values[0] is None or values[1] is None:
        return ""
    if barred:
        return NOT_COMPARABLE
    change = values[1] - values[0]
    largest = max(map(abs, values))  # type: ignore[arg-type]
    if abs(change) <= _EXACT * largest:
        return "0"
    if abs(change) <= _ROUNDED * largest:
        return ROUNDING
    return f"{'+' if change > 0 else '-'}{figure(abs(change))}"


def _of_state(state: str) -> Callable[[CollapseSubject], float | None]:
    return lambda subject: ((subject.metrics.get("states") or {}).get(state) or {}).get("normalized_entropy")


def _is_empty(subject: CollapseSubject, scope: str) -> bool:
    values = ((subject.metrics.get("family") or {}).get(scope) or {}).values()
    return all(value is None for value in values)


def _with_rows(row: CollapseRow, state: str, subjects: Sequence[CollapseSubject]) -> CollapseRow:
    """The same with the number of rows in brackets: few rows have a high normalised entropy by themselves."""
    found = [((s.metrics.get("states") or {}).get(state) or {}).get("rows") for s in subjects]
    cells = (f"{cell} ({rows})" if rows else cell for cell, rows in zip(row.cells, found, strict=True))
    return row._replace(cells=tuple(cells))


def _chunk(subject: CollapseSubject, key: str) -> Any:
    return (subject.analysis["chunk_analysis"] or {}).get(key)


def _classes(subject: CollapseSubject) -> str | None:
    counts = subject.analysis["diagnostics"]
    if "classes_eligible" not in counts:
        return None
    return f"{counts['classes_eligible']} of {counts.get('classes_seen', '?')}"


def _excluded(subject: CollapseSubject) -> str | None:
    counts = subject.analysis["diagnostics"]
    if not counts:
        return None
    return ", ".join(_nonzero(counts)) or "none"


def _nonzero(counts: dict[str, Any]) -> Iterable[str]:
    return (f"{counts[key]} {name}" for key, name in _EXCLUDED.items() if counts.get(key))


def _plain(name: str | None) -> str | None:
    return None if name is None else name.replace("_", " ")


def _word(value: object) -> str:
    return NOTHING if value is None else str(value)
