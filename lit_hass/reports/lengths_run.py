"""The lengths of answers from a finished predict run: all that was generated, right or wrong, and what was cut."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records import RunFolder, is_failed, read_key
from lit_hass.records.predictions import PredictionFolder
from lit_hass.reports.answer_turns import turns_of_choice
from lit_hass.reports.lengths_samples import Sample, Samples, turn_id


@dataclass(frozen=True)
class _Answer:
    id: str
    question: str  # the id of its first turn
    text: str
    prompt_tokens: int | None
    tokens: int
    cut: bool


def add_run(samples: Samples, folder: str) -> Samples:
    """Keep the questions that a run asked, and take the answers from it.

    Prompts of first turns are measured on the question file; they must be the run's own, else the figures would be of
    something that nobody runs. Prompts of later turns hold the model's answers, and come from the run.

    Args:
        samples: the questions, measured.
        folder: a run folder of ``predict`` (with ``answers.jsonl`` or ``predictions.jsonl``).

    Raises:
        UserError: no finished run, one of other questions or other prompts, or one that does not say what was cut.
    """
    if samples.kind not in ("questions", "commonsense_qa"):
        raise UserError(f"--run needs the question file that was asked; {samples.file} holds {samples.kind}")
    path = Path(folder)
    answers, failed = _read(path)
    asked = {row.id: row for row in samples.rows}
    in_file = {row.question for row in samples.rows}
    # A later turn is measured where its question is, whether or not the file knew its prompt.
    known = [answer for answer in answers if answer.id in asked or answer.question in asked]
    if not any(answer.id in asked for answer in known):
        raise UserError(f"{folder}: none of its {len(answers)} answers is to a question of {samples.file}")
    for answer in known:
        row = asked.get(answer.id)
        later = answer.id != answer.question
        same = row is None or later or answer.prompt_tokens in (None, row.prompt_tokens)
        if row is not None and not same:
            raise UserError(
                f"{folder}: question {answer.id} had a prompt of {answer.prompt_tokens} tokens in the run and has "
                f"{row.prompt_tokens} here; give the run's own --tokenizer, --template, --system-prompt and --n-shot "
                "(prompts of a run that dropped examples to keep to max_length, data.on_long, cannot be measured here)"
            )
    rows = []
    for answer in known:
        row = asked.get(answer.id)
        prompt_tokens = answer.prompt_tokens if answer.prompt_tokens is not None else getattr(row, "prompt_tokens", 0)
        prompt = "" if row is None else row.prompt
        rows.append(
            Sample(answer.id, prompt, prompt_tokens, answer.text, answer.tokens, answer.cut, first=answer.question)
        )
    done = {row.id for row in rows}
    own = {answer.question for answer in known} | set(failed)
    unanswered = [
        Sample(r.id, r.prompt, r.prompt_tokens, first=r.first)
        for r in samples.rows
        if r.question in own and r.id not in done
    ]
    samples.rows = rows + unanswered
    samples.answers_from = str(path)
    samples.limit = _limit(path)
    samples.notes = [note for note in samples.notes if "no --run gives" not in note]
    if unanswered:
        samples.notes.append(f"{len(unanswered)} of {len(unanswered) + len(done)} prompts have no answer in the run")
    if failed:
        samples.notes.append(f"{len(failed)} questions failed in the run and have no length")
    if len(own & in_file) < len(in_file):
        samples.notes.append(f"{len(own & in_file)} of {len(in_file)} questions of the file: those of the run")
    if ignored := len(answers) - len(known):
        samples.notes.append(f"{ignored} answers of the run are to questions that are not measured here")
    return samples


def _read(path: Path) -> tuple[list[_Answer], list[str]]:
    """The answers, and the questions that failed."""
    if (path / "predictions.jsonl").exists():
        return _predictions(path), []
    parts = [part.name for part in sorted(path.glob("*/answers.jsonl")) if part.is_file()]
    inside = sorted(part.parent.name for part in path.glob("*/answers.jsonl"))
    if parts and not (path / "answers.jsonl").exists():
        raise UserError(f"{path}: holds the runs {', '.join(inside)}; name one of them, such as {path / inside[0]}")
    lines = RunFolder(path).read_answers()
    failed = [turn_id(line["question_id"], 0) for line in lines if is_failed(line)]
    found = [answer for line in lines if not is_failed(line) for answer in _turns(line)]
    unknown = sum(answer is None for answer in found)
    if unknown:
        raise UserError(f"{path}: {unknown} answers do not say whether a limit ended them, so no length can be trusted")
    return [answer for answer in found if answer is not None], failed


def _turns(line: dict[str, Any]) -> Iterable[_Answer | None]:
    for choice in line["choices"]:
        for i, turn in enumerate(turns_of_choice(choice)):
            if turn.stop_reason is None:
                yield None
            else:
                name = turn_id(line["question_id"], i)
                first = turn_id(line["question_id"], 0)
                yield _Answer(name, first, turn.text, turn.prompt_tokens, turn.new_tokens, turn.stop_reason != "stop")


def _predictions(path: Path) -> list[_Answer]:
    found = PredictionFolder(path).read()
    if any(one.hinted for one in found):
        raise UserError(f"{path}: its prompts tell the right answer (hints); take the run without")
    return [_Answer(one.id, one.id, one.completion, one.prompt_tokens, one.gen_tokens, one.cut) for one in found]


def _limit(path: Path) -> int | None:
    key = read_key(path)
    value = key.settings.get("model", {}).get("max_new_tokens") if key is not None else None
    return value if isinstance(value, int) else None
