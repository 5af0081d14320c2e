"""The names of the files in a run folder, in one place."""

import os
import re
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.answer_files import read_answers
from lit_hass.records.answers import is_failed
from lit_hass.records.json_lines import QuestionId

_SHARD_NAME = re.compile(r"answers\.rank(\d+)\.jsonl")


class RunFolder:
    """A folder that one run writes and others read. Making the object touches nothing on disk.

    Args:
        path: The folder, there or not.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Name the folder."""
        self.path = Path(path)

    def __repr__(self) -> str:
        """Show the path."""
        return f"RunFolder({str(self.path)!r})"

    @property
    def answers(self) -> Path:
        """The finished answers: every question exactly once, in the question file's order."""
        return self.path / "answers.jsonl"

    @property
    def statistics(self) -> Path:
        """Speed and acceptance of the run."""
        return self.path / "statistics.json"

    @property
    def config(self) -> Path:
        """All settings of the command that made the run, as Lightning's CLI writes them."""
        return self.path / "config.yaml"

    @property
    def key(self) -> Path:
        """The settings that decide the answers, with their hash; see :mod:`lit_hass.records.run_key`."""
        return self.path / "run_key.json"

    @property
    def lock(self) -> Path:
        """Held by the run that writes here; see :mod:`lit_hass.records.lock`."""
        return self.path / "run.lock"

    @property
    def mark(self) -> Path:
        """Which verb made the folder, and whether it came to its end; see :mod:`lit_hass.records.held_folder`."""
        return self.path / "run.json"

    def shard(self, rank: int) -> Path:
        """The unmerged answers of one rank."""
        return self.path / f"answers.rank{rank}.jsonl"

    def shards(self) -> list[Path]:
        """The shards that are there, whatever number of ranks wrote them, by rank."""
        if not self.path.is_dir():
            return []
        found = [(int(m[1]), p) for p in self.path.iterdir() if (m := _SHARD_NAME.fullmatch(p.name))]
        return [path for _, path in sorted(found)]

    @property
    def is_finished(self) -> bool:
        """Whether the answers were merged and no resume has left anything beside them (failed answers may be in)."""
        return self.answers.is_file() and not self.shards()

    def read_answers(self) -> list[dict[str, Any]]:
        """Read the merged answers.

        Raises:
            UserError: The run was never merged, or its file is broken.
        """
        if not self.answers.exists():
            shards = self.shards()
            if shards:
                cause = f"only {len(shards)} unmerged shard(s); run the same command with its version to finish it"
                raise UserError(f"{self.path}: the run has no {self.answers.name} yet, {cause}")
            raise UserError(f"{self.path}: is not the folder of a run, it has no {self.answers.name}")
        return read_answers(self.answers)

    def failed_ids(self) -> list[QuestionId]:
        """The questions that failed in the merged answers, in order.

        Raises:
            UserError: As :meth:`read_answers`.
        """
        return [answer["question_id"] for answer in self.read_answers() if is_failed(answer)]
