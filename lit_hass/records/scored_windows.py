"""What a perplexity run has scored so far, on its way: a line for each batch of windows, in one shard per rank.

As with answers (`lit_hass.records.shards`), a batch's line is on the disk before the batch counts, and a run that was
killed is read back whole, whatever number of ranks wrote it. The lines go when the result is written.
"""

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_hass.records.answer_files import iter_intact
from lit_hass.records.atomic import sync_folder
from lit_hass.records.shards import ShardWriter

_NAME = "windows"
_SHARD = re.compile(rf"{_NAME}\.rank(\d+)\.jsonl")


@dataclass(frozen=True)
class WindowSum:
    """What the scored tokens of one window that are of one page add up to.

    Attributes:
        window: index of the window in the run's plan.
        page: of the text; -1 where nobody knows it.
        nll: nats; a float64 sum, in the order of the tokens.
        tokens: how many.
    """

    window: int
    page: int
    nll: float
    tokens: int


@dataclass(frozen=True)
class ScoredBatch:
    """Windows that were read together.

    Attributes:
        windows: their indices; one without a scored token has no sum.
        sums: of these windows.
    """

    windows: tuple[int, ...]
    sums: tuple[WindowSum, ...]

    def to_dict(self) -> dict[str, Any]:
        """Its line."""
        return {"windows": self.windows, "sums": [[s.window, s.page, s.nll, s.tokens] for s in self.sums]}


def parse_scored(obj: Any) -> ScoredBatch:
    """Check one line and give it its type.

    Raises:
        ValueError: it is no such line; the message is the cause.
    """
    windows, sums = obj.get("windows"), obj.get("sums")
    if not isinstance(windows, list) or not all(type(window) is int for window in windows):
        raise ValueError("windows must be a list of integers")
    if not isinstance(sums, list) or not all(isinstance(entry, list) and len(entry) == 4 for entry in sums):
        raise ValueError("sums must be lists of window, page, nll and tokens")
    known = set(windows)
    for window, page, nll, tokens in sums:
        whole = type(window) is type(page) is type(tokens) is int
        if not whole or window not in known or tokens < 1:
            raise ValueError("a sum is of another window, or its page or tokens are no counts")
        if type(nll) not in (int, float) or not math.isfinite(nll):
            raise ValueError("nll must be a finite number")
    return ScoredBatch(tuple(windows), tuple(WindowSum(w, p, float(nll), n) for w, p, nll, n in sums))


def window_shards(folder: str | os.PathLike[str]) -> list[Path]:
    """The shards of a run's folder that are there, whatever number of ranks wrote them, by rank."""
    if not Path(folder).is_dir():
        return []
    found = [(int(m[1]), p) for p in Path(folder).iterdir() if (m := _SHARD.fullmatch(p.name))]
    return [path for _, path in sorted(found)]


def window_writer(folder: str | os.PathLike[str], rank: int) -> ShardWriter:
    """What appends one rank's batches; see `ShardWriter`."""
    return ShardWriter(folder, rank, _NAME, parse_scored)


def read_scored(folder: str | os.PathLike[str]) -> list[ScoredBatch]:
    """All batches in a run's folder; none of their windows comes twice."""
    seen: set[int] = set()
    found = []
    for shard in window_shards(folder):
        for batch in map(parse_scored, iter_intact(shard, parse_scored)):
            # Two ranks have scored one window where a killed run was told other limits than the one after it.
            if not seen.isdisjoint(batch.windows):
                continue
            seen.update(batch.windows)
            found.append(batch)
    return found


def remove_scored(folder: str | os.PathLike[str], shards: Sequence[Path]) -> None:
    """Remove shards, once what they hold is in the run's result."""
    for shard in shards:
        shard.unlink(missing_ok=True)
    if shards:
        sync_folder(folder)
