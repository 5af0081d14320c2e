"""Files that are either the old one or the whole new one, whatever moment the process dies at."""

import contextlib
import errno
import json
import math
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lit_hass.errors import RunError, UserError

#: Ends the name of a file that is being written; the name also starts with a dot.
TEMPORARY_SUFFIX = ".lit-hass-tmp"

# What a full disk, a quota or a broken device answers: the person's settings were good, the run failed.
_RUN_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
# What file systems that cannot sync a directory answer; there is nothing better to do on them.
_NO_DIRECTORY_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EBADF}


def to_jsonable(value: Any, _where: str = "") -> Any:
    """Turn a value into plain JSON types in which every number is finite or null.

    Args:
        value: Nested dicts, lists and tuples of plain values, paths, numpy or torch scalars and arrays (anything
            with ``tolist()`` or ``item()``; it is asked, no library is imported).

    Returns:
        The same content as dicts with string keys, lists, strings, booleans, finite numbers and None.

    Raises:
        TypeError: A value has no JSON form; the message says where it stands.
        ValueError: Two keys of one dict become the same string, such as ``1`` and ``"1"``.
    """
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        result: dict[str, Any] = {}
        for key, item in value.items():
            name = key if isinstance(key, str) else _key_name(key, _where)
            if name in result:
                raise ValueError(f"{_where or 'the top level'}: two keys are both written as {name!r}")
            result[name] = to_jsonable(item, f"{_where}.{name}" if _where else name)
        return result
    if isinstance(value, list | tuple):
        return [to_jsonable(item, f"{_where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    # tolist() before item(): a tensor of shape [1] stays a list of one number, a 0-d one becomes the number.
    for method in ("tolist", "item"):
        convert = getattr(value, method, None)
        if callable(convert):
            plain = convert()
            if type(plain) is not type(value):
                return to_jsonable(plain, _where)
    raise TypeError(f"{_where or 'the top level'}: a {type(value).__name__} cannot be written as JSON")


def _key_name(key: Any, where: str) -> str:
    plain = to_jsonable(key, f"{where} (a key)")
    if isinstance(plain, dict | list):
        raise TypeError(f"{where or 'the top level'}: a {type(key).__name__} cannot be a key in JSON")
    return plain if isinstance(plain, str) else json.dumps(plain)


def to_json(value: Any, indent: int | None = None) -> str:
    """Format a value as JSON text: :func:`to_jsonable`, not escaped to ASCII.

    Args:
        value: See :func:`to_jsonable`.
        indent: Spaces per level; None keeps everything on one line.
    """
    return json.dumps(to_jsonable(value), ensure_ascii=False, allow_nan=False, indent=indent)


def encode(text: str) -> bytes:
    r"""Encode text as UTF-8 for a file.

    Half a surrogate pair has no UTF-8 form; it is written as its escape ``\udXXX``, which inside a JSON string
    reads back as the same character.
    """
    return text.encode("utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike[str], obj: Any, indent: int | None = 2) -> None:
    """Write one JSON document atomically; numbers that are not finite become null.

    Args:
        path: The file; missing parent folders are made.
        obj: See :func:`to_jsonable`.
        indent: Spaces per level.

    Raises:
        UserError: The folder cannot be written to; names folder and cause.
        RunError: The disk is full or failed.
    """
    write_text(path, to_json(obj, indent) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write a text file atomically as UTF-8 with its newlines as they are (``\n`` on every system).

    Raises:
        UserError: The folder cannot be written to; names folder and cause.
        RunError: The disk is full or failed.
    """
    _write(Path(path), [encode(text)])


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file of bytes, such as a picture, atomically.

    Raises:
        UserError: The folder cannot be written to; names folder and cause.
        RunError: The disk is full or failed.
    """
    _write(Path(path), [content])


def write_lines(path: str | os.PathLike[str], lines: Iterable[str]) -> None:
    r"""Write lines atomically, each ended by ``\n``; the iterable is consumed while writing.

    Raises:
        ValueError: A line holds a line break itself. The old file stays.
        UserError: The folder cannot be written to; names folder and cause.
        RunError: The disk is full or failed.
    """
    _write(Path(path), _encoded_lines(lines))


def _encoded_lines(lines: Iterable[str]) -> Iterator[bytes]:
    for number, line in enumerate(lines, start=1):
        if "\n" in line or "\r" in line:
            raise ValueError(f"line {number} holds a line break")
        yield encode(line) + b"\n"


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file that takes a name when all of it is on the disk, and not before.

    The new file lies in the same folder, so that taking the name is one step of the file system. What stood under the
    name stays as it is until then, and for good if anything fails; a symbolic link is replaced, not followed.

    Args:
        path: The name; missing parent folders are made.

    Yields:
        A file to write to.

    Raises:
        UserError: The folder cannot be written to; names folder and cause.
        RunError: The disk is full or failed.
    """
    path = Path(path)
    folder = path.parent
    # Not tempfile: its files are private (0600), and the mode would stay with the finished file.
    temporary = folder / f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(folder)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        # After the replace there is nothing of this name; before it, the half file must not stay.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_folder(folder: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Write a folder of files so that it is there whole or not at all; what stood there goes once the new one is whole.

    A process that is killed between the two renames leaves the old folder as ``.NAME.old``; the new one is lost. Only
    one process at a time may write a folder.

    Args:
        folder: What it is called in the end; missing parent folders are made.
        write: Puts the files into the path it is given, which it makes.

    Raises:
        UserError: The folder cannot be written to; names folder and cause. What stood there stays.
        RunError: The disk is full or failed. Likewise.
    """
    folder = Path(folder)
    unfinished, old = (folder.with_name(f".{folder.name}.{state}") for state in ("unfinished", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if old.exists() and not folder.exists():  # a process was killed between the renames
            os.replace(old, folder)
        for left in (unfinished, old):
            shutil.rmtree(left, ignore_errors=True)
        write(unfinished)
        _sync_files(unfinished)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(unfinished, folder)
        except OSError:
            if old.exists():
                os.replace(old, folder)
            raise
        sync_folder(folder.parent)
    except OSError as error:
        raise write_error(folder, error) from error
    finally:
        # After the renames there is no unfinished one; before them, half a folder must not stay.
        shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _sync_files(folder: Path) -> None:
    """Bring all files below a folder, and their names, to the disk."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(Path(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(place)


def check_own_file(path: str | os.PathLike[str]) -> None:
    """Refuse to append to, or cut, a file whose content somebody else has under another name.

    Raises:
        UserError: It is a symbolic link, or has a second (hard) link; a file that is not there is fine.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        cause = "is a symbolic link, and going on would change the file that it points to"
    elif stat.S_ISREG(found.st_mode) and found.st_nlink > 1:
        cause = "has a second name (a hard link), and going on would change the file under that name too"
    else:
        return
    raise UserError(f"{path}: {cause}; put a copy in its place")


def write_error(path: str | os.PathLike[str], error: OSError) -> UserError | RunError:
    """Say in one line why a file could not be written, as the kind of error it is.

    Returns:
        RunError when the disk is full or failed, else UserError (permissions, a file where a folder should be, ...).
    """
    path = Path(path)
    message = f"cannot write {path.name} into folder {path.parent}: {error.strerror or error}"
    return RunError(message) if error.errno in _RUN_FAILURES else UserError(message)


def ensure_writable(folder: str | os.PathLike[str]) -> Path:
    """Make a folder if need be and prove that files can be written into it, before any work is done.

    Returns:
        The folder.

    Raises:
        UserError: It cannot be made or written to; names folder and cause.
    """
    folder = Path(folder)
    probe = folder / f".probe.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A real byte: a full disk lets empty files be made.
        probe.write_bytes(b"\n")
        # A run that takes the folder's lock just now may sweep it away first.
        probe.unlink(missing_ok=True)
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise UserError(f"cannot write into folder {folder}: {error.strerror or error}") from error
    return folder


def remove_leftovers(folder: str | os.PathLike[str]) -> list[str]:
    """Remove the half-written files that a killed process left; call it only while nobody writes there.

    Returns:
        The names removed.
    """
    removed = []
    for path in sorted(Path(folder).glob(f".*{TEMPORARY_SUFFIX}")):
        path.unlink(missing_ok=True)
        removed.append(path.name)
    return removed


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make new, moved and removed names in a folder survive a power cut, where the system can."""
    if os.name == "nt":  # Windows opens no directories; it journals names by itself.
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)
