r"""What the task is, exactly: from one HTML table to the TSV that must come out.

* One line per ``<tr>``, in the order of the document, whatever section it stands in; lines are joined by ``\n`` and the
  last one has none. A header row is a row like any other.
* One field per ``<td>`` or ``<th>``, fields joined by a tab. Rows may have different numbers of cells.
* A field is the cell's text: tags inside the cell are dropped and their text kept (``<b>a</b>b`` is ``ab``), ``<br>``
  counts as a space, attributes and comments say nothing, entities become their characters (``&amp;`` is ``&``,
  ``&#233;`` is ``é``).
* Every run of white space in a cell becomes one space, and none is left at its ends. Tabs, line breaks and the
  no-break space (``&nbsp;``) are white space, so that no field can break the TSV's own lines and fields.
* An empty cell is an empty field; a row without cells is an empty line. Text outside of cells is dropped.
* ``colspan``, ``rowspan`` and a table inside a table have no plain equivalent in TSV and are not part of the task:
  they are refused.
"""

from __future__ import annotations

from html.parser import HTMLParser


def table_to_tsv(html: str) -> str:
    """The TSV of the one table in ``html``, by the rules of this module.

    It reads HTML with the standard library's parser and knows nothing of how the benchmark writes its tables, so it
    also checks them.

    Raises:
        ValueError: there is no table, more than one, a table inside a table, a cell that spans rows or columns, or one
            outside of any row.
    """
    reader = _TableReader()
    reader.feed(html)
    reader.close()
    if reader.tables != 1:
        raise ValueError(f"the text holds {reader.tables} tables; the task is defined for one")
    return "\n".join("\t".join(" ".join("".join(cell).split()) for cell in row) for row in reader.rows)


#: What ends an open row, as HTML has it.
_SECTIONS = ("thead", "tbody", "tfoot", "caption")


class _TableReader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.rows: list[list[list[str]]] = []
        self.tables = 0
        self._open_tables = 0
        self._row_open = False
        self._cell: list[str] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            if self._open_tables:
                raise ValueError("a table inside a table is not part of the task")
            self._open_tables += 1
            self.tables += 1
        elif tag == "tr" and self._open_tables:
            self._cell = None
            self._row_open = True
            self.rows.append([])
        elif tag in ("td", "th") and self._open_tables:
            if any(name in ("colspan", "rowspan") and (value or "1").strip() != "1" for name, value in attrs):
                raise ValueError("a cell that spans rows or columns is not part of the task")
            if not self._row_open:
                raise ValueError("a cell stands outside of any row")
            self._cell = []
            self.rows[-1].append(self._cell)
        elif tag in _SECTIONS:
            self._end_row()
        elif tag == "br" and self._cell is not None:
            self._cell.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = None
        elif tag in ("tr", "table", *_SECTIONS):
            self._end_row()
        if tag == "table":
            self._open_tables = max(0, self._open_tables - 1)

    def _end_row(self) -> None:
        self._cell = None
        self._row_open = False

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)
