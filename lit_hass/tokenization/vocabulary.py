"""``vocab.txt``: one piece a line, the line's number from 0 is its id."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from lit_hass.tokenization.config import SpecialTokens
from lit_hass.tokenization.whole_file import write_whole

log = logging.getLogger(__name__)

#: Begins every piece that continues a word.
PREFIX = "##"
#: What Unicode counts as white space, of which ``tokenizers`` takes off what ends a line. (Python's own notion has four
#: control characters more.)
_SPACE = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))


class FileLines(list[str]):
    """The lines of a ``vocab.txt``, of which some may be blank or the same: the id of a piece is its last line's."""


def read_vocabulary(path: str | os.PathLike[str]) -> FileLines:
    r"""Read a ``vocab.txt`` as ``BertTokenizerFast`` does; lines end in ``\n`` or ``\r\n``.

    White space at a line's end is no part of its piece. Where a piece is there twice its last line counts, and the
    earlier one is an id that no text gets; how many these are is logged.

    Returns:
        the pieces in the order of their ids.

    Raises:
        FileNotFoundError: there is no such file; names the path.
        IsADirectoryError: it is a folder.
        ValueError: not UTF-8 (line and byte offset), or no piece at all; names the path.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such vocabulary file")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder; the vocabulary is a file such as {path / 'vocab.txt'}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason} at byte {error.start})") from error
    # Not splitlines(): it would also break at U+2028 and others, which pieces may hold.
    lines = text.removeprefix("\ufeff").split("\n")
    if lines[-1] == "":
        lines.pop()
    pieces = FileLines(line.rstrip(_SPACE) for line in lines)
    if not any(pieces):
        raise ValueError(f"{path}: the vocabulary is empty")
    if unused := len(pieces) - len(set(pieces) - {""}):
        log.warning(
            "%s: %d lines are blank or repeated below; no text gets their ids, as in BertTokenizerFast", path, unused
        )
    return pieces


def check_pieces(pieces: Sequence[str], source: str = "vocabulary") -> None:
    """Refuse what cannot be a vocabulary.

    Raises:
        TypeError: a piece is not a str.
        ValueError: there is none, or one is blank, has white space around it, a line break in it, no UTF-8 form, or is
            there twice; names ``source`` and the lines, counted from 1.
    """
    if not pieces:
        raise ValueError(f"{source}: the vocabulary is empty")
    lines: dict[str, int] = {}
    for number, piece in enumerate(pieces, start=1):
        if not isinstance(piece, str):
            raise TypeError(f"{source}:{number}: expected str, got {type(piece).__name__}")
        if not piece.strip(" \t\r\n\v\f"):
            raise ValueError(f"{source}:{number}: a blank line; every line is a piece")
        if piece != piece.strip(" \t\r\n\v\f"):
            raise ValueError(f"{source}:{number}: white space around the piece {piece!r}")
        if "\n" in piece:
            raise ValueError(f"{source}:{number}: a line break in the piece {piece!r}")
        if not piece.isascii() and any("\ud800" <= character <= "\udfff" for character in piece):
            raise ValueError(f"{source}:{number}: half a surrogate pair in the piece {piece!r}")
        first = lines.setdefault(piece, number)
        if first != number:
            raise ValueError(f"{source}:{number}: the piece {piece!r} is already in line {first}")


def check_special_tokens(pieces: Sequence[str], special: SpecialTokens, source: str = "vocabulary") -> None:
    """Refuse a vocabulary without one of the special tokens.

    Raises:
        ValueError: names all that are missing.
    """
    known = set(pieces)
    missing = [token for token in special.tokens if token not in known]
    if missing:
        raise ValueError(f"{source}: the vocabulary lacks the special tokens {', '.join(missing)}")


def write_vocabulary(path: str | os.PathLike[str], pieces: Sequence[str]) -> None:
    r"""Write a ``vocab.txt`` (UTF-8, ``\n``), whole or not at all.

    Raises:
        ValueError: see `check_pieces`.
        OSError: it cannot be written.
    """
    if not isinstance(pieces, FileLines):
        check_pieces(pieces)
    write_whole(path, "".join(f"{piece}\n" for piece in pieces).encode("utf-8"))
