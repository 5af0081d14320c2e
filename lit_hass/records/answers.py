"""The answer line: the original scripts' keys, so that their own readers work, and ours beside them."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_hass.records.json_lines import QuestionId

# What only a run made for a comparison has, or only one on a CPU, and what older files have not.
_ONLY_WHERE_KNOWN = frozenset(
    {
        "wall_times", "divergence_gap", "prompt_digest", "text_tokens", "processor_time", "processor_prefill_time",
        "processor_times",
    }
)  # fmt: skip


@dataclass(frozen=True)
class TurnRecord:
    """What generating the answer to one turn gave.

    Attributes:
        text: The answer: cut at the first stop id, special tokens removed, stripped.
        output_ids: New token ids, the stop id included.
        wall_time: Seconds of the turn, prefill included.
        steps: Verification steps of the draft, or decoded tokens of plain decoding.
        accept_lengths: Accepted draft tokens per step, without the +1; empty where nothing was drafted.
        prefill_time: Seconds to the first token.
        decode_time: Seconds after it.
        stop_reason: ``"stop"``, ``"length"`` or ``"context"``.
        seed: Seed of the turn's noise; None for greedy decoding.
        prompt_tokens: Length of the prompt.
        prompt_digest: Of the prompt's ids, see `prompts_digest`.
        batch_rows: How many turns were decoded together.
        time_share: Seconds of that batch divided by ``batch_rows``; these add up to the time spent, at any batch size.
        exact_match: Whether the text as generated is the reference, to the character; None without a reference.
        wall_times: Seconds of every repetition, of which ``wall_time`` is one; empty where it ran once.
        divergence_gap: See `ChoiceRecord`.
        text_tokens: Tokens of the text when the tokenizer reads it again, special ones included.
        processor_time: Seconds of the process's processors in the batch, divided by ``batch_rows``; on a CPU only.
        processor_prefill_time: Of these, those to the first token.
        processor_times: ``processor_time`` of every repetition.
    """

    text: str
    output_ids: Sequence[int]
    wall_time: float | None
    steps: int
    accept_lengths: Sequence[int] = ()
    prefill_time: float | None = None
    decode_time: float | None = None
    stop_reason: str | None = None
    seed: int | None = None
    prompt_tokens: int | None = None
    prompt_digest: str | None = None
    batch_rows: int | None = None
    time_share: float | None = None
    exact_match: bool | None = None
    wall_times: Sequence[float] = ()
    divergence_gap: float | None = None
    text_tokens: int | None = None
    processor_time: float | None = None
    processor_prefill_time: float | None = None
    processor_times: Sequence[float] = ()


@dataclass(frozen=True)
class ChoiceRecord:
    """One of a question's answers; every list has one entry per turn, but ``accept_length``.

    The first six are the original scripts' keys with their meaning; ours are the others, and are empty in files that
    the original scripts wrote.

    Attributes:
        index: Number of the choice, from 0.
        turns: Answer texts.
        idxs: ``steps - 1``, which is the original's last loop index.
        new_tokens: Number of new tokens, the stop id included.
        wall_time: Seconds, prefill included; None where it is unknown.
        accept_length: Accepted draft tokens per step, without the +1, flat over all turns.
        accept_lengths: The same, one list per turn.
        output_ids: New token ids.
        prefill_time: Seconds to the first token.
        decode_time: Seconds after it.
        steps: Verification steps, or decoded tokens of plain decoding.
        stop_reason: ``"stop"``, ``"length"`` or ``"context"``.
        seed: Seeds of the noise; None for greedy decoding.
        prompt_tokens: Lengths of the prompts.
        prompt_digest: Of the prompts' ids: whether two runs asked the same. Empty where nobody wrote it down.
        batch_rows: How many turns were decoded together.
        time_share: Seconds of the batch divided by ``batch_rows``.
        exact_match: Whether the text as generated is the reference; None without one.
        wall_times: Seconds of every repetition of the turn, of which ``wall_time`` is one; empty where it ran once.
        divergence_gap: How far the base's best token is ahead of the second (logits; sampled: with their noise) where
            the answer leaves that of the run it is compared with; None where nothing differs. Empty where nobody
            looked, or nothing differs in any turn.
        text_tokens: Tokens of each text when the tokenizer reads it again, with the special tokens that it adds.
        processor_time: Seconds of the process's processors, all its threads together, in the turn's batch, divided by
            ``batch_rows``. Other work on the machine does not enter them. On a CPU only, else empty.
        processor_prefill_time: Of these, those to the first token.
        processor_times: ``processor_time`` of every repetition, like ``wall_times``.
    """

    index: int
    turns: list[str]
    idxs: list[int]
    new_tokens: list[int]
    wall_time: list[float | None]
    accept_length: list[int] = field(default_factory=list)
    accept_lengths: list[list[int]] = field(default_factory=list)
    output_ids: list[list[int]] = field(default_factory=list)
    prefill_time: list[float | None] = field(default_factory=list)
    decode_time: list[float | None] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    stop_reason: list[str | None] = field(default_factory=list)
    seed: list[int | None] = field(default_factory=list)
    prompt_tokens: list[int | None] = field(default_factory=list)
    prompt_digest: list[str | None] = field(default_factory=list)
    batch_rows: list[int | None] = field(default_factory=list)
    time_share: list[float | None] = field(default_factory=list)
    exact_match: list[bool | None] = field(default_factory=list)
    wall_times: list[list[float]] = field(default_factory=list)
    divergence_gap: list[float | None] = field(default_factory=list)
    text_tokens: list[int | None] = field(default_factory=list)
    processor_time: list[float | None] = field(default_factory=list)
    processor_prefill_time: list[float | None] = field(default_factory=list)
    processor_times: list[list[float]] = field(default_factory=list)

    @classmethod
    def from_turns(cls, index: int, turns: Sequence[TurnRecord]) -> "ChoiceRecord":
        """Build a choice whose derived entries (``idxs``, ``new_tokens``, ``accept_length``) agree with the rest."""
        return cls(
            index=index,
            turns=[t.text for t in turns],
            idxs=[t.steps - 1 for t in turns],
            new_tokens=[len(t.output_ids) for t in turns],
            wall_time=[t.wall_time for t in turns],
            accept_length=[a for t in turns for a in t.accept_lengths],
            accept_lengths=[list(t.accept_lengths) for t in turns],
            output_ids=[list(t.output_ids) for t in turns],
            prefill_time=[t.prefill_time for t in turns],
            decode_time=[t.decode_time for t in turns],
            steps=[t.steps for t in turns],
            stop_reason=[t.stop_reason for t in turns],
            seed=[t.seed for t in turns],
            prompt_tokens=[t.prompt_tokens for t in turns],
            prompt_digest=_unless_all_none([t.prompt_digest for t in turns]),
            batch_rows=[t.batch_rows for t in turns],
            time_share=[t.time_share for t in turns],
            exact_match=[t.exact_match for t in turns],
            wall_times=[list(t.wall_times) for t in turns] if all(t.wall_times for t in turns) else [],
            divergence_gap=_unless_all_none([t.divergence_gap for t in turns]),
            text_tokens=_unless_all_none([t.text_tokens for t in turns]),
            processor_time=_unless_all_none([t.processor_time for t in turns]),
            processor_prefill_time=_unless_all_none([t.processor_prefill_time for t in turns]),
            processor_times=[list(t.processor_times) for t in turns] if all(t.processor_times for t in turns) else [],
        )

    def to_dict(self) -> dict[str, Any]:
        """The choice as it stands in the answer line, the original's keys first; some of ours only where known."""
        # Not dataclasses.asdict: it copies every token id one by one.
        return {key: value for key, value in vars(self).items() if value or key not in _ONLY_WHERE_KNOWN}


@dataclass(frozen=True)
class AnswerRecord:
    """One line of an answer file.

    Attributes:
        question_id: The question.
        model_id: ``"<id>-temperature-<t>"`` in the original; None in a failed line.
        choices: Its answers; none in a failed line.
        answer_id: Unique for each line; made when left out.
        tstamp: Seconds since 1970; now when left out.
        error: None, or why the question failed.
        peak_memory: Bytes, while it was answered; None where it is unknown.
        collected_features: Whether features were copied meanwhile, so that its times are no measure of speed.
        load: Processes of the whole machine that ran or waited for a processor, this one's included, on average over
            the minute before the line was made; None where the system does not tell.
    """

    question_id: QuestionId
    model_id: str | None
    choices: list[ChoiceRecord]
    answer_id: str | None = field(default_factory=lambda: uuid.uuid4().hex)
    tstamp: float | None = field(default_factory=time.time)
    error: str | None = None
    peak_memory: int | None = None
    collected_features: bool = False
    load: float | None = None

    @property
    def failed(self) -> bool:
        """Whether the question has no answer."""
        return self.error is not None

    def to_dict(self) -> dict[str, Any]:
        """The line's object."""
        if self.error is not None:
            return failed_answer(self.question_id, self.error)
        line = {
            "question_id": self.question_id,
            "answer_id": self.answer_id,
            "model_id": self.model_id,
            "tstamp": self.tstamp,
            "choices": [choice.to_dict() for choice in self.choices],
            "peak_memory": self.peak_memory,
        }
        if self.load is not None:
            line["load"] = self.load
        return {**line, "collected_features": True} if self.collected_features else line


def _unless_all_none(values: list[Any]) -> list[Any]:
    return [] if all(value is None for value in values) else values


def failed_answer(question_id: QuestionId, error: str) -> dict[str, Any]:
    """The line of a question that failed: it is counted, makes the run fail, and is tried again by a resume."""
    return {"question_id": question_id, "error": error, "choices": []}


def is_failed(answer: dict[str, Any]) -> bool:
    """Whether an answer line stands for a question that failed."""
    return answer.get("error") is not None
