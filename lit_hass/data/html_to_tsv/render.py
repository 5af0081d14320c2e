"""Writing a table as HTML in one of many styles.

Every style says the same table: `lit_hass.data.html_to_tsv.task.table_to_tsv` reads the text back from any of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from lit_hass.data.html_to_tsv.rng import SplitMix

_CELL_ATTRIBUTES = (
    'class="num"',
    'class="c1"',
    'align="right"',
    'align="left"',
    'style="color:red"',
    'id="x7"',
    'width="80"',
    "nowrap",
)
_ROW_ATTRIBUTES = ('class="odd"', 'class="even"', 'valign="top"', 'id="r1"')
_TABLE_ATTRIBUTES = ('border="1"', 'class="data"', 'id="t1"', 'class="table wide"', 'cellpadding="4"')
_INLINE = ("b", "i", "em", "strong", "span", "code", "small", "u")
_LINKS = ("/a", "/item/3", "#top", "https://example.org/x")

#: Characters that HTML needs or likes as an entity, with the spellings in use; the first is always legal.
_ENTITIES = {
    "&": ("&amp;", "&amp;", "&#38;"),
    "<": ("&lt;", "&lt;", "&#60;"),
    ">": ("&gt;", "&gt;", "&#62;"),
    '"': ("&quot;", '"', "&#34;"),
    "'": ("'", "&#39;", "&apos;"),
    "é": ("é", "&eacute;", "&#233;"),
    "ë": ("ë", "&euml;", "&#235;"),
    "ü": ("ü", "&uuml;", "&#252;"),
    "ú": ("ú", "&uacute;", "&#250;"),
    "ñ": ("ñ", "&ntilde;", "&#241;"),
    "ö": ("ö", "&ouml;", "&#246;"),
    "ó": ("ó", "&oacute;", "&#243;"),
    "á": ("á", "&aacute;", "&#225;"),
    "€": ("€", "&euro;", "&#8364;"),
    "£": ("£", "&pound;", "&#163;"),
}


@dataclass(frozen=True)
class Style:
    """The manner in which one table is written (drawn once, kept for the whole table)."""

    newline: str = ""  # "" writes everything on one line
    indent: str = ""
    cell_per_line: bool = False
    sections: bool = False  # <thead> and <tbody>
    header_cells: bool = True  # <th> in the header row
    padding: int = 0  # percent of cells with spaces or line breaks around their text
    attributes: int = 0  # percent of tags that carry attributes
    inline: int = 0  # percent of cells with <b>, <a> and the like inside
    entities: int = 0  # which of the spellings in `_ENTITIES`
    nbsp: int = 0  # percent of inner spaces written as &nbsp;


def draw_style(rng: SplitMix) -> Style:
    """Draw a style; about a sixth of the tables are bare."""
    newline = rng.weighted((("", 4), ("\n", 5), ("\r\n", 1)))
    cell_per_line = bool(newline) and rng.chance(40)
    return Style(
        newline=newline,
        indent=rng.pick(("", "  ", "\t")) if newline else "",
        cell_per_line=cell_per_line,
        sections=rng.chance(35),
        header_cells=rng.chance(80),
        padding=rng.weighted(((0, 7), (15, 2), (70, 1))),
        attributes=rng.weighted(((0, 5), (12, 4), (40, 1))),
        inline=rng.weighted(((0, 4), (10, 4), (30, 2))),
        entities=rng.below(3),
        nbsp=rng.weighted(((0, 8), (30, 2))),
    )


def render(rows: list[list[str]], has_header: bool, style: Style, rng: SplitMix) -> str:
    """Write the table as HTML, without a newline at the end.

    Args:
        rows: cell texts.
        has_header: whether ``rows[0]`` is a header row.
        style: from `draw_style`, or ``Style()`` for the bare one.
        rng: decides which cells carry attributes, inline tags and padding.
    """
    lines: list[str] = []

    def put(level: int, text: str) -> None:
        lines.append(style.indent * level + text)

    put(0, _open(rng, "table", _TABLE_ATTRIBUTES, min(100, 2 * style.attributes)))
    section = None
    for i, row in enumerate(rows):
        wanted = "thead" if has_header and i == 0 else "tbody"
        if style.sections and section != wanted:
            if section:
                put(1, f"</{section}>")
            put(1, f"<{wanted}>")
            section = wanted
        level = 2 if style.sections else 1
        tag = "th" if has_header and i == 0 and style.header_cells else "td"
        start = _open(rng, "tr", _ROW_ATTRIBUTES, style.attributes // 2)
        cells = [
            f"{_open(rng, tag, _CELL_ATTRIBUTES, style.attributes)}{_content(text, style, rng)}</{tag}>" for text in row
        ]
        if style.cell_per_line:
            put(level, start)
            for cell in cells:
                put(level + 1, cell)
            put(level, "</tr>")
        else:
            put(level, start + "".join(cells) + "</tr>")
    if section:
        put(1, f"</{section}>")
    put(0, "</table>")
    return style.newline.join(lines)


def _open(rng: SplitMix, tag: str, attributes: tuple[str, ...], percent: int) -> str:
    if not rng.chance(percent):
        return f"<{tag}>"
    second = f" {rng.pick(attributes)}" if rng.chance(15) else ""
    return f"<{tag} {rng.pick(attributes)}{second}>"


def _content(text: str, style: Style, rng: SplitMix) -> str:
    words = [_escape(word, style.entities) for word in text.split(" ")]
    if text and rng.chance(style.inline):
        # A tag goes around one word or around all of them; a second tag may nest inside the first.
        at = rng.below(len(words) + 1)
        start, stop = (at, at + 1) if at < len(words) else (0, len(words))
        opening, closing = _tags(rng)
        words[start] = opening + words[start]
        words[stop - 1] += closing
    breaks = len(words) > 1 and rng.chance(style.inline // 5)
    out = words[0]
    for i, word in enumerate(words[1:]):
        out += "<br>" if breaks and i == 0 else "&nbsp;" if rng.chance(style.nbsp) else " "
        out += word
    if rng.chance(style.padding):
        pad = rng.pick((" ", " ", "  ", style.newline or " "))
        out = pad + out + pad
    return out


def _tags(rng: SplitMix) -> tuple[str, str]:
    if rng.chance(15):
        return f'<a href="{rng.pick(_LINKS)}">', "</a>"
    tag = rng.pick(_INLINE)
    if rng.chance(20):
        inner = rng.pick(_INLINE)
        return f"<{tag}><{inner}>", f"</{inner}></{tag}>"
    return f"<{tag}>", f"</{tag}>"


def _escape(text: str, spelling: int) -> str:
    return "".join(_ENTITIES[c][spelling] if c in _ENTITIES else c for c in text)
