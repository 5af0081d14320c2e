"""The character table against the tokenizers package: every code point (slow), and a sample of them."""

import json
import random
import re
import unicodedata
from pathlib import Path

import pytest
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from lit_hass.tokenization.characters import CharacterTable, LoneSurrogate, rules
from lit_hass.tokenization.config import WordPieceConfig
from tests.door.conftest import ROOT
from tests.tokenization.texts import corpora, random_texts

#: Code points that Python's Unicode 14 tables treat otherwise than the package's: uncased and cased -> class -> ranges.
EXCEPTIONS = json.loads((Path(__file__).parent / "unicode14_exceptions.json").read_text(encoding="utf-8"))
SETTINGS = [
    {"lowercase": lowercase, "strip_accents": strip} for lowercase in (True, False) for strip in (None, True, False)
]


def bert_words(text: str, lowercase: bool, strip_accents: bool | None) -> list[str]:
    """The package's own words."""
    normalizer = BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    return [word for word, _ in BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text))]


def differing(tables: str, lowercase: bool, codes, strip_accents: bool | None = None) -> list[int]:
    """Code points for which the table's words are not the package's."""
    table = CharacterTable(WordPieceConfig(lowercase=lowercase, strip_accents=strip_accents, tables=tables))
    normalizer, splitter = BertNormalizer(lowercase=lowercase, strip_accents=strip_accents), BertPreTokenizer()
    found = []
    for code in codes:
        text = f"a{chr(code)}b"
        if table.words(text) != [w for w, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))]:
            found.append(code)
    return found


def scalars() -> list[int]:
    """All 1,112,064 scalar values."""
    return [code for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]


def listed(case: str, only: str | None = None) -> set[int]:
    """The exceptions of a case or of one of its classes, from ranges of hexadecimal numbers."""
    found: set[int] = set()
    for name, ranges in EXCEPTIONS[case].items():
        for text in ranges if only in (None, name) else []:
            first, _, last = text.partition("-")
            found.update(range(int(first, 16), int(last or first, 16) + 1))
    return found


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_sample_of_code_points(settings):
    draw = random.Random(3)
    codes = [*range(0x3000), *draw.sample(range(0xE000, 0x20000), 4000), *draw.sample(range(0x20000, 0x110000), 1000)]
    assert differing("bert", settings["lowercase"], codes, settings["strip_accents"]) == []


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_code_point(settings):
    assert differing("bert", settings["lowercase"], scalars(), settings["strip_accents"]) == []


@pytest.mark.slow
@pytest.mark.parametrize(("case", "lowercase"), [("uncased", True), ("cased", False)])
def test_every_code_point_with_pythons_tables(case, lowercase):
    found = differing("python", lowercase, scalars())
    if unicodedata.unidata_version == "14.0.0":
        assert set(found) == listed(case)
    # Another Python knows more characters or fewer; the reasons stay the same.
    allowed = {"Po", "Ps", "Pe", "Pd", "Pf", "Pi", "Mn", "Mc", "Cf", "Cn", "So", "Lo", "Lu", "Ll"}
    assert len(found) < 2000 and {unicodedata.category(chr(code)) for code in found} <= allowed


def test_listed_exceptions_are_as_many_as_the_documentation_says():
    assert len(listed("uncased")) == 559 and len(listed("cased")) == 119
    page = (ROOT / "docs" / "wordpiece.md").read_text(encoding="utf-8")
    told = re.findall(r"^\| (\w+) \| (\d+) \| (\d+) \| \S", page, re.MULTILINE)
    counted = {name: [len(listed(case, name)) for case in ("uncased", "cased")] for name in EXCEPTIONS["uncased"]}
    assert {name: [int(uncased), int(cased)] for name, uncased, cased in told} == counted
    assert EXCEPTIONS.keys() == {"uncased", "cased"} and EXCEPTIONS["cased"].keys() <= counted.keys()


@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0", reason="the list is that of Unicode 14")
@pytest.mark.parametrize(("case", "lowercase"), [("uncased", True), ("cased", False)])
def test_listed_exceptions_do_differ_and_their_neighbours_do_not(case, lowercase):
    exceptions = listed(case)
    assert set(differing("python", lowercase, sorted(exceptions))) == exceptions
    beside = {code + step for code in exceptions for step in (-1, 1)} - exceptions
    assert differing("python", lowercase, sorted(beside)) == []


@pytest.mark.parametrize("tables", ["bert", "python"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_table_agrees_with_plain_passes(tables, settings):
    config = WordPieceConfig(**settings, tables=tables)
    table, plain = CharacterTable(config), rules(config)
    for text in [*random_texts(800, seed=4), *(text for texts in corpora().values() for text in texts)]:
        assert table.words(text) == plain.words(text)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_marks_of_every_class_in_any_order(settings):
    """Any scalar value among marks; those that survive (Mc, Me, ...) change places where text is decomposed."""
    marks = [chr(code) for code in scalars() if unicodedata.combining(chr(code))]
    surviving = [mark for mark in marks if unicodedata.category(mark) != "Mn"]
    draw = random.Random(99)
    table = CharacterTable(WordPieceConfig(**settings))
    for _ in range(500):
        kinds = [marks, surviving, "aB \u3002\u200b\uac01\u0344\u0958", [chr(draw.randrange(0xE000, 0x110000))]]
        text = "".join(draw.choice(draw.choice(kinds)) for _ in range(draw.randrange(25)))
        assert table.words(text) == bert_words(text, **settings)


def test_order_of_marks_is_canonical():
    # Hangul tone mark (class 224) before musical stem (216): decomposition swaps them, and neither is dropped.
    text = "a\u302e\U0001d165"
    assert bert_words(text, True, None) == ["a\U0001d165\u302e"]
    for tables in ("bert", "python"):
        assert CharacterTable(WordPieceConfig(tables=tables)).words(text) == ["a\U0001d165\u302e"]
        assert CharacterTable(WordPieceConfig(lowercase=False, tables=tables)).words(text) == [text]


@pytest.mark.parametrize("tables", ["bert", "python"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\u0391\u03a3", ["\u03b1\u03c3"]),  # no final sigma
        ("\u0130X", ["ix"]),
        ("\ufb01n", ["\ufb01n"]),  # no compatibility forms
        ("a\u200bb\u00adc\ufeff", ["abc"]),
        ("a\x0bb\x1cc\x85d", ["abcd"]),
        ("a\u2028b\u3000c\td", ["a", "b", "c", "d"]),
        ("\u4f60\u597d", ["\u4f60", "\u597d"]),
        ("\U0002b820", ["\U0002b820"]),
        ("x\U0002b820y\U0002b920z", ["x\U0002b820y", "\U0002b920", "z"]),
        ("\u3042\u30a2", ["\u3042\u30a2"]),
        ("a$b^c`d\u2014e", ["a", "$", "b", "^", "c", "`", "d", "\u2014", "e"]),
        ("\u20ac5+\u00b1", ["\u20ac5", "+", "\u00b1"]),  # ASCII's symbols stand alone, others do not
        ("\uac01", ["\u1100\u1161\u11a8"]),
        ("a\u0378b", ["a\u0378b"]),
    ],
)
def test_named_cases(tables, text, words):
    assert CharacterTable(WordPieceConfig(tables=tables)).words(text) == words


def test_half_a_surrogate_pair():
    with pytest.raises(LoneSurrogate):
        CharacterTable(WordPieceConfig()).words("a\ud800")
