import pytest

from lit_hass.data.html_to_tsv import table_to_tsv


def one(cell: str) -> str:
    return f"<table><tr><td>{cell}</td></tr></table>"


@pytest.mark.parametrize(
    ("cell", "field"),
    [
        ("a", "a"),
        ("", ""),
        ("   \n ", ""),
        ("a &amp; b", "a & b"),
        ("&lt;b&gt;", "<b>"),
        ("&#233;&eacute;&#xE9;&#XE9;", "éééé"),
        ("&euro;5", "€5"),
        ("&amp;lt;", "&lt;"),
        ("AT&T", "AT&T"),
        ("&quot;x&apos;&#39;", "\"x''"),
        ("<b>a</b>b", "ab"),
        ("<b><i>a</i> c</b> d", "a c d"),
        ('<a href="/x">go</a>', "go"),
        ("a\tb", "a b"),
        ("a\nb", "a b"),
        ("a\r\n\t  b", "a b"),
        ("a&nbsp;b", "a b"),
        ("a&nbsp; &#160;\u00a0b", "a b"),
        ("&#9;a&#10;", "a"),
        ("a&#9;b", "a b"),
        (" a ", "a"),
        ("a<br>b", "a b"),
        ("a<br/>b<BR />c", "a b c"),
        ("a<br><br>b<br>", "a b"),
        ("<b>a<br></b>b", "a b"),
        ("a<!-- not > this --> b", "a b"),
        ("a<!--x-->b", "ab"),
        ("a < b", "a < b"),
        ("日本 語", "日本 語"),
    ],
)
def test_what_a_cell_says(cell: str, field: str) -> None:
    assert table_to_tsv(one(cell)) == field


@pytest.mark.parametrize(
    ("html", "tsv"),
    [
        ("<table></table>", ""),
        ("<table><tr></tr></table>", ""),
        ("<table><tr><td></td><td></td></tr></table>", "\t"),
        ("<table><tr><td>a</td></tr><tr></tr><tr><td>b</td></tr></table>", "a\n\nb"),
        ("<table><tr><td>a</td></tr><tr><td>b</td><td>c</td></tr></table>", "a\nb\tc"),
        ("<table><tr><th>A</th><td>b</td></tr></table>", "A\tb"),
        ("<TABLE><TR><TD>a</TD></TR></TABLE>", "a"),
        # the order of the document, whatever the sections say
        (
            "<table><tfoot><tr><td>foot</td></tr></tfoot><tbody><tr><td>body</td></tr></tbody>"
            "<thead><tr><th>head</th></tr></thead></table>",
            "foot\nbody\nhead",
        ),
        # attributes say nothing, not even with a > or a tag inside
        ('<table title="a>b"><tr class=\'>\'><td title="</td><td>x">a</td></tr></table>', "a"),
        ('<table><tr><td data-x="&quot;>">a</td></tr></table>', "a"),
        # text outside of cells
        ("before<table>x<tr>y<td>a</td>z</tr>w</table>after", "a"),
        ("<table><caption>Sales <b>2024</b></caption><tr><td>a</td></tr></table>", "a"),
        ("<table><colgroup><col><col></colgroup><tr><td>a</td></tr></table>", "a"),
        ("<p>See:</p><div><table><tr><td>a</td></tr></table></div>", "a"),
        ("<!-- <table> --><table><tr><td>a</td><!-- <td>b</td> --></tr></table>", "a"),
        # a span of one is no span
        ('<table><tr><td colspan="1" rowspan=1>a</td></tr></table>', "a"),
        ('<table><tr><td colspan=" 1 ">a</td><td colspan>b</td></tr></table>', "a\tb"),
        # end tags that HTML lets one leave out
        ("<table><tr><td>a<td>b<tr><td>c<td>d</table>", "a\tb\nc\td"),
        ("<table><thead><tr><th>A\n<tbody>\n<tr><td>b\n</tbody> stray</table>", "A\nb"),
        ("<table><tr><td>a<th>b</table>after", "a\tb"),
        ("<table><tr><td>a</td></tr>", "a"),
        ("<table><tr><td>a", "a"),
        ("<table><tr><td>a &amp", "a &"),
        ("<table>\r\n\t<tr>\r\n\t\t<td>a</td>\r\n\t\t<td>b</td>\r\n\t</tr>\r\n</table>\r\n", "a\tb"),
    ],
)
def test_what_a_table_says(html: str, tsv: str) -> None:
    assert table_to_tsv(html) == tsv


@pytest.mark.parametrize(
    ("html", "cause"),
    [
        ("", "0 tables"),
        ("no table here", "0 tables"),
        ("<tr><td>a</td></tr>", "0 tables"),
        (one("a") + one("b"), "2 tables"),
        (one(one("a")), "inside a table"),
        ('<table><tr><td colspan="2">a</td></tr></table>', "spans"),
        ("<table><tr><th rowspan=3>a</th></tr></table>", "spans"),
        ('<table><tr><td colspan="0">a</td></tr></table>', "spans"),
        ("<table><td>a</td></table>", "outside of any row"),
        ("<table><tr><td>a</td></tr><td>b</td></table>", "outside of any row"),
        ("<table><tr><td>a</td></tr><tbody><td>b</td></tbody></table>", "outside of any row"),
    ],
)
def test_what_is_no_part_of_the_task_is_refused(html: str, cause: str) -> None:
    with pytest.raises(ValueError, match=cause):
        table_to_tsv(html)
