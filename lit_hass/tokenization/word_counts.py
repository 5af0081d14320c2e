"""Counting the words of texts and of files larger than memory, with the tokenizer's own normaliser."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from lit_hass.tokenization.characters import CharacterTable
from lit_hass.tokenization.config import WordPieceConfig

#: Bytes of a file that are read at a time.
BLOCK = 1 << 20
# Distinct stretches kept before they become words.
_MOST_STRETCHES = 500_000
# Stretches longer than this on average (Chinese has no blanks) hardly come again: keeping them would save nothing.
_LONG_STRETCH = 32
# Where a block ends that has no blank and no line break: at what is a word of its own or separates words. None of them
# is a part of another character in UTF-8.
_ENDS = tuple(mark.encode() for mark in ("\t", "\r", ",", ".", "/", "\u3001", "\u3002", "\uff0c"))
#: What ``open(errors=...)`` knows and makes sense here.
ERRORS = ("strict", "replace", "ignore")

#: Called with the bytes read so far.
Progress = Callable[[int], None]


def count_words(
    texts_or_files: Iterable[str | os.PathLike[str]],
    config: WordPieceConfig,
    errors: str = "strict",
    progress: Progress | None = None,
) -> dict[str, int]:
    """Count normalised words.

    Args:
        texts_or_files: each a text (str) or a file of UTF-8 text (a `Path`), read a block at a time.
        config: of the tokenizer that will use the vocabulary; longer words than its ``max_chars`` are left out.
        errors: what to do with bytes that are not UTF-8: ``strict`` refuses them, ``replace``, ``ignore``.
        progress: see `Progress`.

    Returns:
        word -> count, sorted by word, so that the order of texts leaves no trace.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: neither str nor path.
        ValueError: a file is not UTF-8 (path, line and byte), half a surrogate pair in a text, or every str is the
            name of a file.
    """
    if errors not in ERRORS:
        raise ValueError(f"errors must be one of {', '.join(ERRORS)}, found {errors!r}")
    table = CharacterTable(config)
    stretches: Counter[str] = Counter()
    words: Counter[str] = Counter()
    done = 0
    for text, size in _texts(texts_or_files, errors):
        parts = text.replace("\n", " ").split(" ")
        if len(text) > _LONG_STRETCH * len(parts):
            words.update(_fitting(table.words(text), config))
        else:
            stretches.update(parts)
        if len(stretches) > _MOST_STRETCHES:
            _to_words(stretches, words, table, config)
        done += size
        if progress is not None:
            progress(done)
    _to_words(stretches, words, table, config)
    return {word: words[word] for word in sorted(words)}


def _to_words(stretches: Counter[str], words: Counter[str], table: CharacterTable, config: WordPieceConfig) -> None:
    """Split each distinct stretch once; nothing that the rules do goes past a blank."""
    for stretch, count in stretches.items():
        for word in _fitting(table.words(stretch), config):
            words[word] += count
    stretches.clear()


def _fitting(words: list[str], config: WordPieceConfig) -> Iterator[str]:
    return (word for word in words if len(word) <= config.max_chars)


def _texts(items: Iterable[str | os.PathLike[str]], errors: str) -> Iterator[tuple[str, int]]:
    name: str | None = None
    only_names = True
    for number, item in enumerate(items):
        if isinstance(item, str):
            if only_names:
                only_names = _is_file_name(item)
                name = item
            try:
                size = len(item.encode("utf-8"))
            except UnicodeEncodeError as error:
                raise ValueError(f"text {number}: not valid Unicode at position {error.start}") from error
            yield item, size
        elif isinstance(item, os.PathLike):
            yield from read_blocks(Path(item), errors)
        else:
            raise TypeError(f"text {number}: expected str or Path, got {type(item).__name__}")
    # Files' names in place of their Paths would silently be trained on as texts. One line of a text may be the name of
    # a file that happens to be here; all of them are not.
    if only_names and name is not None:
        raise ValueError(f"{name!r} is a file; give pathlib.Path({name!r}) to have it read")


def _is_file_name(text: str) -> bool:
    if len(text) >= 1024 or "\n" in text or "\0" in text or not ("." in text or os.sep in text):
        return False
    return not any(character.isspace() for character in text.strip()) and os.path.isfile(text)


def read_blocks(path: Path, errors: str = "strict") -> Iterator[tuple[str, int]]:
    """Read a UTF-8 file in blocks that end between words.

    Yields:
        each block's text and its size in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        ValueError: not UTF-8, with path, line and byte.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder; name its files")
    line, at = 1, 0
    with path.open("rb") as file:
        rest: list[bytes] = []
        while block := file.read(BLOCK):
            # Only what is new is searched: a file without any end would take the square of its size.
            end = _end(block)
            if end:
                whole = b"".join([*rest, block[:end]])
                rest.clear()
                yield _decode(whole, path, line, at, errors), len(whole)
                line, at = line + whole.count(b"\n"), at + len(whole)
            rest.append(block[end:])
        last = b"".join(rest)
        if last:
            yield _decode(last, path, line, at, errors), len(last)


def _end(block: bytes) -> int:
    """Where the last whole word of a block ends; 0 if nobody can tell."""
    # A blank or a line break is a byte of its own in UTF-8, so no character is cut in two.
    end = max(block.rfind(b" "), block.rfind(b"\n")) + 1
    return end or max((block.rfind(mark) + len(mark) for mark in _ENDS if mark in block), default=0)


def _decode(block: bytes, path: Path, line: int, at: int, errors: str) -> str:
    try:
        return block.decode("utf-8", errors)
    except UnicodeDecodeError as error:
        line += block.count(b"\n", 0, error.start)
        raise ValueError(f"{path}:{line}: not UTF-8 ({error.reason} at byte {at + error.start})") from error
