"""What BERT's normaliser and splitter make of a text, character by character.

Cleaning, Chinese spacing, accents, case and punctuation are all decided by the single character, so one row per
character, made when it is first met, and ``str.translate`` do the work of five passes. The one exception is the
canonical order of combining marks, for which `Rules.words` does the passes one by one.

Facts about characters come from one of two places:

* ``"bert"``: the ``tokenizers`` package is asked once per distinct character. Rows are what
  ``BertTokenizerFast`` does, whatever Unicode version either side knows.
* ``"python"``: the rules written out, on Python's own Unicode tables. They differ from the above for a few hundred
  characters that one side does not know yet; docs/wordpiece.md lists them.

The rules are those of BERT's ``BasicTokenizer`` (Devlin et al., arXiv 1810.04805) as Hugging Face's ``tokenizers``
carries them out.
"""

from __future__ import annotations

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import chain

from lit_hass.tokenization.config import WordPieceConfig

#: Blocks of Han ideographs that stand alone. The fifth begins at 2B920 as in ``tokenizers``, not at 2B820.
CHINESE = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B920, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)
# Highest and lowest non-zero combining class: what moves past either of them is a mark with an order.
_LAST_MARK = "\u0345"


class LoneSurrogate(Exception):
    """Half a surrogate pair was met; who knows the whole text says where."""


def not_unicode(text: str) -> ValueError:
    """The error for a text with half a surrogate pair; names the position of the first."""
    at = next(i for i, character in enumerate(text) if "\ud800" <= character <= "\udfff")
    return ValueError(f"not valid Unicode at position {at}: half a surrogate pair, U+{ord(text[at]):04X}")


class Rules(ABC):
    """What one configuration does with characters."""

    def __init__(self, config: WordPieceConfig) -> None:
        """Keep the settings."""
        self.config = config

    @abstractmethod
    def row(self, character: str) -> str:
        """What replaces a character: nothing, itself, its lower case, ...; blanks in it separate words."""

    @abstractmethod
    def reorders(self, character: str) -> bool:
        """Whether the character survives and its place depends on the marks beside it."""

    @abstractmethod
    def words(self, text: str) -> list[str]:
        """Normalise and split in plain passes over the whole text."""


class PythonRules(Rules):
    """The rules on Python's Unicode tables."""

    def row(self, character: str) -> str:
        """See `Rules`."""
        return "".join(self._isolate(c) for c in self._normalize(character))

    def reorders(self, character: str) -> bool:
        """See `Rules`."""
        return (
            self.config.strips_accents
            and unicodedata.combining(character) != 0
            and not self._normalize(character).isspace()
            and bool(self._normalize(character))
        )

    def words(self, text: str) -> list[str]:
        """See `Rules`."""
        return "".join(map(self._isolate, self._normalize(text))).split()

    def _normalize(self, text: str) -> str:
        text = "".join(map(_clean, text))
        if self.config.chinese_chars:
            text = "".join(f" {c} " if is_chinese(c) else c for c in text)
        if self.config.strips_accents:
            text = "".join(c for c in _decomposed(text) if unicodedata.category(c) != "Mn")
        # Character by character: str.lower() of a whole word would apply the rule of the Greek final sigma.
        return "".join(c.lower() for c in text) if self.config.lowercase else text

    @staticmethod
    def _isolate(character: str) -> str:
        return f" {character} " if is_punctuation(character) else character


class BertRules(Rules):
    """The rules as the ``tokenizers`` package carries them out."""

    def __init__(self, config: WordPieceConfig) -> None:
        """Make the package's normaliser and splitter with these settings."""
        super().__init__(config)
        from tokenizers.normalizers import NFD, BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer

        self._normalizer = BertNormalizer(
            clean_text=True,
            handle_chinese_chars=config.chinese_chars,
            strip_accents=config.strips_accents,
            lowercase=config.lowercase,
        )
        self._splitter = BertPreTokenizer()
        self._decomposition = NFD()
        self._python = PythonRules(config)

    def row(self, character: str) -> str:
        """See `Rules`."""
        if character.isascii():  # no version of Unicode changes these, and asking takes longer
            return self._python.row(character)
        return "".join(map(self._isolate, self._normalizer.normalize_str(character)))

    def reorders(self, character: str) -> bool:
        """See `Rules`."""
        if not self.config.strips_accents or character.isascii() or not self.row(character).strip():
            return False
        # Asked rather than looked up: Python may not know the character's combining class.
        return not self._decomposition.normalize_str(_LAST_MARK + character).startswith(_LAST_MARK)

    def words(self, text: str) -> list[str]:
        """See `Rules`."""
        normal = self._normalizer.normalize_str(text)
        return [word for word, _ in self._splitter.pre_tokenize_str(normal)]

    def _isolate(self, character: str) -> str:
        # Between two letters a blank leaves two words, punctuation three, anything else one.
        parts = len(self._splitter.pre_tokenize_str(f"a{character}a"))
        return (character, " ", f" {character} ")[parts - 1]


def rules(config: WordPieceConfig) -> Rules:
    """Make the rules that the configuration names."""
    return BertRules(config) if config.tables == "bert" else PythonRules(config)


class CharacterTable(dict[int, str]):
    """Code point -> row, for ``str.translate``; a row is made when its character is first met.

    Raises:
        LoneSurrogate: in ``str.translate``, where the text has half a surrogate pair.
    """

    def __init__(self, config: WordPieceConfig) -> None:
        """Start without rows."""
        super().__init__()
        self._rules = rules(config)
        #: Characters met so far whose place depends on the marks beside them.
        self.reordering: set[str] = set()

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if 0xD800 <= code <= 0xDFFF:
            raise LoneSurrogate
        if self._rules.reorders(character):
            self.reordering.add(character)
        row = self[code] = self._rules.row(character)
        return row

    def clear(self) -> None:
        """Forget all rows."""
        super().clear()
        self.reordering.clear()

    def words(self, text: str) -> list[str]:
        """Normalise a text and split it into words.

        Raises:
            LoneSurrogate: the text has half a surrogate pair.
        """
        normal = text.translate(self)
        if self.reordering and not self.reordering.isdisjoint(text):
            return self._rules.words(text)
        # Of what str.split() counts as white space, only what separates words is left.
        return normal.split()


def _decomposed(text: str) -> Iterator[str]:
    """``unicodedata.normalize("NFD", text)``, which takes the square of the length of a run of marks."""
    run: list[str] = []
    for character in chain.from_iterable(unicodedata.normalize("NFD", c) for c in text):
        if unicodedata.combining(character):
            run.append(character)
            continue
        yield from sorted(run, key=unicodedata.combining)
        run.clear()
        yield character
    yield from sorted(run, key=unicodedata.combining)


def is_chinese(character: str) -> bool:
    """Whether BERT sets the ideograph apart."""
    code = ord(character)
    return code >= 0x3400 and any(first <= code <= last for first, last in CHINESE)


def is_punctuation(character: str) -> bool:
    """Whether BERT sets the mark apart: ASCII's marks and symbols, and Unicode's category P."""
    code = ord(character)
    if code < 128:
        return 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126
    return unicodedata.category(character).startswith("P")


def _clean(character: str) -> str:
    category = unicodedata.category(character)
    if character in "\t\n\r" or category in ("Zs", "Zl", "Zp"):
        return " "
    # Cn, unassigned, stays: the Python version of BERT's tokenizer drops it, tokenizers' does not.
    if character in "\0\ufffd" or category in ("Cc", "Cf", "Co", "Cs"):
        return ""
    return character
