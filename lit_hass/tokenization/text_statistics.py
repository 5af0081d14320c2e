"""What a vocabulary makes of texts, in counts that add up over texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lit_hass.tokenization.characters import CharacterTable, LoneSurrogate, not_unicode
from lit_hass.tokenization.matching import PieceMatcher


@dataclass(frozen=True)
class TextStatistics:
    """Counts over texts.

    Args:
        texts: how many.
        bytes: of their UTF-8 form.
        stretches: what white space separates, the "words" of fertility.
        words: what the tokenizer matches one by one; marks are words of their own.
        pieces: tokens that come out, without added special tokens.
        unknown: words that became the unknown token.
        overlong: those of them that have more than ``max_chars`` characters.
    """

    texts: int
    bytes: int
    stretches: int
    words: int
    pieces: int
    unknown: int
    overlong: int

    @property
    def fertility(self) -> float | None:
        """Pieces per stretch; None without any."""
        return self.pieces / self.stretches if self.stretches else None

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes per piece; None without any."""
        return self.bytes / self.pieces if self.pieces else None

    @property
    def unknown_rate(self) -> float | None:
        """Share of the pieces that are the unknown token; None without any."""
        return self.unknown / self.pieces if self.pieces else None


def text_statistics(texts: Iterable[str], table: CharacterTable, matcher: PieceMatcher) -> TextStatistics:
    """Count over texts; special tokens in them are ordinary text.

    Raises:
        TypeError: a text is no str; names its position among them.
        ValueError: a text has half a surrogate pair; names both positions.
    """
    number = size = stretches = 0
    words: Counter[str] = Counter()
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"text {i}: expected str, got {type(text).__name__}")
        number += 1
        try:
            words.update(table.words(text))
        except LoneSurrogate:
            raise ValueError(f"text {i}: {not_unicode(text)}") from None
        size += len(text.encode("utf-8"))
        stretches += len(text.split())
    pieces = unknown = overlong = 0
    for word, count in words.items():
        spans = matcher.spans(word)
        pieces += count * (1 if spans is None else len(spans))
        if spans is None:
            unknown += count
            overlong += count if len(word) > matcher.max_chars else 0
    return TextStatistics(number, size, stretches, words.total(), pieces, unknown, overlong)
