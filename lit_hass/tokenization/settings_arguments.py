"""The arguments that every verb of ``wordpiece`` understands alike."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from lit_hass.tokenization.config import SpecialTokens

log = logging.getLogger(__name__)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add how text becomes words."""
    parser.add_argument("--cased", action="store_true", help="keep capitals (default: lower-case, as uncased BERT)")
    accents = parser.add_mutually_exclusive_group()
    accents.add_argument(
        "--strip-accents",
        dest="strip_accents",
        action="store_true",
        default=None,
        help="take accents off, and Hangul apart (default: unless --cased)",
    )
    accents.add_argument(
        "--keep-accents", dest="strip_accents", action="store_false", help="keep accents; for Korean, too"
    )
    parser.add_argument("--max-chars", type=int, default=100, help="longer words are unknown (default: %(default)s)")
    parser.add_argument(
        "--no-chinese-chars", dest="chinese_chars", action="store_false", help="do not set Han ideographs apart"
    )
    for role, token in asdict(SpecialTokens()).items():
        parser.add_argument(f"--{role}-token", metavar="TOKEN", default=token, help="(default: %(default)s)")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What `add_settings` read, as settings of `WordPieceTokenizer` and `train_wordpiece`.

    Raises:
        ValueError: a special token is empty, has white space in it, or is another one, too.
    """
    special = SpecialTokens(**{role: getattr(options, f"{role}_token") for role in asdict(SpecialTokens())})
    return {
        "lowercase": not options.cased,
        "strip_accents": options.strip_accents,
        "max_chars": options.max_chars,
        "chinese_chars": options.chinese_chars,
        "special_tokens": special,
    }


def warn_of_capitals(pieces: Iterable[str], special: Iterable[str], lowercase: bool) -> None:
    """Warn of a cased vocabulary under a tokenizer that never gives a capital, and of the reverse."""
    ordinary = set(pieces).difference(special)
    capitals = sum(piece != piece.lower() for piece in ordinary if not piece.startswith("[unused"))
    if lowercase and capitals:
        log.warning(
            "%d of %d pieces have capitals, which lower-case text never reaches; is the vocabulary cased (--cased)?",
            capitals,
            len(ordinary),
        )
    if not lowercase and not capitals and any(piece != piece.upper() for piece in ordinary):
        log.warning("no piece has a capital, so every word with one is unknown; leave --cased out?")
