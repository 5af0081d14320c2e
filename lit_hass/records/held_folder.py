"""A folder while one command writes it: locked, and nobody's but a run's own.

A run writes many files, some of them over those of an earlier part of it. So it writes only into a folder that it made,
that was empty, or that carries the mark of a run of the same verb: nothing else can be lost.
"""

import contextlib
import os
from pathlib import Path
from typing import Any

from lit_hass import __version__
from lit_hass.errors import UserError
from lit_hass.records.atomic import TEMPORARY_SUFFIX, ensure_writable, remove_leftovers, write_json
from lit_hass.records.json_lines import read_object
from lit_hass.records.lock import FolderLock
from lit_hass.records.run_folder import RunFolder

#: Begins the name of a folder that is made, and removed at once, to see whether one can be.
PROBE = ".lit-hass-"

#: What compare writes: always the first two.
_COMPARISON = ("comparison.json", "comparison.md", "comparison.png", "report.html")


class HeldFolder:
    """Takes a run's folder for a command, and gives it back; only rank 0 does.

    Args:
        folder: The run folder; made if need be.
        verb: What the command does, such as ``fit``.
        other: How the command line names another folder, for refusals.

    Attributes:
        folder: The run folder.
    """

    def __init__(self, folder: str | os.PathLike[str], verb: str, other: str) -> None:
        """Name the folder; nothing is touched yet."""
        self.folder, self.verb, self.other = Path(folder), verb, other
        self._lock: FolderLock | None = None
        self._made: list[Path] = []

    def check(self, resumes: bool) -> None:
        """Refuse a folder that is not this run's to write, without changing anything.

        Args:
            resumes: Whether the command goes on with what the folder holds; otherwise it begins, and what is finished,
                or has a checkpoint to go on from, is not written over.

        Raises:
            UserError: The folder holds files that no run wrote, a run of another verb, or one to go on with.
        """
        run = RunFolder(self.folder)
        found = _names(self.folder)
        if not found:
            return
        mark = read_mark(self.folder)
        if mark is None:
            if self.verb == "fit" and not resumes and any(self.folder.glob("checkpoints/*.ckpt")):
                raise UserError(self._stopped)
            if run.key.exists() or self._was_made_before_marks(found, resumes):  # or by the library
                return
            shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            raise UserError(
                f"{self.folder}: holds files that no run wrote ({shown}), which this one might write over; {self.other}"
            )
        if mark["verb"] != self.verb:
            raise UserError(f"{self.folder}: is the folder of a {mark['verb']} run, not of {self.verb}; {self.other}")
        if not resumes and mark["finished"]:
            raise UserError(f"{self.folder}: holds a finished run; {self.other}")
        if not resumes and any(self.folder.glob("checkpoints/*.ckpt")):
            raise UserError(self._stopped)

    @property
    def _stopped(self) -> str:
        return f"{self.folder}: holds the checkpoints of a run that was stopped; {self.other}"

    def _was_made_before_marks(self, found: list[str], resumes: bool) -> bool:
        """Whether files that carry no mark are those of a run of this verb all the same, to go on with or do anew."""
        if self.verb == "compare":
            return set(_COMPARISON[:2]) <= set(found) <= set(_COMPARISON)
        if self.verb == "evaluate":  # has a key in the folder of each method
            return any(self.folder.glob("*/run_key.json"))
        return self.verb == "fit" and resumes and any(self.folder.glob("checkpoints/*.ckpt"))

    def take(self, resumes: bool, new: bool = False) -> "HeldFolder":
        """Lock the folder, without waiting, and mark it.

        Args:
            resumes: See :meth:`check`, which is done again once nobody else can write.
            new: Make the folder, so that of two commands that choose one name at once only one has it.

        Raises:
            FileExistsError: The folder is to be made and is there.
            UserError: As :meth:`check`; another run writes there; it cannot be written to.
        """
        self.check(resumes)
        self._made = [place for place in (self.folder, *self.folder.parents) if not place.exists()]
        if new:
            ensure_writable(self.folder.parent)
            self.folder.mkdir()
        self._lock = FolderLock(self.folder).acquire()
        try:
            self.check(resumes)
            for place, _, _ in os.walk(self.folder):
                remove_leftovers(place)
            self._mark(finished=False)
        except BaseException:
            self.release()
            raise
        return self

    def finish(self) -> None:
        """Note that the run came to its end."""
        self._mark(finished=True)

    def _mark(self, finished: bool) -> None:
        write_json(RunFolder(self.folder).mark, {"verb": self.verb, "finished": finished, "lit_hass": __version__})

    def release(self) -> None:
        """Give the folder back; one that was made for a run which left nothing in it is removed. Twice is fine."""
        if self._lock is None:
            return
        mark = RunFolder(self.folder).mark
        if self._made and _names(self.folder) == [mark.name]:
            mark.unlink()
        self._lock.release()
        self._lock = None
        with contextlib.suppress(OSError):  # somebody has put something there
            for place in self._made:
                place.rmdir()

    def __enter__(self) -> "HeldFolder":
        """Return the folder, which has been taken."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Give it back."""
        self.release()


def read_mark(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The mark of a run's folder: ``{"verb", "finished", "lit_hass"}``; None where there is none.

    Raises:
        UserError: The file is no mark.
    """
    path = RunFolder(folder).mark
    mark = read_object(path)
    if mark is None:
        return None
    if not isinstance(mark.get("verb"), str) or not isinstance(mark.get("finished"), bool):
        raise UserError(f"{path}: is not the mark of a run, so nobody knows whose the files beside it are")
    return mark


def _names(folder: Path) -> list[str]:
    """What lies in a folder, but for what a killed command leaves there."""
    if not folder.is_dir():
        return []
    lock = RunFolder(folder).lock.name
    names = sorted(path.name for path in folder.iterdir())
    return [
        name for name in names if name != lock and not name.startswith(PROBE) and not name.endswith(TEMPORARY_SUFFIX)
    ]
