"""Examples of the benchmark, addressed by split, seed and number.

Whether a table belongs to ``train``, ``validation`` or ``test`` is decided by a hash of its content, so the splits
cannot share a table, whatever seeds and sizes they are drawn with.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

from lit_hass.data.html_to_tsv.render import Style, draw_style, render
from lit_hass.data.html_to_tsv.rng import SplitMix
from lit_hass.data.html_to_tsv.tables import Difficulty, draw_table

Split = Literal["train", "validation", "test"]

#: What the user says before the table.
INSTRUCTION = "Convert this HTML table to TSV:\n"

#: Of 16 hash buckets, which belong to which split.
_BUCKETS: dict[str, range] = {"train": range(0, 14), "validation": range(14, 15), "test": range(15, 16)}


@dataclass(frozen=True)
class Example:
    """One table: ``html`` as the question shows it, ``tsv`` as the answer must say it."""

    html: str
    tsv: str
    rows: int
    columns: int

    @property
    def question(self) -> str:
        """The user's turn."""
        return INSTRUCTION + self.html


def split_of(tsv: str) -> Split:
    """The one split that the table with this content belongs to."""
    bucket = hashlib.sha256(tsv.encode()).digest()[0] % 16
    for name, buckets in _BUCKETS.items():
        if bucket in buckets:
            return name  # type: ignore[return-value]
    raise AssertionError("the buckets cover all hashes")


def make_example(split: Split, seed: int, index: int, difficulty: Difficulty) -> Example:
    """Example ``index`` of a split: the same on every machine, and cheap to draw in any order."""
    rng = SplitMix("html_to_tsv", split, seed, index)
    while True:
        rows, has_header = draw_table(rng, difficulty)
        tsv = "\n".join("\t".join(row) for row in rows)
        if split_of(tsv) == split:
            break
    style = draw_style(rng) if difficulty.styles else Style()
    return Example(render(rows, has_header, style, rng), tsv, len(rows), len(rows[0]))


def make_questions(n: int, seed: int, difficulty: Difficulty, split: Split = "test") -> list[dict[str, Any]]:
    """``n`` questions in MT-bench's format, numbered from 1.

    Args:
        n: how many, at least 1.
        seed: another seed, other tables.
        difficulty: largest size and styles; within one file no table occurs twice.
        split: ``"test"`` and ``"validation"`` hold tables that no training run sees.

    Raises:
        ValueError: there are too few different tables of this difficulty.
    """
    seen: set[str] = set()
    questions: list[dict[str, Any]] = []
    index = 0
    while len(questions) < n:
        example = make_example(split, seed, index, difficulty)
        index += 1
        if example.tsv in seen:
            if index > 100 * n + 10_000:
                raise ValueError(f"fewer than {n} different tables of this difficulty were found")
            continue
        seen.add(example.tsv)
        questions.append(
            {
                "question_id": len(questions) + 1,
                "category": f"{example.rows}x{example.columns}",
                "turns": [example.question],
                "reference": [example.tsv],
            }
        )
    return questions
