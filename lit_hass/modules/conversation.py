"""Conversations on their way, and what a predict step returns for each question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.decoding import Generation
    from lit_hass.records import Question


@dataclass
class TurnOutcome:
    """The answer to one turn.

    Attributes:
        text: as it is recorded and shown to later turns.
        raw_text: as generated, without special tokens; white space at the ends is kept.
        generation: tokens, steps and seconds.
        prompt_tokens: length of the prompt.
        seed: of the noise; None for greedy decoding.
        batch_rows: how many turns were decoded together.
        time_share: seconds of that batch divided by ``batch_rows``: summed over all turns of a run they give the time
            spent decoding, at any batch size.
        text_tokens: how many tokens the text has when the tokenizer reads it again, with the special tokens that it
            adds: what the original ``speed.py`` counts.
        processor_share: seconds of the process's processors in that batch, divided by ``batch_rows``; None on a device
            of its own.
        processor_prefill_share: of these, those until the first token.
        wall_times: seconds of every repetition, where a comparison repeats turns.
        processor_times: likewise of the processors.
        divergence_gap: how far the base's best token is ahead of the second (logits; sampled: with their noise) where
            this answer leaves the one it is compared with; None where it does not, or nobody looked.
        prompt_digest: of the prompt's ids.
    """

    text: str
    raw_text: str
    generation: Generation
    prompt_tokens: int
    seed: int | None
    batch_rows: int
    time_share: float
    text_tokens: int | None = None
    processor_share: float | None = None
    processor_prefill_share: float | None = None
    wall_times: list[float] = field(default_factory=list)
    processor_times: list[float] = field(default_factory=list)
    divergence_gap: float | None = None
    prompt_digest: str | None = None

    def matches(self, reference: str) -> bool:
        r"""Whether the answer is the reference, to the character (``\r\n`` and ``\n`` count as the same)."""
        return self.raw_text.replace("\r\n", "\n") == reference.replace("\r\n", "\n")


@dataclass
class Conversation:
    """One choice of one question, turn by turn."""

    question: Question
    choice: int
    answers: list[str] = field(default_factory=list)
    turns: list[TurnOutcome] = field(default_factory=list)
    error: str | None = None


@dataclass
class QuestionOutcome:
    """All answers to one question, or the reason why there is none.

    Attributes:
        question: as asked.
        choices: per choice, its turns; empty when the question failed.
        error: None, or one line.
        peak_memory: bytes, see `lit_hass.modules.memory.peak_memory`.
        collected_features: whether features were copied while it was answered: its times are no measure of speed.
    """

    question: Question
    choices: list[list[TurnOutcome]] = field(default_factory=list)
    error: str | None = None
    peak_memory: int | None = None
    collected_features: bool = False

    @classmethod
    def of(cls, talks: Sequence[Conversation]) -> QuestionOutcome:
        """The outcome of a question's conversations; it failed when one of them did."""
        error = next((f"choice {talk.choice}: {talk.error}" for talk in talks if talk.error), None)
        return cls(talks[0].question, [] if error else [talk.turns for talk in talks], error)

    def to(self, device: object) -> QuestionOutcome:
        """Stay as it is: Lightning calls this for outputs that it keeps, and would else take all fields apart."""
        return self
