"""Checkpoints that are either the old one or the whole new one, whatever moment the process dies at."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lit_hass.records.atomic import replacing, write_error


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside the one before and move it into its place once it is on the disk.

    Lightning's own writes into the folder of temporary files and copies it across file systems, so that a full disk or
    a kill during the copy leaves neither the old checkpoint nor a new one. Places that are no path of this machine are
    left to it.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Raises:
            UserError: the folder cannot be written to; names folder and cause.
            RunError: the disk is full or failed; what was there before is still there.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with replacing(path) as file:
            target = _Recording(file)
            try:
                torch.save(checkpoint, target)  # type: ignore[arg-type]  # it asks for no more of a file
            except RuntimeError as error:  # how torch reports an error of the file that it writes to
                if target.failed is not None:
                    raise write_error(path, target.failed) from error
                raise


class _Recording(io.RawIOBase):
    """A file that remembers why a write failed."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failed: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        try:
            return self._file.write(content)
        except OSError as error:
            self.failed = error
            raise

    def flush(self) -> None:
        if not self._file.closed:
            self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()
