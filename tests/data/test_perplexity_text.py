"""Rows, pages and the detokeniser, and where text comes from."""

import csv
import gzip
import io
import json

import pyarrow
import pytest
from pyarrow import parquet

from lit_hass.data.perplexity_sources import read_text
from lit_hass.data.perplexity_text import (
    count_bytes,
    count_real_words,
    count_words,
    detokenise,
    join_rows,
    split_pages,
    split_rows,
)
from lit_hass.errors import UserError
from tests.perplexity_bases import TEXT

FILE = " \n = One = \n \n first line . \n = = Part = = \n more \n \n = Two = \n \n last \n"


def test_rows_and_back() -> None:
    rows = split_rows(FILE)
    assert rows[:4] == ["", " = One = \n", "", " first line . \n"] and rows[-1] == " last \n"
    assert join_rows(rows) == FILE
    assert join_rows([row.rstrip("\n") for row in rows]) == FILE  # as a loader that strips line ends gives them


def test_pages_and_back() -> None:
    pages, page_of_line = split_pages(FILE)
    assert [page.split("\n")[0] for page in pages] == [" = One = ", " = Two = "]
    assert " \n" + "\n".join(pages) == FILE
    assert page_of_line == [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_formula_lines_that_look_like_titles_are_titles() -> None:
    pages, _ = split_pages(" \n = Filter = \n \n text \n = 1 rad / s and a nominal impedance k = \n more \n")
    assert len(pages) == 2


def test_text_without_titles_is_one_page_and_blank_text_none() -> None:
    assert split_pages("a\nb\n")[0] == ["a\nb\n"]
    assert split_pages(" \n \n")[0] == []


def test_counts() -> None:
    assert count_words(" a b \n") == 4 and count_real_words(" a b \n") == 2
    assert count_words("") == 1 and count_words(" ") == 2 and count_bytes("é") == 2


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("boys ' hats", "boys' hats"),  # s '
        ("/' 5/", "/'[0-9]/"),  # a pattern with slashes in it, replaced by itself
        ("' 5", "' 5"),
        ("high @-@ water 4 @,@ 200 9 @.@ 1", "high-water 4,200 9.1"),
        ("a : b ; c . d ! e ? f , g", "a: b; c. d! e? f, g"),
        ("x ( y  z ) [ q ] { r }", "x (y  z) [q] {r}"),
        ('say " a \n b " now " c', 'say "a\nb" now " c'),  # over lines; the odd one stays
        ("a ' b ' c ' d", "a 'b' c ' d"),  # single quotes pair up too
        ("it ' s so '", "it's so'"),  # and what comes out is a word ending
        (" = = = = Deep = = = = ", " ==== Deep ==== "),
        (" = = Part = = ", " == Part == "),
        ("9 \N{DEGREE SIGN} C", "9\N{DEGREE SIGN}C"),
        ("a \n b", "a\nb"),
        (" N of N ", " 1 of 1 "),
        ("Olin 's iron", "Olin's iron"),
        (" = Title = \n", " = Title =\n"),
    ],
)
def test_detokeniser(page: str, text: str) -> None:
    assert detokenise(page) == text


def test_shipped_text() -> None:
    text = read_text("invented_pages")
    assert text.describe()["pages"] == 12 and text.describe()["unk_words"] == 0
    assert " \n" + "\n".join(text.pages) == text.file == TEXT.read_text(encoding="utf-8")
    for starts, stream in ((text.file_starts, text.file), (text.joined_starts, text.joined)):
        assert starts[0] == 0
        titles = [stream[start:].split("\n")[0] for start in starts[1:]]
        assert titles == [page.split("\n")[0] for page in text.pages[1:]]


@pytest.mark.parametrize("kind", ["rows", "stripped", "pages"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "folder"])
def test_tables_give_the_text_of_the_file(tmp_path, kind: str, suffix: str) -> None:
    whole = read_text("invented_pages")
    rows = split_rows(whole.file)
    column, values = {
        "rows": ("text", rows),
        "stripped": ("text", [row.rstrip("\n") for row in rows]),
        "pages": ("page", whole.pages),
    }[kind]
    if suffix == "jsonl":
        path = tmp_path / "text.jsonl"
        path.write_text("".join(json.dumps({column: value}) + "\n" for value in values), encoding="utf-8")
    else:
        path = tmp_path / "test.parquet"
        parquet.write_table(pyarrow.table({"number": list(range(len(values))), column: values}), path)
    # A folder goes the way of a set of the hub, through `datasets`.
    found = read_text(str(tmp_path if suffix == "folder" else path))
    assert found.layout == "wikitext"
    assert (found.file, found.joined, found.pages) == (whole.file, whole.joined, whole.pages)
    assert found.sha256 == whole.sha256


TEXTS = ['a "quoted", text\nof two lines\r\nand more', "plain", "x" * 200_000]


def separated(separator: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=separator)
    writer.writerows([["id", "text"], *enumerate(TEXTS)])
    return out.getvalue().encode("utf-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", b"\xef\xbb\xbf" + separated(",")),
        ("t.tsv", separated("\t")),
        ("t.csv.gz", gzip.compress(separated(","), mtime=0)),
        ("t.json", json.dumps([{"id": i, "text": text} for i, text in enumerate(TEXTS)]).encode()),
        ("t.json", json.dumps([{"text": text} for text in TEXTS], indent=2).encode()),
        ("t.json.gz", gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode(), mtime=0)),
        ("t.jsonl.gz", gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode(), mtime=0)),
    ],
)
def test_tables_of_other_forms(tmp_path, name: str, content: bytes) -> None:
    """Read as tables, never as prose; a carriage return within a text is a character like another."""
    (tmp_path / name).write_bytes(content)
    found = read_text(str(tmp_path / name))
    assert found.layout == "documents" and found.pages == TEXTS


def test_a_compressed_file_is_its_text(tmp_path) -> None:
    (tmp_path / "wiki.raw.gz").write_bytes(gzip.compress(TEXT.read_bytes()))
    found, whole = read_text(str(tmp_path / "wiki.raw.gz")), read_text(str(TEXT))
    assert (found.pages, found.joined, found.sha256) == (whole.pages, whole.joined, whole.sha256)


def test_names_that_sets_had_and_sets_with_a_script(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for old, name in (("wikitext", "Salesforce/wikitext"), ("ptb_text_only", "ptb-text-only/ptb_text_only")):
        with pytest.raises(UserError, match=f"^{name}: there is no such file, and the data set of that name cannot"):
            read_text(old)  # offline, as all tests are
    folder = tmp_path / "wikitext"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"text": ["of the folder"]}), folder / "test.parquet")
    assert read_text("wikitext").pages == ["of the folder"]
    script = tmp_path / "scripted"
    script.mkdir()
    (script / "scripted.py").write_text("raise SystemExit('never run')\n")
    with pytest.raises(UserError, match="scripts are no longer supported.*give one of its text or parquet files"):
        read_text(str(script))


def test_documents_c4_and_ptb(tmp_path) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {i}\nsecond line"}) + "\n" for i in range(1200)))
    found = read_text(str(path))
    assert (
        found.layout == "documents" and len(found.pages) == 1200 and found.joined.startswith("text 0\nsecond line\n\n")
    )
    c4 = read_text(str(path), layout="c4")
    assert len(c4.pages) == 1100 and c4.joined.startswith("text 0\nsecond line text 1\n") and c4.most_windows == 256
    assert [c4.joined[start : start + 6] for start in c4.joined_starts[:3]] == ["text 0", "text 1", "text 2"]
    sentences = tmp_path / "ptb.txt"
    sentences.write_text(" no it was n't \n but it <unk> \n")
    assert read_text(str(sentences), layout="ptb").joined == " no it was n't   but it <unk> "


def bad(tmp_path, name: str, content: bytes, **more):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_text(str(path), **more)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    return str(error.value)


def test_bad_input(tmp_path) -> None:
    assert "no text" in bad(tmp_path, "a.txt", b"")
    assert "no text" in bad(tmp_path, "a.txt", b" \n \n")
    assert "byte 3" in bad(tmp_path, "a.txt", b"abc\xff\n")
    assert ":2:" in bad(tmp_path, "a.txt", b"abc\nd\r\n")
    assert "byte order mark" in bad(tmp_path, "a.txt", b"\xef\xbb\xbfabc\n")
    assert "no text" in bad(tmp_path, "a.jsonl", b"\n")
    assert ":1:" in bad(tmp_path, "a.jsonl", b"{\n")
    assert "give --data.column" in bad(tmp_path, "a.jsonl", b'{"words": "a"}\n')
    assert "no string" in bad(tmp_path, "a.jsonl", b'{"text": 5}\n')
    assert "parquet" in bad(tmp_path, "a.parquet", b"nothing of the kind")
    assert ":3: 1 fields" in bad(tmp_path, "a.csv", b"id,text\r\n1,a\r\n2\r\n")
    assert "no table with separators" in bad(tmp_path, "a.csv", b'text\n"a')
    assert "give --data.column" in bad(tmp_path, "a.csv", b"a,b\n1,2\n")
    assert "no column 'x'; the columns are a, b" in bad(tmp_path, "a.tsv", b"a\tb\n1\t2\n", column="x")
    assert "give --data.column" in bad(tmp_path, "a.csv", b"")
    assert "no text" in bad(tmp_path, "a.csv", b"text\n")
    assert "not UTF-8" in bad(tmp_path, "a.csv", b"text\n\xff\n")
    assert "cannot be decompressed" in bad(tmp_path, "a.txt.gz", b"plain")
    assert "--data.layout documents" in bad(tmp_path, "a.jsonl", b'{"text": " = A = \\r\\n"}\n{"text": "b"}\n')
    assert "row 1 of" in bad(tmp_path, "a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}\n')
    for name in ("nowhere.txt", "texts/nowhere.txt"):  # the second is no data set either
        with pytest.raises(UserError, match="no such file, and no name"):
            read_text(name)
    with pytest.raises(UserError, match="cannot be loaded"):  # offline, as all tests are
        read_text("Salesforce/wikitext")
