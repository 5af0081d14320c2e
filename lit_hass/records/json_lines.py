"""Reading files of one JSON object a line, and saying exactly what is wrong with them."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeGuard

from lit_hass.errors import UserError

#: The types a question id may have. ``1`` and ``"1"`` are different ids.
QuestionId = int | str

_BOM = b"\xef\xbb\xbf"


def is_question_id(value: object) -> TypeGuard[QuestionId]:
    """Whether a value can be a question id: an integer or a string that is not blank."""
    # bool is an int to Python, and True == 1 would make two questions one.
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, str) and value.strip() != "")


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a file that holds one JSON object; None where there is no file.

    Raises:
        UserError: It cannot be read or holds something else; names the file.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return found


def parse_object(line: bytes) -> dict[str, Any]:
    """Parse one line that must hold a JSON object.

    Raises:
        ValueError: It does not; the message is the cause alone, in one line.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte 0x{line[error.start]:02x} at position {error.start + 1})") from error
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        cause = f"not valid JSON: {error.msg} at column {error.colno} (each line must hold one whole JSON object)"
        raise ValueError(cause) from error
    except RecursionError as error:
        raise ValueError("not usable JSON: nested too deeply") from error
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
