"""Where in a text its pieces stand."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from itertools import chain, islice

from lit_hass.tokenization.characters import CharacterTable
from lit_hass.tokenization.matching import PieceMatcher, special_pattern

#: An id and the span of characters, end not included, that it stands for.
Aligned = tuple[int, tuple[int, int]]


def align(text: str, table: CharacterTable, matcher: PieceMatcher, special: Mapping[str, int]) -> list[Aligned]:
    """Encode a text and keep where each piece came from.

    Args:
        text: the raw text.
        table: normalises and splits.
        matcher: finds a word's pieces.
        special: special tokens that are matched in the raw text, with their ids.

    Raises:
        LoneSurrogate: the text has half a surrogate pair.
    """
    find = special_pattern(special)
    aligned: list[Aligned] = []
    start = 0
    for part in find.split(text) if find else [text]:
        end = start + len(part)
        if part in special:
            aligned.append((special[part], (start, end)))
        else:
            for word, origins in _words(part, start, table):
                aligned += _pieces(word, origins, matcher)
        start = end
    return aligned


def _pieces(word: str, origins: list[int], matcher: PieceMatcher) -> Iterator[Aligned]:
    spans = matcher.spans(word)
    begin = 0
    for piece, end in [(matcher.unk_id, len(word))] if spans is None else spans:
        # Marks may have changed places, so the ends of the span need not be the ends of the piece.
        yield piece, (min(origins[begin:end]), max(origins[begin:end]) + 1)
        begin = end


def _words(text: str, start: int, table: CharacterTable) -> Iterator[tuple[str, list[int]]]:
    """Normalised words, and for each of their characters the position in the text that it came from."""
    words = table.words(text)
    made = [(c, i) for i, character in enumerate(text, start) for c in table[ord(character)] if c != " "]
    if all(map(str.__eq__, chain.from_iterable(words), (c for c, _ in made))):
        rest = iter(made)
        for word in words:
            yield word, [i for _, i in islice(rest, len(word))]
        return
    # Marks were put in order, which is a stable sort: the first of equal characters is still the first.
    places: dict[str, deque[int]] = {}
    for character, i in made:
        places.setdefault(character, deque()).append(i)
    for word in words:
        yield word, [places[character].popleft() for character in word]
