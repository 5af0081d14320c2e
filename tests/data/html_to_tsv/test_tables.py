import re

import pytest

from lit_hass.data.html_to_tsv import Difficulty
from lit_hass.data.html_to_tsv.rng import SplitMix
from lit_hass.data.html_to_tsv.tables import KINDS, cell_text, draw_table, invented_word

#: What each form of a kind looks like, where a pattern says more than a list of words.
PATTERNS = {
    ("number", 0): r"\d{1,2}",
    ("number", 1): r"\d{1,4}",
    ("number", 2): r"\d{1,2},\d{3}",
    ("decimal", 0): r"-?\d{1,2}\.\d{2}",
    ("decimal", 1): r"-?\d\.\d",
    ("decimal", 2): r"-?\d{1,2}%",
    ("price", 0): r"\$\d{1,3}\.\d{2}",
    ("price", 1): r"€\d{1,2}",
    ("price", 2): r"\d{1,3}\.\d{2} £",
    ("date", 0): r"(199\d|20[0-2]\d)-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])",
    ("date", 1): r"(0[1-9]|1\d|2[0-8])/(0[1-9]|1[0-2])/(199\d|20[0-2]\d)",
    ("date", 2): r"([1-9]|1\d|2[0-8]) (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) (199\d|20[0-2]\d)",
    ("code", 0): r"[A-Z]{2}-\d{1,3}",
    ("code", 1): r"#\d{1,3}",
    ("code", 2): r"[A-Z]\d{1,2}",
    ("quantity", 0): r"\d{1,3} \w+",
    ("name", 0): r"\w+ [\w']+",
    ("name", 1): r"\w+",
    ("name", 2): r"[\w']+, \w\.",
    ("note", 0): r"\w+ \w+ & \w+",
    ("note", 2): r"\w+ \w+",
}


@pytest.mark.parametrize("kind", [kind for kind, _ in KINDS])
@pytest.mark.parametrize("form", [0, 1, 2])
def test_cells_look_as_their_kind_says(kind: str, form: int) -> None:
    rng = SplitMix("cells", kind, form)
    pattern = PATTERNS.get((kind, form), r"\S+( \S+)*")
    texts = [cell_text(rng, kind, form, rich=True) for _ in range(200)]
    for text in texts:
        assert re.fullmatch(pattern, text), text
        assert text == " ".join(text.split()) and text
    assert len(set(texts)) > 5
    plain = [cell_text(rng, kind, form, rich=False) for _ in range(100)]
    assert all(text.isascii() and text == " ".join(text.split()) and text for text in plain)


def test_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such kind"):
        cell_text(SplitMix(), "colour", 0, True)


def test_invented_words_are_many() -> None:
    rng = SplitMix("words")
    assert len({invented_word(rng) for _ in range(1000)}) > 950


def test_drill_words_show_pieces_of_known_words() -> None:
    """Many more words than usual that nobody has seen, among them beginnings of known ones in another word."""
    seen: dict[bool, set[str]] = {}
    for drill in (False, True):
        rng = SplitMix("drill")
        tables = [draw_table(rng, Difficulty(6, 5, drill=drill))[0] for _ in range(1000)]
        seen[drill] = {
            word for rows in tables for row in rows for cell in row for word in cell.split() if word.isalpha()
        }
    assert len(seen[True]) > 2 * len(seen[False])
    new = seen[True] - seen[False]
    assert sum(word.startswith(("Den", "Jam", "Man", "Par")) for word in new) > 10


def test_tables_have_headers_empty_cells_and_never_say_nothing() -> None:
    rng = SplitMix("tables")
    headers = empty = cells = 0
    for _ in range(1000):
        rows, has_header = draw_table(rng, Difficulty(6, 5))
        assert any(any(row) for row in rows)
        assert not (has_header and len(rows) == 1)
        headers += has_header
        if has_header:
            assert all(rows[0])
        empty += sum(cell == "" for row in rows for cell in row)
        cells += sum(map(len, rows))
    assert 550 < headers < 750
    assert 0.02 < empty / cells < 0.12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4x4", Difficulty(4, 4)),
        ("6x5", Difficulty(6, 5)),
        ("12x1", Difficulty(12, 1)),
        ("2x2-plain", Difficulty(2, 2, styles=False)),
        ("6x5-drill", Difficulty(6, 5, drill=True)),
    ],
)
def test_difficulties_are_read(text: str, expected: Difficulty) -> None:
    assert Difficulty.parse(text) == expected


@pytest.mark.parametrize(
    "text", ["", "4", "x4", "4x", "4x4x4", "axb", "4x4-fancy", "-1x2", "4 x 4", "0x3", "3x0", "2.5x2"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="difficulty|cannot have"):
        Difficulty.parse(text)


def test_least_beyond_most_is_refused() -> None:
    with pytest.raises(ValueError, match="3 to 2 columns"):
        Difficulty(4, 2, min_columns=3)
