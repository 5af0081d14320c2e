"""An append-only file of each question's features: whole entries only, whatever moment the process dies at."""

from __future__ import annotations

import contextlib
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save

from lit_hass.errors import RunError
from lit_hass.features.sequences import FeatureSequence
from lit_hass.records.atomic import replacing, write_error
from lit_hass.records.json_lines import QuestionId

# Length and CRC-32 of what follows.
_FRAME = struct.Struct("<QI")
_MAGIC = b"lit-hass features 1\n"


@dataclass(frozen=True)
class Entry:
    """One question's features.

    Attributes:
        question_id: of the question.
        sequences: of its choices and turns; none where the decoder gave no features.
    """

    question_id: QuestionId
    sequences: list[FeatureSequence]


class Journal:
    """Writes entries; a question's is on the disk when `append` and then `sync` have returned.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None
        self.nbytes = 0

    def begin(self, after_snapshot: bool) -> None:
        """Replace the file by one without entries.

        Args:
            after_snapshot: a snapshot of this rank holds what came before; without it the journal is not whole.

        Raises:
            UserError: the folder cannot be written to.
            RunError: the disk is full or failed.
        """
        self.close()
        head = _MAGIC + _framed(json.dumps({"after_snapshot": after_snapshot}).encode())
        with replacing(self.path) as file:
            file.write(head)
        try:
            self._file = io.FileIO(self.path, "ab")
        except OSError as error:
            raise write_error(self.path, error) from error
        self.nbytes = len(head)

    def append(self, question_id: QuestionId, sequences: Sequence[FeatureSequence]) -> None:
        """Write an entry behind the others; after an error the file is as before.

        Args:
            question_id: of the question.
            sequences: in host memory.

        Raises:
            UserError: the folder cannot be written to any more.
            RunError: the disk is full or failed.
        """
        assert self._file is not None, "begin() comes first"
        tensors = {f"{i}.{name}": x.contiguous() for i, s in enumerate(sequences) for name, x in s.tensors().items()}
        about = {"question_id": question_id, "names": [list(sequence.name) for sequence in sequences]}
        content = _framed(save(tensors, {"entry": json.dumps(about)}))
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(self.nbytes)
            raise write_error(self.path, error) from error
        self.nbytes += len(content)

    def sync(self) -> None:
        """Return when everything is on the disk.

        Raises:
            UserError: see `append`.
            RunError: likewise.
        """
        if self._file is not None:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise write_error(self.path, error) from error

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        if self._file is not None:
            self._file.close()
            self._file = None


def read_journal(path: Path) -> tuple[bool, Iterator[Entry]]:
    """Read a journal back.

    Returns:
        Whether it goes on behind a snapshot, and its whole entries one by one; a torn end, as a killed process leaves
        it, is passed over.

    Raises:
        RunError: the file is gone, cannot be read, or is no journal.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(len(_MAGIC))
            head = _next_frame(file)
    except OSError as error:
        reason = "is gone" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise RunError(f"{path}: {reason}; without it the features of answered questions are lost") from error
    if magic != _MAGIC or head is None:
        raise RunError(f"{path}: is no feature journal, or was cut off at its beginning")
    return bool(json.loads(head)["after_snapshot"]), _entries(path)


def _entries(path: Path) -> Iterator[Entry]:
    with open(path, "rb") as file:
        file.seek(len(_MAGIC))
        _next_frame(file)
        while (content := _next_frame(file)) is not None:
            yield _entry(content)


def _entry(content: bytes) -> Entry:
    size = int.from_bytes(content[:8], "little")
    about: dict[str, Any] = json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["entry"])
    tensors = load(content)
    sequences = []
    for i, name in enumerate(about["names"]):
        prefix = f"{i}."
        mine = {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
        sequences.append(FeatureSequence(tuple(name), **mine))
    return Entry(about["question_id"], sequences)


def _framed(content: bytes) -> bytes:
    return _FRAME.pack(len(content), zlib.crc32(content)) + content


def _next_frame(file: Any) -> bytes | None:
    """The next frame's content, or None at the end and where it is not whole."""
    head = file.read(_FRAME.size)
    if len(head) < _FRAME.size:
        return None
    size, checksum = _FRAME.unpack(head)
    if size > os.fstat(file.fileno()).st_size - file.tell():
        return None
    content: bytes = file.read(size)
    return content if zlib.crc32(content) == checksum else None
