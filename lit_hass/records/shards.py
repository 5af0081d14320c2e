"""Answers on their way: one file per rank while a run lasts, merged into one when every question is done.

The order of events makes every moment safe to be killed at. A line is written and synced before its batch counts; the
merged file replaces the old one before any shard goes; and all readers take the merged file and whatever shards there
are together, so that a question found twice is no harm.
"""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lit_hass.errors import RunError
from lit_hass.records.answer_files import iter_intact, parse_answer, read_answers
from lit_hass.records.answers import is_failed
from lit_hass.records.atomic import (
    check_own_file,
    encode,
    ensure_writable,
    sync_folder,
    to_json,
    to_jsonable,
    write_error,
    write_lines,
)
from lit_hass.records.json_lines import QuestionId, parse_object
from lit_hass.records.run_folder import RunFolder


class ShardWriter:
    """Appends the answers of one rank to its own shard; a context manager.

    Opening drops the torn end that a killed process left in this shard. The file is made by the first write, so that a
    rank with nothing to do leaves nothing behind.

    Args:
        folder: The run folder; made if need be.
        rank: Global rank of the process, from 0.
        name: What the lines are; the shard is ``{name}.rank{rank}.jsonl``.
        parse: Raises ValueError for an object that is no such line.

    Raises:
        UserError: The folder cannot be written to, or the shard is a link to a file elsewhere.
        RunError: The disk is full or failed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        rank: int,
        name: str = "answers",
        parse: Callable[[Any], object] = parse_answer,
    ) -> None:
        """Check the folder and mend the shard."""
        if rank < 0:
            raise ValueError(f"rank must not be negative, found {rank}")
        self.path = ensure_writable(folder) / f"{name}.rank{rank}.jsonl"
        self._parse = parse
        self._file: io.FileIO | None = None
        self._closed = False
        check_own_file(self.path)
        try:
            if self.path.exists():
                drop_torn_end(self.path)
        except OSError as error:
            raise write_error(self.path, error) from error

    def write(self, answers: Iterable[dict[str, Any]]) -> None:
        """Append answers, one line each, and return when they are on the disk.

        Args:
            answers: Objects of answer lines, such as ``AnswerRecord.to_dict()`` or ``failed_answer(...)``.

        Raises:
            ValueError: An object is no answer line (nothing is written then), or the writer was closed.
            UserError: The folder cannot be written to any more.
            RunError: The disk is full or failed; none of these answers counts then.
        """
        if self._closed:
            raise ValueError(f"{self.path.name} was closed")
        lines = []
        for answer in answers:
            # Checked here, since readers would pass such a line over and the question would be missing for ever.
            plain = to_jsonable(answer)
            self._parse(plain)
            lines.append(encode(to_json(plain)) + b"\n")
        if not lines:
            return
        try:
            self._append(b"".join(lines))
        except OSError as error:
            raise write_error(self.path, error) from error

    def _append(self, content: bytes) -> None:
        if self._file is None:
            check_own_file(self.path)
            # Unbuffered: after an error no half line may wait in a buffer and be written on closing.
            self._file = io.FileIO(self.path, "ab")
            sync_folder(self.path.parent)
        file = self._file
        begin = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            # Else the next write would go on in the middle of a line and spoil its own first answer too.
            with contextlib.suppress(OSError):
                file.truncate(begin)
            raise

    def close(self) -> None:
        """Close the shard; closing twice is fine."""
        self._closed = True
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "ShardWriter":
        """Return the writer."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Close the shard."""
        self.close()


def drop_torn_end(path: str | os.PathLike[str]) -> int:
    r"""Cut off what a killed process or a power cut left half-written at the end of a shard.

    That is what follows the last ``\n``, and then the last line if it holds no JSON object (blocks that were allocated
    but never written read back as zeros).

    Returns:
        The number of bytes dropped.

    Raises:
        UserError: It is a link to a file elsewhere.
    """
    check_own_file(path)
    with open(path, "r+b") as file:
        content = file.read()
        keep = content.rfind(b"\n") + 1
        begin = content.rfind(b"\n", 0, max(keep - 1, 0)) + 1
        if keep:
            try:
                parse_object(content[begin : keep - 1])
            except ValueError:
                keep = begin
        if keep < len(content):
            file.truncate(keep)
            file.flush()
            os.fsync(file.fileno())
    return len(content) - keep


def completed_ids(folder: str | os.PathLike[str]) -> set[QuestionId]:
    """Find the questions that need not be asked again.

    Args:
        folder: A run folder, there or not; any number of ranks may have written it, finished or not.

    Returns:
        Ids with an answer in the merged file or any shard. Failed ones are not among them.

    Raises:
        UserError: The merged file is broken; names the line.
    """
    return {question_id for question_id, answer in _collect(RunFolder(folder)).items() if not is_failed(answer)}


def merge_shards(folder: str | os.PathLike[str], order: Sequence[QuestionId]) -> Path:
    """Merge all shards into ``answers.jsonl`` and remove them; for rank 0, after all ranks have closed theirs.

    A question found several times (killed runs may leave that) keeps an answered line rather than a failed one, then
    the one written last. On a folder that is finished already this changes nothing.

    Args:
        folder: The run folder.
        order: The ids of all questions of the run, in the order wanted.

    Returns:
        The path of ``answers.jsonl``.

    Raises:
        ValueError: ``order`` is empty or repeats an id.
        RunError: Questions are missing, or answers belong to no question; everything is left as it is.
        UserError: The merged file of an earlier run is broken, or the folder cannot be written to.
    """
    if not order or len(set(order)) != len(order):
        raise ValueError("order is empty or repeats a question id")
    run = RunFolder(folder)
    answers = _collect(run)
    missing = [question_id for question_id in order if question_id not in answers]
    if missing:
        raise RunError(
            f"{run.path}: {len(missing)} of {len(order)} questions missing (first ids {_first(missing)}); "
            "run the same command with this run's version to resume"
        )
    wanted = set(order)
    foreign = [question_id for question_id in answers if question_id not in wanted]
    if foreign:
        raise RunError(
            f"{run.path}: holds {len(foreign)} answers to questions that are not in this run "
            f"(first ids {_first(foreign)}); nothing was merged"
        )
    shards = run.shards()
    if run.answers.exists() and not shards and list(answers) == list(order):
        return run.answers
    write_lines(run.answers, (to_json(answers[question_id]) for question_id in order))
    for shard in shards:
        shard.unlink(missing_ok=True)
    sync_folder(run.path)
    return run.answers


def _collect(run: RunFolder) -> dict[QuestionId, dict[str, Any]]:
    found: dict[QuestionId, dict[str, Any]] = {}
    # Shards before the merged file: a merge may run between the two, and what it removes here it has put there before.
    in_shards = [answer for shard in _by_age(run.shards()) for answer in iter_intact(shard)]
    merged = read_answers(run.answers) if run.answers.exists() else []
    for answer in (*merged, *in_shards):
        known = found.get(answer["question_id"])
        if known is None or _weight(answer) >= _weight(known):
            found[answer["question_id"]] = answer
    return found


def _weight(answer: dict[str, Any]) -> tuple[bool, float]:
    # A failed line has no time stamp: among those, the order of reading decides.
    return not is_failed(answer), answer.get("tstamp") or 0.0


def _by_age(shards: list[Path]) -> list[Path]:
    # Rank 0 of the resuming run may well have written after rank 3 of the killed one.
    times = {}
    for shard in shards:
        with contextlib.suppress(FileNotFoundError):
            times[shard] = shard.stat().st_mtime_ns
    return sorted(times, key=lambda shard: times[shard])


def _first(ids: Sequence[QuestionId], count: int = 5) -> str:
    shown = ", ".join(repr(question_id) for question_id in ids[:count])
    return shown + (", ..." if len(ids) > count else "")
