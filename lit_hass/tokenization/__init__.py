"""WordPiece: training, tokenizer, benchmark. Neither torch nor Lightning is needed for any of it.

Names are imported when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.tokenization.config import SpecialTokens, WordPieceConfig
    from lit_hass.tokenization.text_statistics import TextStatistics
    from lit_hass.tokenization.tokenizer import WordPieceTokenizer
    from lit_hass.tokenization.training import train_wordpiece
    from lit_hass.tokenization.vocabulary import read_vocabulary, write_vocabulary

_HOMES = {
    "SpecialTokens": "config",
    "TextStatistics": "text_statistics",
    "WordPieceConfig": "config",
    "WordPieceTokenizer": "tokenizer",
    "read_vocabulary": "vocabulary",
    "train_wordpiece": "training",
    "write_vocabulary": "vocabulary",
}

__all__ = (
    "SpecialTokens",
    "TextStatistics",
    "WordPieceConfig",
    "WordPieceTokenizer",
    "read_vocabulary",
    "train_wordpiece",
    "write_vocabulary",
)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
