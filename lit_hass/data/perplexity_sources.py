"""Where the text of a perplexity run comes from: a file, a table, the hub, or the package; one source for all forms."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_hass.data.perplexity_text import (
    count_bytes,
    count_real_words,
    count_words,
    is_title,
    join_rows,
    split_pages,
    split_rows,
)
from lit_hass.errors import UserError
from lit_hass.pretrained import text_file
from lit_hass.records import read_objects
from lit_hass.records.json_lines import kind_of_file, read_bytes

#: ``wikitext``: a file of lines with `` = Titles = ``; ``documents``: texts by themselves, joined by blank lines;
#: ``c4``: the first 1,100 texts, joined by spaces, of which Wanda's protocol takes 256 windows; ``ptb``: sentences,
#: joined by spaces.
Layout = Literal["wikitext", "documents", "c4", "ptb"]

_C4_TEXTS, _C4_WINDOWS = 1100, 256
_COLUMNS = ("page", "text", "sentence")
#: No data set of the hub is looked for under names that end so.
_FILES = (".txt", ".raw", ".tokens", ".md", ".json", ".jsonl", ".parquet", ".csv", ".tsv")
_SEPARATORS = {".csv": ",", ".tsv": "\t"}
#: Hub sets by name: subset, split, column, layout, revision and data files, where nothing else is asked for.
_HUB: dict[str, dict[str, Any]] = {
    "Salesforce/wikitext": {"subset": "wikitext-2-raw-v1", "split": "test", "layout": "wikitext"},
    "EleutherAI/wikitext_document_level": {"subset": "wikitext-2-raw-v1", "split": "test", "layout": "wikitext"},
    "allenai/c4": {
        "split": "validation",
        "layout": "c4",
        "data_files": {"validation": "en/c4-validation.00000-of-00008.json.gz"},
    },
    # A set with a script of its own, which `datasets` no longer runs: its tables, as the hub has converted them.
    "ptb-text-only/ptb_text_only": {
        "split": "test",
        "layout": "ptb",
        "revision": "refs/convert/parquet",
        "data_files": {split: f"penn_treebank/{split}/*.parquet" for split in ("train", "validation", "test")},
    },
}
#: The names that these sets had before the hub gave them owners, as the original scripts write them.
_OLD_NAMES = {name.partition("/")[2]: name for name in _HUB}


@dataclass(frozen=True)
class PerplexityText:
    """One text in the forms that protocols read.

    Attributes:
        name: where it came from, as it was named.
        layout: see `Layout`.
        file: the text as it is.
        joined: its rows in one stream.
        pages: its documents.
        file_starts: where each page begins in ``file``, in characters.
        joined_starts: likewise in ``joined``.
        rows: how many rows it has.
        sha256: of the file, or of the text where it is no file.
        most_windows: of Wanda's protocol; None is no limit.
        split: of a hub set; None for others.
    """

    name: str
    layout: Layout
    file: str = field(repr=False)
    joined: str = field(repr=False)
    pages: list[str] = field(repr=False)
    file_starts: list[int] = field(repr=False)
    joined_starts: list[int] = field(repr=False)
    rows: int
    sha256: str
    most_windows: int | None = None
    split: str | None = None

    @property
    def words(self) -> list[int]:
        """Words of each page, as lm-evaluation-harness counts them."""
        return [count_words(page) for page in self.pages]

    @property
    def bytes(self) -> list[int]:
        """UTF-8 bytes of each page."""
        return [count_bytes(page) for page in self.pages]

    def describe(self) -> dict[str, Any]:
        """What a report says of the text."""
        return {
            "name": self.name,
            "split": self.split,
            "layout": self.layout,
            "sha256": self.sha256,
            "rows": self.rows,
            "pages": len(self.pages),
            "words": sum(self.words),
            "real_words": sum(map(count_real_words, self.pages)),
            "bytes": sum(self.bytes),
            "file_bytes": count_bytes(self.file),
            "unk_words": sum(page.split().count("<unk>") for page in self.pages),
            "titles": self.layout == "wikitext" and len(self.pages) > 1,
        }


def read_text(
    source: str,
    layout: Layout | Literal["auto"] = "auto",
    subset: str | None = None,
    split: str | None = None,
    column: str | None = None,
) -> PerplexityText:
    """Read a text.

    Args:
        source: a shipped name (``invented_pages``), a text file, a table (``.jsonl``, ``.json`` with an array,
            ``.parquet``, ``.csv``, ``.tsv``), either of them also as ``.gz``, or a data set of the hub
            (``Salesforce/wikitext``, or by its old name ``wikitext``) or in a folder, which `datasets` loads.
        layout: what the text is; ``auto`` is ``wikitext`` for a text file, for a table whose rows have titles among
            them or whose texts are such pages, and what the hub's name says; else ``documents``.
        subset: of a hub set, such as ``wikitext-2-raw-v1``.
        split: of a hub set; ``test`` where nothing else is known.
        column: of a table; the first of ``page``, ``text`` and ``sentence`` that it has.

    Raises:
        UserError: there is no such text, it is empty or not UTF-8 (naming the byte), or its layout does not fit.
    """
    shipped = text_file(source)
    path = shipped or Path(source).expanduser()
    if path.is_file():
        kind = kind_of_file(path)
        if kind in (".jsonl", ".json"):
            return _of_table(source, _json_column(path, column), layout, None)
        if kind == ".parquet":
            return _of_table(source, _parquet_column(path, column), layout, None)
        if kind in _SEPARATORS:
            return _of_table(source, _separated_column(path, column, _SEPARATORS[kind]), layout, None)
        return _of_file(source, path, layout)
    name = source if path.is_dir() else _OLD_NAMES.get(source, source)
    if path.is_dir() or re.fullmatch(r"[\w.-]+/[\w.-]+", name) and kind_of_file(path) not in _FILES:
        return _of_hub(name, layout, subset, split, column)
    raise UserError(f"{source}: no such file, and no name of a data set of the hub (OWNER/NAME)")


def _of_file(name: str, path: Path, layout: Layout | Literal["auto"]) -> PerplexityText:
    content = read_bytes(path, "text file")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if text.startswith("\ufeff"):
        raise UserError(f"{path}: begins with a byte order mark, which would be scored as text; remove it")
    if "\r" in text:
        line = text.count("\n", 0, text.index("\r")) + 1
        raise UserError(f"{path}:{line}: has a carriage return; rows and pages end with \\n alone (convert the file)")
    if layout == "auto" or layout == "wikitext":
        return _wikitext(name, text, hashlib.sha256(content).hexdigest())
    return _documents(name, layout, [line for line in text.split("\n") if line.strip()])


def _of_table(
    name: str, found: tuple[str, list[str]], layout: Layout | Literal["auto"], split: str | None
) -> PerplexityText:
    column, values = found
    for row, value in enumerate(values):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
            raise UserError(f"{name}: row {row} of column {column!r} has half a surrogate pair, no text") from error
    lines = all("\n" not in value.removesuffix("\n") for value in values)
    if layout == "auto":
        # Rows of a file have titles among them; pages put together again must give the same pages.
        rows = lines and any(map(is_title, values))
        layout = "wikitext" if rows or split_pages(_file_of_pages(values))[0] == values else "documents"
    if layout == "wikitext":
        # Elsewhere a row is a text, and what stands in it means nothing.
        if any("\r" in value for value in values):
            raise UserError(
                f"{name}: column {column!r} has carriage returns; rows and pages of WikiText end with \\n alone "
                "(convert it, or give --data.layout documents)"
            )
        text = join_rows(values) if lines else _file_of_pages(values)
        return _wikitext(name, text, hashlib.sha256(text.encode("utf-8")).hexdigest(), split)
    return _documents(name, layout, values, split)


def _file_of_pages(pages: Sequence[str]) -> str:
    return " \n" + "\n".join(pages)


def _wikitext(name: str, text: str, sha256: str, split: str | None = None) -> PerplexityText:
    pages, page_of_line = split_pages(text)
    if not pages:
        raise UserError(f"{name}: has no text in it")
    rows, lines = split_rows(text), text.split("\n")
    file_lengths = [len(line) + 1 for line in lines]
    row_lengths = [len(row) + 2 for row in rows]
    return PerplexityText(
        name, "wikitext", text, "\n\n".join(rows), pages, _starts(file_lengths, page_of_line, len(pages)),
        _starts(row_lengths, page_of_line, len(pages)), len(rows), sha256, split=split,
    )  # fmt: skip


def _starts(lengths: Sequence[int], page_of_piece: Sequence[int], pages: int) -> list[int]:
    """The offset of each page's first piece; what stands before the first page is the first page's."""
    starts, offset = [-1] * pages, 0
    for length, page in zip(lengths, page_of_piece, strict=False):
        if starts[page] < 0:
            starts[page] = offset
        offset += length
    return starts


def _documents(name: str, layout: Layout, texts: list[str], split: str | None = None) -> PerplexityText:
    if layout == "c4":
        texts = texts[:_C4_TEXTS]
    if not any(text.strip() for text in texts):
        raise UserError(f"{name}: has no text in it")
    between = "\n\n" if layout == "documents" else " "
    joined = between.join(texts)
    starts = _starts([len(text) + len(between) for text in texts], range(len(texts)), len(texts))
    return PerplexityText(
        name, layout, joined, joined, texts, starts, starts, len(texts),
        hashlib.sha256(joined.encode("utf-8")).hexdigest(), _C4_WINDOWS if layout == "c4" else None, split,
    )  # fmt: skip


def _json_column(path: Path, column: str | None) -> tuple[str, list[str]]:
    values: list[str] = []
    for line, entry in read_objects(path, "text file"):
        column = column or _choose(path, list(entry))
        value = entry.get(column)
        if not isinstance(value, str):
            raise UserError(f"{path}:{line}: {column!r} is no string; the columns are {', '.join(entry) or 'none'}")
        values.append(value)
    if not values:
        raise UserError(f"{path}: has no text in it")
    return column or "", values


def _parquet_column(path: Path, column: str | None) -> tuple[str, list[str]]:
    import pyarrow
    from pyarrow import parquet

    try:
        names = parquet.read_schema(path).names
        column = column or _choose(path, names)
        if column not in names:
            raise UserError(f"{path}: has no column {column!r}; the columns are {', '.join(names)}")
        values = parquet.read_table(path, columns=[column]).column(0).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error
    return column, _strings(str(path), column, values)


def _separated_column(path: Path, column: str | None, separator: str) -> tuple[str, list[str]]:
    try:
        text = read_bytes(path, "text file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    # The module's limit of 128 KiB a field is that of no text.
    csv.field_size_limit(max(csv.field_size_limit(), len(text) + 1))
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        names = next(rows, [])
        column = column or _choose(path, names)
        if column not in names:
            raise UserError(f"{path}: has no column {column!r}; the columns are {', '.join(names)}")
        place, values = names.index(column), []
        for row in rows:
            if row and len(row) != len(names):
                raise UserError(f"{path}:{rows.line_num}: {len(row)} fields, and the first line names {len(names)}")
            values += [row[place]] if row else []
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: no table with separators: {error}") from error
    return column, _strings(str(path), column, values)


def _of_hub(
    name: str, layout: Layout | Literal["auto"], subset: str | None, split: str | None, column: str | None
) -> PerplexityText:
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    known = _HUB.get(name, {})
    subset, split = subset or known.get("subset"), split or known.get("split", "test")
    if layout == "auto":
        layout = known.get("layout", "auto")
    try:
        table = load_dataset(
            name, subset, split=split, data_files=known.get("data_files"), revision=known.get("revision")
        )
    # What the client raises for a set, a subset or a split that is not there, and for a hub that does not answer.
    except (DatasetsError, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        cause = " ".join(str(error).split())[:300]
        what = "the folder" if Path(name).is_dir() else "there is no such file, and the data set of that name"
        cure = "offline, a set of the hub must be in the cache already"
        if "scripts are no longer supported" in cause:
            cure = "give one of its text or parquet files as data.path; the hub has tables at its refs/convert/parquet"
        raise UserError(f"{name}: {what} cannot be loaded: {cause} ({cure})") from error
    column = column or _choose(name, table.column_names)
    if column not in table.column_names:
        raise UserError(f"{name}: has no column {column!r}; the columns are {', '.join(table.column_names)}")
    if layout == "c4":
        table = table.select(range(min(_C4_TEXTS, len(table))))
    shown = f"{name}, {subset}" if subset else name
    return _of_table(shown, (column, _strings(name, column, table[column])), layout, split)


def _choose(source: str | Path, names: Sequence[str]) -> str:
    found = next((name for name in _COLUMNS if name in names), None)
    if found is None:
        raise UserError(f"{source}: none of the columns {', '.join(names) or '(none)'} is known: give --data.column")
    return found


def _strings(source: str, column: str, values: Sequence[Any]) -> list[str]:
    bad = next((i for i, value in enumerate(values) if not isinstance(value, str)), None)
    if bad is not None:
        raise UserError(f"{source}: row {bad} of column {column!r} is no string")
    if not len(values):
        raise UserError(f"{source}: has no text in it")
    return list(values)
