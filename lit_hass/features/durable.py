"""Features that survive a kill: each question's are on the disk before its answer is, and count exactly once.

Each rank has a *journal*, to which it appends a question's features before the question's answer line is written, and
a *snapshot* of its statistics. When the journal outgrows the snapshot, the statistics, which then hold answered
questions only, become the new snapshot, and the journal begins anew; so both together take a bounded place.

A resume first makes one state of everything that is there: rank 0 merges the snapshots of all ranks there were, and
adds the journals' entries of questions that need not be asked again. An entry without an answer line is dropped: its
question is asked again. A question's id in two places (a kill in the midst of that) counts once.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch

from lit_hass.errors import RunError, UserError
from lit_hass.features.journal import Entry, Journal, read_journal
from lit_hass.features.measurement import CollapseMeasurement
from lit_hass.features.sequences import FeatureSequence, on_host
from lit_hass.features.snapshot import read_snapshot, write_snapshot
from lit_hass.records import ensure_writable, remove_leftovers, write_json
from lit_hass.records.json_lines import QuestionId

log = logging.getLogger(__name__)

#: A journal may always grow to this before a snapshot is worth its writing.
LEAST_JOURNAL_BYTES = 2**23
_RANK = re.compile(r"rank(\d+)\.(journal|snapshot)")


class DurableFeatures:
    """The features of one rank's questions, on the disk and in a measurement.

    Args:
        folder: of the run's features; all ranks share it.
        rank: of this process.
        measurement: of this process; what is on the disk is added to that of rank 0.

    Attributes:
        question_ids: questions whose features are in the measurement.
    """

    def __init__(self, folder: Path, rank: int, measurement: CollapseMeasurement) -> None:
        self.folder, self.rank, self.measurement = folder, rank, measurement
        self.question_ids: set[QuestionId] = set()
        self._journal = Journal(self._path(rank, "journal"))
        self._snapshot_bytes = 0

    def _path(self, rank: int, kind: str) -> Path:
        return self.folder / f"rank{rank}.{kind}"

    # -- begin or resume ----------------------------------------------------------------------------------------------

    def take_over(self, answered: Collection[QuestionId], ranks: int) -> None:
        """Make one state of what earlier processes left; for rank 0, before any rank begins.

        Args:
            answered: questions that are not asked again.
            ranks: processes of this run.

        Raises:
            RunError: features of answered questions are not there; names the file that is missing or damaged.
            UserError: they were collected with other settings, or the folder cannot be written to.
        """
        ensure_writable(self.folder)
        remove_leftovers(self.folder)
        found = self._found()
        wanted = set(answered)
        self._check_complete(found, bool(wanted))
        for rank in sorted(found["snapshot"]):
            self._add_snapshot(rank)
        afresh = self.question_ids.copy()
        for rank in sorted(found["journal"]):
            expects, entries = read_journal(self._path(rank, "journal"))
            if expects and rank not in found["snapshot"]:
                raise RunError(
                    f"{self._path(rank, 'snapshot')}: is gone; without it features of answered questions are lost"
                )
            for entry in entries:
                if entry.question_id in wanted and entry.question_id not in self.question_ids:
                    self._add(entry)
        self._check_answered(wanted, found)
        if self.question_ids:
            if self.question_ids != afresh or set(found["snapshot"]) != {0}:
                self._write_snapshot()
            else:
                self._snapshot_bytes = self._path(0, "snapshot").stat().st_size
        self._clean(found, ranks)

    def _found(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {"journal": [], "snapshot": []}
        for path in self.folder.iterdir():
            if match := _RANK.fullmatch(path.name):
                found[match[2]].append(int(match[1]))
        return found

    def _check_complete(self, found: dict[str, list[int]], resumes: bool) -> None:
        """Every rank that began has a journal, with rows of the same layer: they do not say which it is."""
        marker = self.folder / "ranks.json"
        if not marker.exists():
            return
        try:
            marked = json.loads(marker.read_text(encoding="utf-8"))
            ranks, layer = int(marked["ranks"]), int(marked.get("layer", -1))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{marker}: is damaged; it says how many processes collected features here") from error
        mine = self.measurement.config.layer
        if resumes and layer != mine:
            raise UserError(
                f"{self.folder}: features of answered questions are of collapse.layer {layer}, now it is {mine}; "
                "resume with that, or begin anew"
            )
        for rank in range(ranks):
            if rank not in found["journal"]:
                path = self._path(rank, "journal")
                raise RunError(f"{path}: is gone; without it the features of answered questions are lost")

    def _add_snapshot(self, rank: int) -> None:
        path = self._path(rank, "snapshot")
        tensors, plain = read_snapshot(path)
        ids = set(plain["question_ids"])
        if ids <= self.question_ids:
            return  # taken over before, and the process died before it could be removed
        if ids & self.question_ids:
            raise RunError(f"{path}: holds questions that another rank's snapshot holds too; it is not of this run")
        self.measurement.merge(tensors, plain["measurement"])
        self.question_ids |= ids

    def _add(self, entry: Entry) -> None:
        self.measurement.add_question(entry.sequences)
        self.question_ids.add(entry.question_id)

    def _check_answered(self, wanted: set[QuestionId], found: dict[str, list[int]]) -> None:
        lost = [question_id for question_id in wanted if question_id not in self.question_ids]
        extra = self.question_ids - wanted
        if extra:
            raise RunError(
                f"{self.folder}: holds features of {len(extra)} questions that have no answer ({_shown(extra)}): the "
                "answer files were changed; begin a new run"
            )
        if not lost:
            return
        files = [self._path(rank, kind).name for kind, ranks in found.items() for rank in sorted(ranks)]
        if not files:
            raise RunError(
                f"{self.folder}: {len(lost)} questions of this run are answered and have no features here "
                f"({_shown(lost)}): it was begun without feature collection, or the folder was deleted; begin a new run"
            )
        raise RunError(
            f"{self.folder}: the features of {len(lost)} answered questions ({_shown(lost)}) are in none of "
            f"{', '.join(sorted(files))}: one of them was cut off; put it back, or begin a new run"
        )

    def _clean(self, found: dict[str, list[int]], ranks: int) -> None:
        """Leave one snapshot and empty journals, in an order that any kill leaves readable."""
        for rank in range(ranks):
            if rank not in found["journal"]:
                self._begin(rank)
        write_json(self.folder / "ranks.json", {"ranks": ranks, "layer": self.measurement.config.layer})
        for rank in found["journal"]:
            if rank < ranks:
                self._begin(rank)
            else:
                self._path(rank, "journal").unlink(missing_ok=True)
        for rank in found["snapshot"]:
            if rank > 0:
                self._path(rank, "snapshot").unlink(missing_ok=True)
        for path in self.folder.glob("kept.rank*"):
            if path.stem != "kept.rank0":
                path.unlink(missing_ok=True)
        self.measurement.store.kept.remove_given_up()

    def _begin(self, rank: int) -> None:
        journal = Journal(self._path(rank, "journal"))
        journal.begin(after_snapshot=rank == 0 and self._path(0, "snapshot").exists())
        journal.close()

    # -- while the run goes on ----------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Open this rank's journal, once rank 0 has taken over."""
        self._journal.begin(after_snapshot=self._path(self.rank, "snapshot").exists())

    def record(self, questions: Sequence[tuple[QuestionId, Sequence[FeatureSequence]]]) -> None:
        """Take in the features of some questions; they are on the disk when this returns, their answers not yet.

        Args:
            questions: ids with the sequences of their choices and turns, none where there are no features.

        Raises:
            UserError: the folder cannot be written to any more.
            RunError: the disk is full or failed; or the settings refuse a question's features, of which then nothing is
                kept, so that a resume asks it again.
        """
        store = self.measurement.store
        flat = [sequence for _, sequences in questions for sequence in sequences]
        for sequence in flat:
            self.measurement.check(sequence)
        dtype = store.storage_dtype(flat[0].features.dtype) if flat else torch.float32
        moved = iter(on_host(flat, dtype))
        entries = [Entry(question_id, [next(moved) for _ in sequences]) for question_id, sequences in questions]
        for entry in entries:
            self._journal.append(entry.question_id, entry.sequences)
        if entries:
            self._journal.sync()
        for entry in entries:
            self._add(entry)
        store.flush()

    def compact(self) -> None:
        """Write a snapshot if that is worth it; every question recorded must have its answer line by now.

        A disk that is too full for it leaves the journal as it is, which holds the same.
        """
        if self._journal.nbytes < max(LEAST_JOURNAL_BYTES, self._snapshot_bytes):
            return
        try:
            self._write_snapshot()
        except RunError as error:
            if self.measurement.config.on_error == "raise":
                raise
            log.warning("%s; the journal goes on", error)
            self._snapshot_bytes = 2 * self._journal.nbytes  # not again with every batch
            return
        self._journal.begin(after_snapshot=True)
        self.measurement.store.kept.remove_given_up()

    def finish(self) -> None:
        """Leave one snapshot of everything and an empty journal; every question recorded has its answer line."""
        if self.question_ids:
            self._write_snapshot()
            self._journal.begin(after_snapshot=True)
            self.measurement.store.kept.remove_given_up()
        self.close()

    def _write_snapshot(self) -> None:
        tensors, plain = self.measurement.state()
        about: dict[str, Any] = {"measurement": plain, "question_ids": sorted(self.question_ids, key=repr)}
        self._snapshot_bytes = write_snapshot(self._path(self.rank, "snapshot"), tensors, about)

    def close(self) -> None:
        """Close the files; closing twice is fine."""
        self._journal.close()


def _shown(ids: Collection[QuestionId]) -> str:
    some = ", ".join(map(repr, sorted(ids, key=repr)[:5]))
    return some + (", ..." if len(ids) > 5 else "")
