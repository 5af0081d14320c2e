"""The settings that decide which ids a text gets."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Literal, get_args

#: Where facts about characters come from, see `lit_hass.tokenization.characters`.
Tables = Literal["bert", "python"]

#: Characters of the longest word that BERT's tokenizer takes apart.
BERT_MAX_CHARS = 100


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens' strings, BERT's by default; trained vocabularies begin with them, in this order."""

    pad: str = "[PAD]"
    unk: str = "[UNK]"
    cls: str = "[CLS]"
    sep: str = "[SEP]"
    mask: str = "[MASK]"

    def __post_init__(self) -> None:
        tokens = self.tokens
        for token in tokens:
            if not isinstance(token, str):
                raise TypeError(f"a special token must be a str, got {type(token).__name__}")
            # White space would never be found in a text: words are looked up without it.
            if not token or any(character.isspace() for character in token):
                raise ValueError(f"the special token {token!r} is empty or has white space in it")
        if len(set(tokens)) < len(tokens):
            raise ValueError(f"two special tokens are the same: {', '.join(tokens)}")

    @property
    def tokens(self) -> tuple[str, ...]:
        """All of them: pad, unk, cls, sep, mask."""
        return astuple(self)


@dataclass(frozen=True)
class WordPieceConfig:
    """How text becomes words, and words become pieces; the defaults are those of uncased BERT.

    Args:
        lowercase: lower-case character by character, so that no rule of context (Greek final sigma) fires.
        strip_accents: decompose (NFD) and drop non-spacing marks; None does it where ``lowercase`` is true, as BERT.
        chinese_chars: every Han ideograph is a word of its own.
        max_chars: a word of more characters, counted after normalisation, is one unknown token.
        tables: ``"bert"`` or ``"python"``, see `lit_hass.tokenization.characters`.

    Raises:
        ValueError: ``max_chars`` below 1, or unknown ``tables``.
    """

    lowercase: bool = True
    strip_accents: bool | None = None
    chinese_chars: bool = True
    max_chars: int = BERT_MAX_CHARS
    tables: Tables = "bert"

    def __post_init__(self) -> None:
        if self.max_chars < 1:
            raise ValueError(f"max_chars must be at least 1, found {self.max_chars}")
        if self.tables not in get_args(Tables):
            raise ValueError(f"tables must be one of {', '.join(get_args(Tables))}, found {self.tables!r}")

    @property
    def strips_accents(self) -> bool:
        """What ``strip_accents`` means here."""
        return self.lowercase if self.strip_accents is None else self.strip_accents
