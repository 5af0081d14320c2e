"""A comparison as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from lit_hass.reports.comparison_rows import (
    CATEGORY_COLUMNS,
    FIGURE_COLUMNS,
    NOTHING,
    category_rows,
    difference_texts,
    figure_rows,
    headline,
    number,
    times,
    verdict,
)

#: Differing answers shown with their texts; all are in comparison.json.
_MOST_DIVERGENCES = 50

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2328; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .3rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
.headline { font-size: 1.2rem; font-weight: 600; }
.verdict { padding: .5rem .8rem; border-radius: .4rem; background: #fff8c5; }
.verdict.good { background: #dafbe1; } .verdict.bad { background: #ffd7d5; font-weight: 700; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #d8dee4; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: pre; } th { color: #59636e; font-weight: 600; }
td.text { text-align: left; }
.wide { overflow-x: auto; } img { max-width: 100%; }
pre { white-space: pre-wrap; margin: 0; font-size: 13px; } summary { cursor: pointer; color: #59636e; }
.differs { color: #d1242f; }
"""

_VERDICT_CLASS = {True: "good", False: "bad", None: "unknown"}


def to_html(comparison: dict[str, Any], png: bytes) -> str:
    """The comparison as a page.

    Args:
        comparison: of `compare_runs`.
        png: the picture, embedded.
    """
    runs = comparison["runs"]
    parts = [
        "<h1>Draft against baseline</h1>",
        f"<p>{_e(runs['hass']['path'])} against {_e(runs['baseline']['path'])}: "
        f"{comparison['joined']['questions']} questions, {comparison['joined']['turns']} answers.</p>",
        f"<p class='headline'>{_e(headline(comparison))}</p>",
        f"<p class='verdict {_VERDICT_CLASS[comparison['lossless']]}'>{_e(verdict(comparison))}</p>",
        _table(FIGURE_COLUMNS, figure_rows(comparison)),
        f"<p><img alt='speed and acceptance' src='data:image/png;base64,{base64.b64encode(png).decode('ascii')}'></p>",
        *_section("Differences", _list(difference_texts(comparison)), comparison["differences"]),
        *_section("Notes", _list(comparison["notes"]), comparison["notes"]),
        *_section("By category", _table(CATEGORY_COLUMNS, category_rows(comparison)), comparison["categories"]),
        *_divergences(comparison["agreement"]["divergences"]),
        *_section("Questions", _questions(comparison["questions"]), comparison["questions"]),
        *_section("Runs", _runs(runs), runs),
    ]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>Draft against baseline</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _section(title: str, content: str, there: object) -> Iterable[str]:
    return (f"<h2>{title}</h2>", content) if there else ()


def _divergences(divergences: Sequence[dict[str, Any]]) -> Iterable[str]:
    if not divergences:
        return
    yield f"<h2>Differing answers ({len(divergences)})</h2>"
    columns = ("question", "choice", "turn", "first differing token", "gap of logits", "baseline", "hass")
    rows = [
        [
            *(f"<td>{_e(d[key])}</td>" for key in ("question_id", "choice", "turn")),
            f"<td>{d['index']}: {_e(d['baseline_token'])} / {_e(d['hass_token'])}</td>",
            f"<td>{number(d['gap'], 6)}</td>",
            *(f"<td class='text'><pre>{_e(d[key])}</pre></td>" for key in ("baseline_text", "hass_text")),
        ]
        for d in divergences[:_MOST_DIVERGENCES]
    ]
    yield _html_table(columns, rows)
    if len(divergences) > len(rows):
        yield f"<p>and {len(divergences) - len(rows)} more in comparison.json.</p>"


def _questions(questions: Sequence[dict[str, Any]]) -> str:
    columns = ("question", "category", "tokens/s baseline", "tokens/s hass", "speedup", "acceptance", "tokens")
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
        rows.append([*(f"<td>{_e(cell)}</td>" for cell in cells), f"<td>{same}</td>"])
    return f"<details><summary>all {len(questions)}</summary>{_html_table(columns, rows)}</details>"


def _runs(runs: dict[str, Any]) -> str:
    return "".join(
        f"<details><summary>{name}</summary><pre>{_e(json.dumps(run, indent=2, ensure_ascii=False))}</pre></details>"
        for name, run in runs.items()
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return _html_table(columns, [[f"<td>{_e(cell)}</td>" for cell in row] for row in rows])


def _html_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{_e(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f"<div class='wide'><table><tr>{head}</tr>\n{body}</table></div>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{_e(line)}</li>" for line in lines) + "</ul>"


def _e(value: object) -> str:
    return NOTHING if value is None else escape(str(value))
