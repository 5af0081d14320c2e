"""Pieces back to text."""

from __future__ import annotations

from collections.abc import Iterable

from lit_hass.tokenization.vocabulary import PREFIX

#: What stands close to the word before it.
CLOSE = (".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re")


def join_pieces(pieces: Iterable[str], clean_up: bool) -> str:
    """Join pieces as the WordPiece decoder of ``tokenizers`` does.

    Args:
        pieces: as they stand in the vocabulary. A first piece keeps its prefix.
        clean_up: no blank before `CLOSE`.
    """
    text: list[str] = []
    for piece in pieces:
        if not text:
            text.append(piece)
        elif piece.startswith(PREFIX):
            text.append(piece[len(PREFIX) :])
        elif clean_up and piece.startswith(CLOSE):
            text.append(piece)
        else:
            text.append(f" {piece}")
    return "".join(text)
