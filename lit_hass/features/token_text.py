"""What a token reads like in a text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# How a character that a token's bytes do not make up alone is decoded.
_UNREADABLE = "\ufffd"
# How SentencePiece writes a space.
_SPACE = "▁"


def token_text(tokenizer: Any, token: int) -> str | None:
    """Return a token's text as it stands in a text: ``" the"`` where the vocabulary's piece is ``"Ġthe"``.

    Args:
        tokenizer: of `transformers`.
        token: its id.

    Returns:
        The piece itself where it is only a part of a character; None for an id that the tokenizer does not know (output
        layers are often padded).
    """
    piece: str | None = tokenizer.convert_ids_to_tokens(token)
    if piece is None:
        return None
    if _SPACE in piece:  # decoded by itself it would lose the space
        return piece.replace(_SPACE, " ")
    text: str = tokenizer.decode([token], clean_up_tokenization_spaces=False)
    return piece if _UNREADABLE in text else text


def token_names(tokenizer: Any) -> Callable[[int], str | None] | None:
    """Return `token_text` of a tokenizer; None without one."""
    return None if tokenizer is None else lambda token: token_text(tokenizer, token)
