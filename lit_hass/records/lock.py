"""One run at a time in one folder."""

import contextlib
import errno
import json
import os
import socket
import time
from pathlib import Path

from lit_hass.errors import UserError
from lit_hass.records.atomic import ensure_writable, remove_leftovers
from lit_hass.records.run_folder import RunFolder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# What network file systems without flock answer.
_NO_FLOCK = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}


class FolderLock:
    """Keeps a second run out of a run folder; a context manager. Only rank 0 of a run takes it.

    The lock is the system's (``flock`` on ``run.lock``), so it ends with the process that holds it, however that ends,
    and a file that stays behind after a SIGKILL blocks nobody. Worker processes forked meanwhile share it, and keep it
    while one of them lives. Where there is no ``flock`` (Windows, some network file systems), the existence of the file
    is the lock: then one that a killed process left has to be deleted by hand, and the message says so.

    Taking the lock also removes the half-written temporary files of killed runs, which nobody else can own then.

    Args:
        folder: The run folder; made if need be.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Name the folder; nothing is locked yet."""
        self.folder = Path(folder)
        self.path = RunFolder(folder).lock
        self._descriptor: int | None = None
        self._owner: int | None = None

    def acquire(self) -> "FolderLock":
        """Take the lock, without waiting.

        Raises:
            UserError: Another run holds it (its process id and host are named), or the folder cannot be written to.
        """
        if self._descriptor is not None:
            raise RuntimeError("the lock is held by this object already")
        ensure_writable(self.folder)
        try:
            self._descriptor = self._lock_file()
            self._owner = os.getpid()
            note = {"pid": self._owner, "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(note).encode("ascii"))
            remove_leftovers(self.folder)
        except OSError as error:
            self.release()
            raise UserError(f"{self.path}: cannot be locked: {error.strerror or error}") from error
        return self

    def _lock_file(self) -> int:
        while fcntl is not None:
            # Not through a symbolic link: what it points to would be overwritten with our note.
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                raise self._held_error() from error
            except OSError as error:
                os.close(descriptor)
                if error.errno in _NO_FLOCK:
                    # The empty file just made must not count as somebody's lock.
                    self._remove_if_empty()
                    break
                raise
            if self._is_current(descriptor):
                return descriptor
            # The holder removed the file between our open and flock: what we locked has no name any more.
            os.close(descriptor)
        try:
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError as error:
            hint = f"; if that run is dead, delete {self.path}"
            raise self._held_error(hint) from error

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _remove_if_empty(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size == 0:
                self.path.unlink()

    def _held_error(self, hint: str = "") -> UserError:
        try:
            note = json.loads(self.path.read_text(encoding="utf-8"))
            who = f"process {note['pid']} on {note['host']} since {note['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            # Its holder is just writing or removing the note.
            who = "another process"
        return UserError(f"{self.folder}: another run is writing here ({who}){hint}")

    def release(self) -> None:
        """Give the lock back and remove its file; releasing twice is fine.

        In a process forked from the holder this only closes the copy: the lock stays with the holder.
        """
        if self._descriptor is None:
            return
        if self._owner == os.getpid():
            # Removed while held, so that nobody's new lock can be removed by mistake; Windows cannot, it closes first.
            if os.name == "nt":
                os.close(self._descriptor)
            self.path.unlink(missing_ok=True)
            if os.name != "nt":
                os.close(self._descriptor)
        else:
            os.close(self._descriptor)
        self._descriptor = None
        self._owner = None

    def __enter__(self) -> "FolderLock":
        """Take the lock."""
        return self.acquire()

    def __exit__(self, *exc_info: object) -> None:
        """Give the lock back."""
        self.release()
