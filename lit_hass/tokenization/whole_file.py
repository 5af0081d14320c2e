"""Writing a file whole or not at all.

`lit_hass.records` does the same for runs; the tokenizer stands beside it and imports no other part of the project.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path


def check_target(path: str | os.PathLike[str]) -> None:
    """Refuse a file that cannot be written, before the work that would be lost.

    Raises:
        OSError: it is a folder, or would stand in something that is no folder or may not be written to; names it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder; name a file")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path}: {above} is no folder")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{path}: may not write into {above}")


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name and move it into place; missing parent folders are made.

    Raises:
        OSError: it cannot be written; what stood there before stays.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: its files are private (0600), and the mode would stay with the finished file.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.lit-hass-tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        # After the move there is nothing of this name; before it, the half file must not stay.
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
