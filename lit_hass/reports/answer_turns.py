"""Answer lines, whose entries are lists by turn, as one object per turn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

#: What seconds are counted: those that pass, or those that the processors gave the process.
Clock = Literal["wall", "processor"]


@dataclass(frozen=True)
class AnswerTurn:
    """One turn of one choice. What the file does not say is NaN (seconds) or None.

    Attributes:
        text: the answer.
        new_tokens: number of new tokens, as the file counts them.
        steps: verification steps (or decoded tokens of plain decoding).
        output_ids: the new tokens.
        wall_time: seconds from the start of the turn's batch to its last token.
        seconds: the turn's share of its batch's seconds; ``wall_time`` where the file has no shares (the original
            scripts decode one prompt at a time).
        prefill_seconds: the share of the seconds until the first token.
        wall_times: seconds of every repetition.
        batch_rows: how many turns were decoded together.
        prompt_tokens: length of the prompt.
        stop_reason: ``"stop"``, ``"length"`` or ``"context"``.
        exact_match: whether the answer is the reference.
        divergence_gap: gap of logits where the answer leaves that of another run.
        text_tokens: tokens of the text when its tokenizer reads it again, special ones included.
        processor_seconds: seconds of the processors, the turn's share of its batch's.
        processor_prefill_seconds: of these, those until the first token.
        processor_times: ``processor_seconds`` of every repetition.
    """

    text: str
    new_tokens: int
    steps: int
    output_ids: Sequence[int] | None
    wall_time: float
    seconds: float
    prefill_seconds: float
    wall_times: Sequence[float]
    batch_rows: int | None
    prompt_tokens: int | None
    stop_reason: str | None
    exact_match: bool | None
    divergence_gap: float | None
    text_tokens: int | None = None
    processor_seconds: float = math.nan
    processor_prefill_seconds: float = math.nan
    processor_times: Sequence[float] = ()

    def times(self, clock: Clock) -> tuple[float, float, Sequence[float]]:
        """By one clock: seconds (a share), those until the first token, and seconds of every repetition."""
        if clock == "processor":
            return self.processor_seconds, self.processor_prefill_seconds, self.processor_times
        return self.seconds, self.prefill_seconds, self.wall_times

    @property
    def later_tokens(self) -> int:
        """The tokens after the first one."""
        return max(self.new_tokens - 1, 0)

    @property
    def decode_seconds(self) -> float:
        """The share of the seconds after the first token."""
        return self.seconds - self.prefill_seconds


def turns_of(answer: dict[str, Any]) -> list[AnswerTurn]:
    """All turns of all choices of an answer line, in its order (none of a failed one)."""
    return [turn for choice in answer["choices"] for turn in turns_of_choice(choice)]


def turns_of_choice(choice: dict[str, Any]) -> list[AnswerTurn]:
    """The turns of one choice of an answer line that ``read_answers`` has accepted."""
    return [_turn(choice, i) for i in range(len(choice["turns"]))]


def _turn(choice: dict[str, Any], i: int) -> AnswerTurn:
    def entry(key: str) -> Any:
        entries = choice.get(key)
        return entries[i] if entries else None

    rows, wall = entry("batch_rows"), _seconds(entry("wall_time"))
    share = _seconds(entry("time_share"))
    if not math.isfinite(share) and rows in (None, 1):
        share = wall
    return AnswerTurn(
        text=choice["turns"][i],
        new_tokens=choice["new_tokens"][i],
        steps=choice["idxs"][i] + 1,
        output_ids=entry("output_ids"),
        wall_time=wall,
        seconds=share,
        prefill_seconds=_seconds(entry("prefill_time")) / (rows or 1),
        wall_times=entry("wall_times") or (),
        batch_rows=rows,
        prompt_tokens=entry("prompt_tokens"),
        stop_reason=entry("stop_reason"),
        exact_match=entry("exact_match"),
        divergence_gap=entry("divergence_gap"),
        text_tokens=entry("text_tokens"),
        processor_seconds=_seconds(entry("processor_time")),
        processor_prefill_seconds=_seconds(entry("processor_prefill_time")),
        processor_times=entry("processor_times") or (),
    )


def _seconds(value: float | None) -> float:
    return float("nan") if value is None else float(value)
