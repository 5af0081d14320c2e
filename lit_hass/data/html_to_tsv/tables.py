"""What stands in a table: rows of cell texts, before any HTML."""

from __future__ import annotations

from dataclasses import dataclass

from lit_hass.data.html_to_tsv import words
from lit_hass.data.html_to_tsv.rng import SplitMix

#: Kinds of column and how often each is drawn.
KINDS = (
    ("name", 14),
    ("city", 9),
    ("thing", 13),
    ("note", 8),
    ("number", 12),
    ("decimal", 8),
    ("price", 11),
    ("date", 10),
    ("status", 5),
    ("code", 6),
    ("quantity", 4),
)

#: What drill words are made of.
_KNOWN = tuple(
    word.lower()
    for word in (
        *words.FIRST_NAMES,
        *words.LAST_NAMES,
        *words.CITIES,
        *words.THINGS,
        *words.QUALITIES,
        *words.STATUSES,
        *words.MONTHS,
        *(title for titles in words.HEADERS.values() for title in titles),
    )
    if word.isascii() and word.isalpha()
)


@dataclass(frozen=True)
class Difficulty:
    """How large and how varied the tables are.

    Args:
        max_rows: most rows, header included (at least 1).
        max_columns: most columns (at least 1).
        min_rows: fewest rows.
        min_columns: fewest columns.
        styles: False gives plain ASCII words in bare tags (``<th>`` in a header row) on one line; True gives every
            style of `render`.
        drill: for training only: many more invented words, made of pieces of known words as well. A tokenizer has
            pieces such as ``Den`` (of Denver) that a normal table shows alone once in a hundred thousand words; a model
            that has seen them alone can copy them.
    """

    max_rows: int = 4
    max_columns: int = 4
    min_rows: int = 1
    min_columns: int = 1
    styles: bool = True
    drill: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that no table has."""
        for low, high, what in (
            (self.min_rows, self.max_rows, "rows"),
            (self.min_columns, self.max_columns, "columns"),
        ):
            if not 1 <= low <= high:
                raise ValueError(f"a table cannot have {low} to {high} {what}")

    @classmethod
    def parse(cls, text: str) -> Difficulty:
        """Read ``"6x5"`` (up to 6 rows, 5 columns, all styles), ``"2x2-plain"`` or ``"6x5-drill"``.

        Raises:
            ValueError: the text is of another form.
        """
        size, _, style = text.partition("-")
        rows, x, columns = size.partition("x")
        if not (x and rows.isdecimal() and columns.isdecimal()) or style not in ("", "plain", "drill"):
            raise ValueError(
                f"difficulty {text!r} is not of the form ROWSxCOLUMNS, ROWSxCOLUMNS-plain or ROWSxCOLUMNS-drill, "
                "such as 4x4"
            )
        return cls(int(rows), int(columns), styles=style != "plain", drill=style == "drill")


def draw_table(rng: SplitMix, difficulty: Difficulty) -> tuple[list[list[str]], bool]:
    """Draw the texts of one table.

    Returns:
        rows of cell texts, and whether the first row is a header. Texts hold no tab or newline, no run of spaces
        and no space at either end: they are what the TSV must say.
    """
    n_rows = _size(rng, difficulty.min_rows, difficulty.max_rows)
    n_columns = _size(rng, difficulty.min_columns, difficulty.max_columns)
    kinds = [rng.weighted(KINDS) for _ in range(n_columns)]
    has_header = n_rows > 1 and rng.chance(70)
    # One convention per column, as in real tables: dates of one column look alike.
    forms = [rng.below(3) for _ in range(n_columns)]
    empty_percent = rng.weighted(((0, 5), (8, 4), (25, 1)))
    rows: list[list[str]] = []
    if has_header:
        rows.append([_header(rng, kind) for kind in kinds])
    while len(rows) < n_rows:
        rows.append(
            [
                "" if rng.chance(empty_percent) else cell_text(rng, kind, form, difficulty.styles, difficulty.drill)
                for kind, form in zip(kinds, forms, strict=True)
            ]
        )
    if not any(any(row) for row in rows):
        rows[0][0] = cell_text(rng, kinds[0], forms[0], difficulty.styles, difficulty.drill)  # a table says something
    return rows, has_header


def _size(rng: SplitMix, low: int, high: int) -> int:
    """The larger of two draws: small tables are easy and say little, so they are rarer."""
    return max(rng.between(low, high), rng.between(low, high))


def cell_text(rng: SplitMix, kind: str, form: int, rich: bool, drill: bool = False) -> str:
    """One cell of a column of ``kind``, written in the column's ``form`` (0 to 2)."""
    if drill and kind in ("name", "city", "thing", "status", "note") and rng.chance(60):
        word = drill_word(rng)
        return word.capitalize() if kind in ("name", "city") or rng.chance(20) else word
    match kind:
        case "name":
            first, last = rng.pick(words.FIRST_NAMES), _last_name(rng)
            text = (f"{first} {last}", first, f"{last}, {first[0]}.")[form]
        case "city":
            text = rng.pick(words.CITIES)
        case "thing":
            text = rng.pick(words.THINGS) if form < 2 else f"{rng.pick(words.QUALITIES)} {rng.pick(words.THINGS)}"
        case "note":
            text = _note(rng, form)
        case "number":
            text = (str(rng.below(100)), str(rng.below(10_000)), f"{rng.between(1, 99)},{rng.below(1000):03d}")[form]
        case "decimal":
            sign = "-" if rng.chance(20) else ""
            value = f"{rng.below(100)}.{rng.below(100):02d}"
            text = (f"{sign}{value}", f"{sign}{rng.below(10)}.{rng.below(10)}", f"{sign}{rng.below(100)}%")[form]
        case "price":
            amount = f"{rng.between(1, 999)}.{rng.below(100):02d}"
            text = (f"${amount}", f"€{rng.between(1, 99)}", f"{amount} £")[form]
        case "date":
            year, month, day = rng.between(1990, 2029), rng.between(1, 12), rng.between(1, 28)
            text = (
                f"{year}-{month:02d}-{day:02d}",
                f"{day:02d}/{month:02d}/{year}",
                f"{day} {words.MONTHS[month - 1]} {year}",
            )[form]
        case "status":
            text = rng.pick(words.STATUSES)
        case "code":
            letters = "".join(rng.pick("ABCDEFGHKLMNPRSTUVWXZ") for _ in range(2))
            text = (f"{letters}-{rng.below(1000)}", f"#{rng.below(1000)}", f"{letters[0]}{rng.below(100)}")[form]
        case "quantity":
            text = f"{rng.between(1, 999)} {rng.pick(words.UNITS)}"
        case _:
            raise ValueError(f"no such kind of column: {kind!r}")
    return text if rich else text.encode("ascii", "ignore").decode().strip() or "x"


def _last_name(rng: SplitMix) -> str:
    return invented_word(rng).capitalize() if rng.chance(25) else rng.pick(words.LAST_NAMES)


def _note(rng: SplitMix, form: int) -> str:
    thing, other, quality = rng.pick(words.THINGS), rng.pick(words.THINGS), rng.pick(words.QUALITIES)
    match form:
        case 0:
            return f"{quality} {thing} & {other}"
        case 1:
            return rng.pick((f"{thing} < {other}", f"{thing} > {other}", f'"{quality}" {thing}', f"{thing}'s {other}"))
        case _:
            return f"{invented_word(rng)} {thing}"


def invented_word(rng: SplitMix) -> str:
    """A pronounceable word of two or three syllables that most likely nobody has seen."""
    return "".join(
        rng.pick(words.ONSETS) + rng.pick(words.VOWELS) + rng.pick(words.CODAS) for _ in range(rng.between(2, 3))
    )


def drill_word(rng: SplitMix) -> str:
    """A word of two or three parts, each a syllable or a piece of a known word."""
    parts = []
    for _ in range(rng.between(2, 3)):
        if rng.chance(30):
            parts.append(rng.pick(words.ONSETS) + rng.pick(words.VOWELS))
        else:
            word = rng.pick(_KNOWN)
            # Beginnings above all: a capital letter is in a piece that begins a word.
            start = 0 if not parts and rng.chance(60) else rng.below(len(word) - 1)
            parts.append(word[start : start + rng.between(2, 6)])
    return "".join(parts)


def _header(rng: SplitMix, kind: str) -> str:
    title = rng.pick(words.HEADERS[kind])
    return f"{title} {rng.between(1, 9)}" if rng.chance(10) else title
