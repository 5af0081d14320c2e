"""Two runs' answers laid side by side: the same question, the same choice, the same turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lit_hass.records import QuestionId
from lit_hass.reports.answer_turns import AnswerTurn, turns_of_choice
from lit_hass.reports.comparison_run import ComparedRun


@dataclass(frozen=True)
class JoinedTurn:
    """A turn that both runs answered.

    Attributes:
        choice: index of the choice.
        turn: number of the turn, from 0.
        baseline: the baseline's answer.
        hass: the other's.
    """

    choice: int
    turn: int
    baseline: AnswerTurn
    hass: AnswerTurn

    @property
    def is_timed(self) -> bool:
        """Whether the seconds of both are known."""
        return math.isfinite(self.baseline.seconds) and math.isfinite(self.hass.seconds)


@dataclass(frozen=True)
class Cost:
    """What some turns of one run cost.

    Attributes:
        tokens: new tokens.
        seconds: for them, prefill included; of several repetitions the median.
        later_tokens: the tokens after each turn's first one.
        decode_seconds: for those; NaN where the time of a first token is unknown.
        repeats: seconds of each repetition, where all turns have the same number of them.
    """

    tokens: int
    seconds: float
    later_tokens: int
    decode_seconds: float
    repeats: Sequence[float] = ()

    @classmethod
    def of(cls, turns: Sequence[AnswerTurn]) -> Cost:
        """Add up turns. Repetitions count for turns decoded alone, since others share their batch's seconds."""
        repeats: Sequence[float] = ()
        counts = {len(turn.wall_times) for turn in turns}
        if len(counts) == 1 and counts != {0} and all(turn.batch_rows in (None, 1) for turn in turns):
            repeats = [float(sum(each)) for each in zip(*(turn.wall_times for turn in turns), strict=True)]
        seconds = float(np.median(repeats)) if repeats else float(sum(turn.seconds for turn in turns))
        later = sum(turn.later_tokens for turn in turns)
        prefill = float(sum(turn.prefill_seconds for turn in turns))
        return cls(sum(turn.new_tokens for turn in turns), seconds, later, seconds - prefill, repeats)

    @property
    def speed(self) -> float:
        """Tokens per second; NaN where no time is known."""
        return self.tokens / self.seconds if self.seconds > 0 else float("nan")


@dataclass(frozen=True)
class JoinedQuestion:
    """A question that both runs answered, with the choices and turns that both have.

    Attributes:
        question_id: the question.
        category: its category, None where nobody says.
        turns: at least one.
        accepted: accepted draft tokens of the second run's steps, over all its choices.
    """

    question_id: QuestionId
    category: str | None
    turns: Sequence[JoinedTurn]
    accepted: Sequence[int]

    @cached_property
    def timed(self) -> list[JoinedTurn]:
        """The turns of which both runs' seconds are known."""
        return [turn for turn in self.turns if turn.is_timed]

    @cached_property
    def baseline(self) -> Cost:
        """What the baseline's timed turns cost."""
        return Cost.of([turn.baseline for turn in self.timed])

    @cached_property
    def hass(self) -> Cost:
        """What the other's timed turns cost."""
        return Cost.of([turn.hass for turn in self.timed])


def join(
    baseline: ComparedRun, hass: ComparedRun, categories: dict[QuestionId, str] | None = None
) -> list[JoinedQuestion]:
    """Lay two runs side by side, in the baseline's order; what only one of them has is left out."""
    joined = []
    for question_id, one in baseline.answered.items():
        other = hass.answered.get(question_id)
        if other is None:
            continue
        if turns := _common_turns(one, other):
            accepted = [a for choice in other["choices"] for a in choice.get("accept_length", ())]
            joined.append(JoinedQuestion(question_id, (categories or {}).get(question_id), turns, accepted))
    return joined


def _common_turns(one: dict[str, Any], other: dict[str, Any]) -> list[JoinedTurn]:
    theirs = {choice["index"]: turns_of_choice(choice) for choice in other["choices"]}
    return [
        JoinedTurn(choice["index"], i, turn, theirs[choice["index"]][i])
        for choice in one["choices"]
        for i, turn in enumerate(turns_of_choice(choice))
        if i < len(theirs.get(choice["index"], ()))
    ]
