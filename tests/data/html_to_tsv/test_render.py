import re

import pytest

from lit_hass.data.html_to_tsv import Difficulty, make_example, table_to_tsv
from lit_hass.data.html_to_tsv.render import Style, render
from lit_hass.data.html_to_tsv.rng import SplitMix

#: What must occur somewhere, as a pattern of the HTML.
STYLES = {
    "header cells": r"<th>",
    "header row without th": r"<thead>\s*<tr>\s*<td>",
    "thead": r"<thead>.*</thead>",
    "tbody": r"<tbody>.*</tbody>",
    "table attribute": r"<table border=\"1\"",
    "row attribute": r"<tr class=\"odd\"",
    "cell attribute": r"<td align=\"right\"",
    "two attributes": r"<td \S+ \S+\">",
    "attribute without value": r"<td nowrap>",
    "bold": r"<b>[^<]+</b>",
    "link": r"<a href=\"[^\"]+\">",
    "nested inline tags": r"<(b|i|em|strong|span|code|small|u)><(b|i|em|strong|span|code|small|u)>",
    "inline tag around one of several words": r">\w+ <(b|i|em|strong|span|code|small|u)>\w+</\1>",
    "named entity": r"&amp;|&lt;|&gt;",
    "entity of an accent": r"&[eouain]\w*(acute|uml|tilde);",
    "numeric entity": r"&#\d+;",
    "euro sign": r"€",
    "euro entity": r"&euro;",
    "pound entity": r"&pound;",
    "accent as it is": r"[éëüúñöóá]",
    "br": r"\w<br>\w",
    "nbsp": r"\w&nbsp;\w",
    "CRLF": r"\r\n",
    "LF": r"[^\r]\n",
    "one line": r"\A[^\n]*\Z",
    "tab indent": r"\n\t<tr",
    "space indent": r"\n  <tr",
    "cells on their own lines": r"<tr>\s*\n\s*<t[dh]>",
    "padding": r"<td> \w+",
    "padding with a line break": r"<td>\r?\n\w+",
    "empty cell": r"<td></td>",
    "number": r">\d{1,2},\d{3}<",
    "decimal": r">-?\d{1,2}\.\d{2}<",
    "price": r">\$\d+\.\d\d<",
    "ISO date": r">\d{4}-\d\d-\d\d<",
    "date in words": r">\d{1,2} [A-Z][a-z]{2} \d{4}<",
    "name": r">(Anna|Ben|Carla|David) [A-Z]\w+<",
}


@pytest.fixture(scope="module")
def pages() -> list[str]:
    return [make_example("train", 0, i, Difficulty(6, 5)).html for i in range(4000)]


@pytest.mark.parametrize("style", STYLES)
def test_every_style_occurs(pages: list[str], style: str) -> None:
    pattern = re.compile(STYLES[style], re.DOTALL)
    share = sum(bool(pattern.search(page)) for page in pages) / len(pages)
    assert share > 0.001, f"{style}: {share:.4f} of the tables"


def test_plain_tables_have_no_style() -> None:
    for i in range(1500):
        html = make_example("train", 0, i, Difficulty.parse("4x4-plain")).html
        assert html.isascii() and "\n" not in html and "  " not in html
        assert set(re.findall(r"<[^>]*>", html)) <= {
            "<table>", "</table>", "<tr>", "</tr>", "<td>", "</td>", "<th>", "</th>",
        }  # fmt: skip
        assert "&#" not in html and "&nbsp;" not in html
        assert set(re.findall(r"&\w+;", html)) <= {"&amp;", "&lt;", "&gt;", "&quot;"}


@pytest.mark.parametrize("spelling", [0, 1, 2])
def test_every_spelling_of_every_character_is_read_back(spelling: int) -> None:
    row = ["& < > \" '", "é ë ü ú ñ ö ó á", "€5 £7", "a&lt;b"]
    style = Style(entities=spelling)
    html = render([row], False, style, SplitMix("spelling"))
    assert table_to_tsv(html) == "\t".join(row)
    assert "<b>" not in table_to_tsv(render([["<b>"]], False, style, SplitMix("x"))).replace("<b>", "", 1)


def test_the_bare_style_is_written_out() -> None:
    html = render([["A", "B"], ["1", ""]], True, Style(), SplitMix("bare"))
    assert html == "<table><tr><th>A</th><th>B</th></tr><tr><td>1</td><td></td></tr></table>"


def test_sections_lines_and_indent() -> None:
    style = Style(newline="\r\n", indent="\t", cell_per_line=True, sections=True, header_cells=False)
    assert render([["A"], ["1"]], True, style, SplitMix("lines")).split("\r\n") == [
        "<table>",
        "\t<thead>",
        "\t\t<tr>",
        "\t\t\t<td>A</td>",
        "\t\t</tr>",
        "\t</thead>",
        "\t<tbody>",
        "\t\t<tr>",
        "\t\t\t<td>1</td>",
        "\t\t</tr>",
        "\t</tbody>",
        "</table>",
    ]


def test_all_styles_at_full_strength_say_the_same_table() -> None:
    rows = [["Größe & Maß", "x < y"], ["", "two words here"], ["é", "O'Neil"]]
    for i in range(500):
        style = Style("\n", "  ", i % 2 == 0, True, True, 100, 100, 100, i % 3, 50)
        assert table_to_tsv(render(rows, True, style, SplitMix(i))) == "\n".join("\t".join(row) for row in rows)
