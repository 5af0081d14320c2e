"""Words to ids: the greedy longest match, and the two caches that make it rare."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import chain

from lit_hass.tokenization.characters import CharacterTable
from lit_hass.tokenization.vocabulary import PREFIX

#: Entries of a cache; a full one is emptied. Of ordinary text a full cache takes some 10 MB.
CACHE_ENTRIES = 65_536
#: What is longer hardly comes again (a Chinese paragraph has no blank) and would only fill the memory.
CACHED_CHARACTERS = 48


class PieceMatcher:
    """Greedy longest match of one word against the vocabulary, as in BERT's ``WordpieceTokenizer``.

    Tries at most as many characters as the longest piece has, so a word of n characters costs n times that at worst.
    """

    def __init__(self, vocabulary: Mapping[str, int], unk: str, max_chars: int) -> None:
        """Sort the vocabulary into what begins a word and what continues one (without its prefix)."""
        self._first = dict(vocabulary)
        self._next = {p[len(PREFIX) :]: i for p, i in vocabulary.items() if p.startswith(PREFIX) and p != PREFIX}
        self._longest_first = max(map(len, self._first))
        self._longest_next = max(map(len, self._next), default=0)
        self.unk_id = vocabulary[unk]
        self.max_chars = max_chars

    def spans(self, word: str) -> list[tuple[int, int]] | None:
        """Find the pieces of a normalised word.

        Returns:
            (id, end) of each piece, ``end`` counted in characters from the word's start; None where a part of the word
            is in no piece or the word is too long, which makes the whole word unknown.
        """
        n = len(word)
        if n > self.max_chars:
            return None
        found: list[tuple[int, int]] = []
        start, table, longest = 0, self._first, self._longest_first
        while start < n:
            end = min(n, start + longest)
            while end > start:
                piece = table.get(word[start:end])
                if piece is not None:
                    break
                end -= 1
            else:
                return None
            found.append((piece, end))
            start, table, longest = end, self._next, self._longest_next
        return found

    def ids(self, word: str) -> tuple[int, ...]:
        """The pieces' ids of a normalised word; the unknown token's alone where there are none."""
        whole = self._first.get(word)
        if whole is not None and len(word) <= self.max_chars:
            return (whole,)
        spans = self.spans(word)
        return (self.unk_id,) if spans is None else tuple([piece for piece, _ in spans])


class WordCache(dict[str, tuple[int, ...]]):
    """Normalised word -> ids."""

    def __init__(self, matcher: PieceMatcher) -> None:
        """Start empty."""
        super().__init__()
        self._matcher = matcher

    def __missing__(self, word: str) -> tuple[int, ...]:
        ids = self._matcher.ids(word)
        if len(word) <= CACHED_CHARACTERS:
            if len(self) >= CACHE_ENTRIES:
                self.clear()
            self[word] = ids
        return ids


class StretchCache(dict[str, tuple[int, ...]]):
    """What stands between two blanks of a raw text -> ids.

    A blank separates words before any rule is applied, special tokens have none in them, and marks do not move past
    one. So a stretch has the same ids wherever it stands, and most stretches of a text have been seen before.

    Args:
        table: normalises and splits.
        words: the cache behind this one.
        special: special token -> id, matched in the raw text; none makes them ordinary text.
    """

    def __init__(self, table: CharacterTable, words: WordCache, special: Mapping[str, int]) -> None:
        """Start empty."""
        super().__init__()
        self._table, self._words, self._special = table, words, special
        self._find = special_pattern(special)
        # What all special tokens begin with, to look for before the slower pattern; "" is in every stretch.
        self._mark = os.path.commonprefix(list(special))

    def __missing__(self, stretch: str) -> tuple[int, ...]:
        found: tuple[int, ...]
        if self._find is not None and self._mark in stretch and self._find.search(stretch):
            ids: list[int] = []
            for part in self._find.split(stretch):
                special = self._special.get(part)
                ids += self._ids(part) if special is None else (special,)
            found = tuple(ids)
        else:
            found = self._ids(stretch)
        if len(stretch) <= CACHED_CHARACTERS:
            if len(self) >= CACHE_ENTRIES:
                self.clear()
            self[stretch] = found
        return found

    def _ids(self, text: str) -> tuple[int, ...]:
        found = self._table.words(text)
        if len(found) == 1:
            return self._words[found[0]]
        return tuple(chain.from_iterable(map(self._words.__getitem__, found)))


def special_pattern(special: Mapping[str, int]) -> re.Pattern[str] | None:
    """A pattern that splits a text at special tokens and keeps them, the longest first; None without any."""
    if not special:
        return None
    longest_first = sorted(special, key=len, reverse=True)
    return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")")
