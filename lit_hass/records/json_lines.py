"""Reading files of one JSON object a line, and saying exactly what is wrong with them.

Files that people publish hold the same rows as one JSON array or as a parquet table, or are compressed: read too.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from lit_hass.errors import UserError
from lit_hass.terminal import control_in, shorten

#: The types a question id may have. ``1`` and ``"1"`` are different ids.
QuestionId = int | str

#: Characters that an id or a category may have: they are printed in tables.
MAX_NAME = 1000

_BOM = b"\xef\xbb\xbf"
#: What JSON counts as white space.
_SPACE = tuple(" \t\n\r")


def is_question_id(value: object) -> TypeGuard[QuestionId]:
    """Whether a value can be a question id: an integer of 64 bits, or a string that can be printed and is not blank."""
    # bool is an int to Python, and True == 1 would make two questions one.
    if isinstance(value, int):
        return not isinstance(value, bool) and -(2**63) <= value < 2**63
    return isinstance(value, str) and value.strip() != "" and name_fault(value) is None


def name_fault(value: str) -> str | None:
    """Why a text cannot stand as a name in tables and on a terminal (an id, a category); None where it can."""
    if len(value) > MAX_NAME:
        return f"has {len(value)} characters, and may have {MAX_NAME}"
    control = control_in(value)
    if control is None:
        return None
    if control.startswith("\\ud"):
        return "holds half of a surrogate pair (a broken \\uD8xx escape)"
    return f"holds {control}, which steers a terminal instead of being printed"


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a file that holds one JSON object; None where there is no file.

    Raises:
        UserError: It cannot be read or holds something else; names the file.
    """
    if not path.exists():
        return None
    try:
        found = parse_json(read_bytes(path, "JSON file"))
    except ValueError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return found


def parse_json(content: bytes) -> Any:
    """Parse one JSON document; no object in it may have a key twice, of which readers would take either.

    Args:
        content: UTF-8, a byte order mark is passed over.

    Raises:
        ValueError: It is none; the message is the cause alone, in one line.
    """
    content = content.removeprefix(_BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{content[error.start]:02x} at position {error.start + 1})") from error
    try:
        return json.loads(text, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        raise ValueError(f"not valid JSON: {error.msg} at {line}column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not usable JSON: nested too deeply") from error
    except _Twice:
        raise
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise ValueError(f"not usable JSON: {error}") from error


class _Twice(ValueError):
    """A key that an object has twice; the message is complete."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Twice(f"the key {shorten(twice)!r} stands twice in one object")
    return found


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line that must hold a JSON object.

    Raises:
        ValueError: It does not; the message is the cause alone, in one line.
    """
    try:
        value = parse_json(line)
    except ValueError as error:
        hint = " (each line must hold one whole JSON object)"
        raise ValueError(f"{error}{hint if isinstance(error.__cause__, json.JSONDecodeError) else ''}") from error
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", bool: "a boolean", type(None): "null"}.get(type(value), "a number")
        raise ValueError(f"a JSON object is expected, found {kind}")
    return value


def read_bytes(path: str | os.PathLike[str], what: str) -> bytes:
    """Read a whole file; what is named ``.gz`` is given decompressed.

    Args:
        path: The file.
        what: What it should be, for the message, such as ``"question file"``.

    Raises:
        UserError: It is missing, a directory or not readable.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a directory, not a {what}") from error
    except OSError as error:
        # Windows answers "permission denied" for a directory.
        cause = f"is a directory, not a {what}" if path.is_dir() else f"cannot be read: {error.strerror or error}"
        raise UserError(f"{path}: {cause}") from error
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be decompressed: {error}") from error


def kind_of_file(path: str | os.PathLike[str]) -> str:
    """The ending that says what a file holds, in lower case and without ``.gz``: ``".jsonl"`` for ``x.jsonl.gz``."""
    path = Path(path)
    return Path(path.stem if path.suffix == ".gz" else path.name).suffix.lower()


def split_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    r"""Number the lines of a file from 1 and leave blank ones and a byte order mark out.

    Only ``\n`` ends a line: ``str.splitlines`` would also cut at U+2028 and others, which stand unescaped in our JSON.
    """
    for number, line in enumerate(content.removeprefix(_BOM).split(b"\n"), start=1):
        if line.strip():
            yield number, line


def read_rows(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
    """Read a file of objects, leaving to the caller what to do about the rows that are none.

    Args:
        path: One JSON object a line (blank lines and a byte order mark are passed over), one JSON array of objects, or
            a parquet table; ``.gz`` is decompressed.
        what: What it should be, for the messages.

    Yields:
        The number of the line, of an array's element or of a table's row, from 1; and the object, or why there is none.

    Raises:
        UserError: The file cannot be read; names it and the cause.
    """
    if kind_of_file(path) == ".parquet":
        yield from enumerate(_table(Path(path), what), start=1)
        return
    content = read_bytes(path, what)
    is_array = content.removeprefix(_BOM).lstrip()[:1] == b"[" and not _is_line(content)
    for number, line in enumerate(_elements(path, content), start=1) if is_array else split_lines(content):
        try:
            yield number, parse_object(line)
        except ValueError as error:
            yield number, error


def _is_line(content: bytes) -> bool:
    """Whether what begins with a bracket is a line by itself, with others behind it."""
    first, _, rest = content.removeprefix(_BOM).strip().partition(b"\n")
    try:
        return bool(rest.strip()) and isinstance(json.loads(first), list)
    except (ValueError, RecursionError):
        return False


def _elements(path: str | os.PathLike[str], content: bytes) -> Iterator[bytes]:
    """The elements of a JSON array, as they are written."""
    try:
        text = content.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte 0x{error.object[error.start]:02x})") from error
    decoder = json.JSONDecoder()
    at = _behind_space(text, text.index("[") + 1)
    more = text[at : at + 1] != "]"
    while more:
        try:
            _, end = decoder.raw_decode(text, at)
        except RecursionError as error:
            raise UserError(f"{path}: not usable JSON: nested too deeply") from error
        except ValueError as error:
            line = text.count("\n", 0, getattr(error, "pos", at)) + 1
            cause = getattr(error, "msg", str(error))
            raise UserError(f"{path}:{line}: not valid JSON: {cause} (in an array of objects)") from error
        yield text[at:end].encode("utf-8")
        at = _behind_space(text, end)
        more = text[at : at + 1] == ","
        if more:
            at = _behind_space(text, at + 1)
    rest = _behind_space(text, at + 1)
    if text[at : at + 1] != "]" or rest < len(text):
        line = text.count("\n", 0, at if text[at : at + 1] != "]" else rest) + 1
        raise UserError(f"{path}:{line}: not valid JSON: the array of objects does not end where it should")


def _behind_space(text: str, at: int) -> int:
    while text[at : at + 1] in _SPACE:
        at += 1
    return at


def _table(path: Path, what: str) -> list[dict[str, Any]]:
    """The rows of a parquet file, as objects."""
    if not path.is_file():
        read_bytes(path, what)  # says what is wrong
    # A dependency of `datasets`; nothing else here needs more than the standard library.
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as parquet: {' '.join(str(error).split())[:200]}") from error


def read_objects(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of objects, all of which must be right; see `read_rows`.

    Args:
        path: The file.
        what: What it should be, for the messages.

    Yields:
        The row's number, see `read_rows`, and object.

    Raises:
        UserError: The file cannot be read, or a line is no JSON object; names file, line and cause.
    """
    for number, row in read_rows(path, what):
        if isinstance(row, ValueError):
            raise UserError(f"{path}:{number}: {row}") from row
        yield number, row
