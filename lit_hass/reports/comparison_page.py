"""A comparison as one HTML page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from lit_hass.reports.comparison_rows import (
    CATEGORY_COLUMNS,
    FIGURE_COLUMNS,
    category_rows,
    difference_texts,
    figure_rows,
    headline,
    number,
    times,
    verdict,
)
from lit_hass.reports.html_page import NOTHING, bullets, cell_table, details, page, picture, section, table, text

#: Differing answers shown with their texts; all are in comparison.json.
_MOST_DIVERGENCES = 50

_VERDICT_CLASS = {True: "good", False: "bad", None: "unknown"}


def to_html(comparison: dict[str, Any], png: bytes) -> str:
    """The comparison as a page.

    Args:
        comparison: of `compare_runs`.
        png: the picture, embedded.
    """
    return page("Draft against baseline", ["<h1>Draft against baseline</h1>", *comparison_parts(comparison, png)])


def comparison_parts(comparison: dict[str, Any], png: bytes) -> Iterable[str]:
    """The comparison as blocks of a page; arguments as `to_html`."""
    runs = comparison["runs"]
    return (
        f"<p>{text(runs['hass']['path'])} against {text(runs['baseline']['path'])}: "
        f"{comparison['joined']['questions']} questions, {comparison['joined']['turns']} answers.</p>",
        f"<p class='headline'>{text(headline(comparison))}</p>",
        f"<p class='verdict {_VERDICT_CLASS[comparison['lossless']]}'>{text(verdict(comparison))}</p>",
        table(FIGURE_COLUMNS, figure_rows(comparison)),
        picture(png, "speed and acceptance"),
        *section("Differences", bullets(difference_texts(comparison)), comparison["differences"]),
        *section("Notes", bullets(comparison["notes"]), comparison["notes"]),
        *section("By category", table(CATEGORY_COLUMNS, category_rows(comparison)), comparison["categories"]),
        *_divergences(comparison["agreement"]["divergences"]),
        *section("Questions", _questions(comparison), comparison["questions"]),
        *section("Runs", _runs(runs), runs),
    )


def _divergences(divergences: Sequence[dict[str, Any]]) -> Iterable[str]:
    if not divergences:
        return
    yield f"<h2>Differing answers ({len(divergences)})</h2>"
    columns = ("question", "choice", "turn", "first differing token", "gap of logits", "baseline", "hass")
    rows = [
        [
            *(f"<td>{text(d[key])}</td>" for key in ("question_id", "choice", "turn")),
            f"<td>{d['index']}: {text(d['baseline_token'])} / {text(d['hass_token'])}</td>",
            f"<td>{number(d['gap'], 6)}</td>",
            *(f"<td class='text'><pre>{text(d[key])}</pre></td>" for key in ("baseline_text", "hass_text")),
        ]
        for d in divergences[:_MOST_DIVERGENCES]
    ]
    yield cell_table(columns, rows)
    if len(divergences) > len(rows):
        yield f"<p>and {len(divergences) - len(rows)} more in comparison.json.</p>"


def _questions(comparison: dict[str, Any]) -> str:
    questions = comparison["questions"]
    speed = "tokens/CPU s" if comparison["speed"]["clock"] == "processor" else "tokens/s"
    columns = ("question", "category", f"{speed} baseline", f"{speed} hass", "speedup", "acceptance", "tokens")
    rows = []
    for q in questions:
        same = {True: "identical", False: "<span class='differs'>differ</span>", None: "not recorded"}[q["identical"]]
        cells = (
            str(q["question_id"]),
            q["category"] or NOTHING,
            number(q["baseline"]["tokens_per_second"], 1),
            number(q["hass"]["tokens_per_second"], 1),
            times(q["speedup"]),
            number(q["acceptance_length"]),
        )
        rows.append([*(f"<td>{text(cell)}</td>" for cell in cells), f"<td>{same}</td>"])
    return details(f"all {len(questions)}", cell_table(columns, rows))


def _runs(runs: dict[str, Any]) -> str:
    return "".join(
        details(name, f"<pre>{text(json.dumps(run, indent=2, ensure_ascii=False))}</pre>") for name, run in runs.items()
    )
