"""Pages that need nothing else: the frame, tables and lists that reports put into them. Standard library only."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

#: Stands for what is undefined or unknown.
NOTHING = "–"

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
td.good { background: #dafbe1; } td.unknown { background: #fff8c5; } td.bad { background: #ffd7d5; }
.wide { overflow-x: auto; } img { max-width: 100%; }
pre { white-space: pre-wrap; margin: 0; font-size: 13px; } summary { cursor: pointer; color: #59636e; }
.differs { color: #d1242f; }
"""


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document.

    Args:
        title: plain text.
        parts: HTML, one block each.
    """
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{text(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def section(title: str, content: str, there: object = True) -> Iterable[str]:
    """A heading and what stands under it, or nothing where there is nothing to show."""
    return (f"<h2>{title}</h2>", content) if there else ()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts."""
    return cell_table(columns, [[f"<td>{text(cell)}</td>" for cell in row] for row in rows])


def cell_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose cells are HTML with their ``<td>``; the columns are plain texts."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    return f"<div class='wide'><table><tr>{head}</tr>\n{body}</table></div>"


def bullets(lines: Iterable[str]) -> str:
    """A list of plain texts."""
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>"


def details(summary: str, content: str) -> str:
    """HTML that is shown when asked for; the summary is plain text."""
    return f"<details><summary>{text(summary)}</summary>{content}</details>"


def picture(png: bytes, what: str) -> str:
    """A PNG inside the page."""
    encoded = base64.b64encode(png).decode("ascii")
    return f"<p><img alt='{text(what)}' src='data:image/png;base64,{encoded}'></p>"


def text(value: object) -> str:
    """A value as it may stand in HTML; a dash for None."""
    return NOTHING if value is None else escape(str(value))
