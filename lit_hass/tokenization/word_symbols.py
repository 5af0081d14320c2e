"""Words as sequences of symbols, and the pairs in them, kept up to date merge by merge."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from lit_hass.tokenization.vocabulary import PREFIX

#: Two symbols that stand side by side.
Pair = tuple[int, int]


class WordSymbols:
    """All distinct words of a corpus as symbols, with counts of symbols and of pairs.

    A word begins as its first character and its others behind ``##``. `merge` makes one symbol of a pair everywhere;
    only the words that hold the pair are touched.

    Args:
        words: word -> count.

    Attributes:
        symbols: the strings; a symbol is its index here.
        units: how often each symbol stands in the corpus.
        pairs: how often each pair does; pairs that stand nowhere any more are taken out.
    """

    def __init__(self, words: Mapping[str, int]) -> None:
        """Split the words into characters and count."""
        self.symbols: list[str] = []
        self._index: dict[str, int] = {}
        for symbol in alphabet(words):
            self.intern(symbol)
        index = self._index
        self._words = [[index[w[0]], *[index[PREFIX + c] for c in w[1:]]] for w in words]
        self._counts = list(words.values())
        self.units: dict[int, int] = defaultdict(int)
        self.pairs: dict[Pair, int] = defaultdict(int)
        # Words that may hold the pair; those that lost it meanwhile are passed over when it is merged.
        self._places: dict[Pair, set[int]] = defaultdict(set)
        for i, (word, count) in enumerate(zip(self._words, self._counts, strict=True)):
            for unit in word:
                self.units[unit] += count
            for pair in zip(word, word[1:], strict=False):
                self.pairs[pair] += count
                self._places[pair].add(i)

    def intern(self, symbol: str) -> int:
        """The symbol's index; a new one where the string is new."""
        index = self._index.setdefault(symbol, len(self.symbols))
        if index == len(self.symbols):
            self.symbols.append(symbol)
        return index

    def knows(self, symbol: str) -> bool:
        """Whether the string is a symbol already."""
        return symbol in self._index

    def merged(self, pair: Pair) -> str:
        """The string that the pair becomes."""
        return self.symbols[pair[0]] + self.symbols[pair[1]][len(PREFIX) :]

    def merge(self, pair: Pair) -> tuple[int, set[Pair]]:
        """Make one symbol of a pair wherever it stands, from the left in each word.

        Returns:
            the new symbol, and the pairs whose count changed (this one among them).
        """
        left, right = pair
        new = self.intern(self.merged(pair))
        pairs, places = self.pairs, self._places
        changed = {pair}
        merges = 0
        for i in places.pop(pair):
            word, count = self._words[i], self._counts[i]
            at, last = 0, len(word) - 1
            while at < last:
                if word[at] == left and word[at + 1] == right:
                    if at:
                        before = word[at - 1]
                        old, made = (before, left), (before, new)
                        pairs[old] -= count
                        pairs[made] += count
                        places[made].add(i)
                        changed.add(old)
                        changed.add(made)
                    if at + 1 < last:
                        behind = word[at + 2]
                        old, made = (right, behind), (new, behind)
                        pairs[old] -= count
                        pairs[made] += count
                        places[made].add(i)
                        changed.add(old)
                        changed.add(made)
                    word[at : at + 2] = [new]
                    last -= 1
                    merges += count
                at += 1
        # With the pair (a, a) in "aaa" the neighbours above are the pair itself; it stands nowhere now.
        pairs[pair] = 0
        self.units[left] -= merges
        self.units[right] -= merges
        self.units[new] += merges
        for one in changed:
            if pairs[one] <= 0:
                del pairs[one]
                places.pop(one, None)
        return new, changed


def alphabet(words: Mapping[str, int]) -> list[str]:
    """Every character on its own, and with ``##`` where it was seen inside a word; sorted.

    The first kind keeps any word of seen characters from beginning with an unknown one.
    """
    plain = {character for word in words for character in word}
    inside = {character for word in words for character in word[1:]}
    return sorted(plain | {PREFIX + character for character in inside})
