"""Two runs' answers laid side by side: the same question, the same choice, the same turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lit_hass.records import QuestionId
from lit_hass.reports.answer_turns import AnswerTurn, Clock, turns_of_choice
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

    @property
    def has_processor_time(self) -> bool:
        """Whether both know what the processors spent."""
        return math.isfinite(self.baseline.processor_seconds) and math.isfinite(self.hass.processor_seconds)


@dataclass(frozen=True)
class Cost:
    """What some turns of one run cost, by one clock.

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
    def of(cls, turns: Sequence[AnswerTurn], clock: Clock = "wall") -> Cost:
        """Add up turns. Repetitions count for turns decoded alone, since others share their batch's seconds."""
        repeats: Sequence[float] = ()
        times = [turn.times(clock) for turn in turns]
        counts = {len(each) for _, _, each in times}
        if len(counts) == 1 and counts != {0} and all(turn.batch_rows in (None, 1) for turn in turns):
            repeats = [float(sum(each)) for each in zip(*(each for _, _, each in times), strict=True)]
        seconds = float(np.median(repeats)) if repeats else float(sum(seconds for seconds, _, _ in times))
        later = sum(turn.later_tokens for turn in turns)
        prefill = float(sum(prefill for _, prefill, _ in times))
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
    def costs(self) -> dict[Clock, tuple[Cost, Cost]]:
        """What the timed turns of both cost, the baseline's first; by the processors only where all are known."""
        pair = [turn.baseline for turn in self.timed], [turn.hass for turn in self.timed]
        clocks: tuple[Clock, ...] = ("wall", "processor")
        known = clocks if all(turn.has_processor_time for turn in self.timed) else clocks[:1]
        return {clock: (Cost.of(pair[0], clock), Cost.of(pair[1], clock)) for clock in known}


def headline_clock(questions: Sequence[JoinedQuestion]) -> Clock:
    """Which clock's speedup says most: that of the processors where all timed turns know it, else the wall's."""
    timed = [question for question in questions if question.timed]
    return "processor" if timed and all("processor" in question.costs for question in timed) else "wall"


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
