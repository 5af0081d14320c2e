"""Reports of runs as one HTML page that needs nothing else: collapse, comparison, speed, resources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lit_hass.reports.collapse_comparability import Statement, comparability
from lit_hass.reports.collapse_plot import chunks_figure, scopes_figure, spectrum_figure, to_png, tokens_figure
from lit_hass.reports.collapse_rows import (
    collapse_rows,
    columns,
    error_texts,
    extreme_tokens,
    family_rows,
    legend_texts,
    note_texts,
    undefined_texts,
)
from lit_hass.reports.collapse_run import CollapseSubject, ReportedRun
from lit_hass.reports.comparison_page import comparison_parts
from lit_hass.reports.comparison_plot import plot_comparison
from lit_hass.reports.html_page import bullets, cell_table, details, page, picture, section, table, text
from lit_hass.reports.run_rows import resource_rows, statistics_rows

_LEVEL_CLASS = {"comparable": "good", "with care": "unknown", "not comparable": "bad"}
_TOKEN_COLUMNS = ("id", "token", "rows", "SVD entropy", "normalised")
_SPEED_NOTE = (
    "<p>Decoding while features are collected is slower than decoding: compare speeds of runs that did not.</p>"
)
#: What a reader needs to read the figures.
_EXPLANATIONS = {
    "Where the entropy is": "Entropy of the features behind prompt, accepted, rejected, bonus and baseline tokens over "
    "its bound, of equally many rows drawn from each, with 95% intervals; how far the classes' directions are apart "
    "(GNC2), and how unevenly they are aligned with the output layer (UNC3), in prompts, in answers and in both.",
    "Spectrum": "How the features' sum of squares is shared out over directions. A steep line means few directions "
    "carry them; the dotted line is the fitted power law.",
    "Along the text": "Each text in stretches of equal length, from its first to its last. The entropy of n rows "
    "cannot exceed ln min(n, d) (n - 1 of centred rows); on the right it is divided by that, so that length "
    "alone makes no trend.",
    "Token by token": "The rows that predict one token. Entropies grow with the number of rows; a token far below the "
    "bound has features that collapsed onto few directions.",
}
_FIGURES = {
    "Where the entropy is": scopes_figure,
    "Spectrum": spectrum_figure,
    "Along the text": chunks_figure,
    "Token by token": tokens_figure,
}


def runs_to_html(runs: Sequence[ReportedRun]) -> str:
    """The page of some runs."""
    title = "Report of " + " and ".join(str(run.path) for run in runs)
    subjects = [subject for run in runs for subject in run.subjects]
    parts = [f"<h1>{text(title)}</h1>"]
    for run in runs:
        if run.comparison is not None:
            heading = "Draft against baseline" + (f": {run.path}" if len(runs) > 1 else "")
            parts += [f"<h2>{text(heading)}</h2>", *comparison_parts(run.comparison, plot_comparison(run.comparison))]
    parts += collapse_parts(subjects) if subjects else ["<p>No collapse metrics were collected in this run.</p>"]
    head, rows = statistics_rows(runs)
    parts += section("Answers and speed", table(head, rows) + (_SPEED_NOTE if _collected(runs) else ""), rows)
    head, rows = resource_rows(runs)
    parts += section("Resources", table(head, rows), rows)
    parts += section("How it was measured", "".join(map(_measured, subjects)), subjects)
    return page(title, parts)


def collapse_parts(subjects: Sequence[CollapseSubject]) -> list[str]:
    """Collapse metrics as blocks of a page: table, verdicts, pictures, everything else to unfold."""
    statements = comparability(*subjects) if len(subjects) == 2 else []
    rows = collapse_rows(subjects, statements)
    cells = [(row.label, *row.cells, *([row.difference] if len(subjects) == 2 else [])) for row in rows]
    parts = ["<h2>Representation collapse</h2>", table(columns(subjects), cells)]
    parts += [f"<p>{text(line)}</p>" for line in legend_texts(rows)]
    parts += [bullets(note_texts(subjects))] if note_texts(subjects) else []
    parts += section("What may be compared", "".join(_verdicts(subjects, statements)), len(subjects) > 1)
    parts += section("Failed metrics", bullets(error_texts(subjects)), error_texts(subjects))
    for title, draw in _FIGURES.items():
        figure = picture(to_png(draw(subjects)), title)
        parts += section(title, f"<p>{text(_EXPLANATIONS[title])}</p>{figure}")
    for subject in subjects:
        lowest = extreme_tokens(subject)
        if lowest:
            parts.append(details(f"{subject.label}: the most collapsed tokens", table(_TOKEN_COLUMNS, lowest)))
    head = ("", *(subject.label for subject in subjects))
    everything = family_rows(subjects)
    parts += [details(f"all {len(everything)} values", table(head, everything))] if everything else []
    undefined = undefined_texts(subjects)
    parts += section("Undefined, and why", bullets(undefined), undefined)
    return parts


def _verdicts(subjects: Sequence[CollapseSubject], statements: Sequence[Statement]) -> Iterable[str]:
    if len(subjects) == 2:
        yield _verdict_table(statements)
        return
    first = subjects[0]
    for other in subjects[1:]:
        yield f"<p>{text(other.label)} against {text(first.label)}:</p>{_verdict_table(comparability(first, other))}"


def _verdict_table(statements: Sequence[Statement]) -> str:
    rows = [
        [
            f"<td>{text(each.topic)}</td><td class='{_LEVEL_CLASS[each.level]}'>{text(each.level)}</td>",
            f"<td class='text'>{text('; '.join(each.reasons))}</td>",
        ]
        for each in statements
    ]
    return cell_table(("", "", "why"), rows)


def _collected(runs: Sequence[ReportedRun]) -> bool:
    """Whether a run's own speed was taken while features were collected (evaluate collects in a pass of its own)."""
    return any(subject.meta.get("method", "unknown") is None for run in runs for subject in run.subjects)


def _measured(subject: CollapseSubject) -> str:
    shown: dict[str, Any] = {
        "folder": str(subject.path), **subject.meta, "settings": subject.settings,
        "counts": subject.analysis["diagnostics"],
    }  # fmt: skip
    return details(subject.label, f"<pre>{text(json.dumps(shown, indent=2, ensure_ascii=False))}</pre>")
