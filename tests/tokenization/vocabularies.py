"""Vocabularies for comparisons: pieces of the test texts, dense enough that most words are cut in many ways."""

import functools
import random
import unicodedata

from lit_hass.tokenization.characters import CharacterTable
from lit_hass.tokenization.config import SpecialTokens, WordPieceConfig
from tests.tokenization.texts import SCRIPTS, corpora

SPECIAL = list(SpecialTokens().tokens)


@functools.cache
def dense_vocabulary() -> tuple[str, ...]:
    """Special tokens, then single characters and random pieces of the corpora and of the random texts' scripts.

    Some characters are in no piece, so that there are unknown words, too.
    """
    draw = random.Random(0)
    words = set()
    for lowercase in (True, False):
        table = CharacterTable(WordPieceConfig(lowercase=lowercase))
        for texts in corpora().values():
            words.update(word for text in texts for word in table.words(text))
    found = set()
    for word in sorted(words):
        found.update(word if draw.random() < 0.9 else "")
        found.update("##" + c for c in word if draw.random() < 0.9)
        for _ in range(3):
            start = draw.randrange(len(word))
            end = min(draw.randrange(start, len(word)) + 1, start + 20)
            found.add(("##" if start else "") + word[start:end])
    for first, last in SCRIPTS:
        for code in range(first, min(last, first + 200)):
            for c in unicodedata.normalize("NFD", chr(code)) + chr(code):
                if draw.random() < 0.7:
                    found |= {c, c.lower(), "##" + c, "##" + c.lower()}
    missing = {c for c in sorted({c for piece in found for c in piece}) if draw.random() < 0.02} - set("#")
    pieces = sorted(p for p in found - set(SPECIAL) if p and p == p.strip() and missing.isdisjoint(p))
    return (*SPECIAL, *pieces)
