"""Reading files of one JSON object a line, and saying exactly what is wrong with them."""

import json
import os
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
    """Read a whole file.

    Args:
        path: The file.
        what: What it should be, for the message, such as ``"question file"``.

    Raises:
        UserError: It is missing, a directory or not readable.
    """
    path = Path(path)
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such {what}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path}: is a directory, not a {what}") from error
    except OSError as error:
        # Windows answers "permission denied" for a directory.
        cause = f"is a directory, not a {what}" if path.is_dir() else f"cannot be read: {error.strerror or error}"
        raise UserError(f"{path}: {cause}") from error


def split_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    r"""Number the lines of a file from 1 and leave blank ones and a byte order mark out.

    Only ``\n`` ends a line: ``str.splitlines`` would also cut at U+2028 and others, which stand unescaped in our JSON.
    """
    for number, line in enumerate(content.removeprefix(_BOM).split(b"\n"), start=1):
        if line.strip():
            yield number, line


def read_objects(path: str | os.PathLike[str], what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of one JSON object a line; blank lines and a byte order mark are passed over.

    Args:
        path: The file.
        what: What it should be, for the messages.

    Yields:
        Line number (from 1) and object.

    Raises:
        UserError: The file cannot be read, or a line is no JSON object; names file, line and cause.
    """
    for number, line in split_lines(read_bytes(path, what)):
        try:
            yield number, parse_object(line)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
