"""Questions in CommonsenseQA's schema (Talmor et al. 2019), or in that of its set on the hub, read strictly."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from lit_hass.data.commonsense_qa_answers import labels_in
from lit_hass.errors import UserError
from lit_hass.records.json_lines import read_rows

log = logging.getLogger(__name__)

#: The labels of the five choices, each once, in this order.
LABELS = ("A", "B", "C", "D", "E")

#: The name under which questions and prompts of our own come with the package.
SHIPPED = "commonsense_qa"
_SHIPPED_FOLDER = Path(__file__).resolve().parents[1] / "pretrained" / "commonsense_qa"


@dataclass(frozen=True)
class MultipleChoiceQuestion:
    """One question with five choices, one of which is right.

    Attributes:
        id: unique in its file.
        stem: what is asked.
        choices: the texts of the choices A to E.
        answer: the label of the right one.
        concept: CommonsenseQA's ``question_concept``, None where the file has none.
        line: where it stands in its file, from 1; no part of what the question says.
    """

    id: str
    stem: str
    choices: tuple[str, ...]
    answer: str
    concept: str | None = None
    line: int | None = field(default=None, compare=False)


def commonsense_qa_file(path_or_name: str | os.PathLike[str], kind: str = "questions") -> Path:
    """A file by its path, or one of the package's own by the name ``commonsense_qa``.

    Args:
        path_or_name: a path, or `SHIPPED` (write ``./commonsense_qa`` for a file of that name).
        kind: which of the shipped files is meant: ``"questions"``, ``"shots"`` or ``"hint_shots"``.

    Raises:
        UserError: there is no such file.
    """
    if str(path_or_name) == SHIPPED:
        return _SHIPPED_FOLDER / {"questions": "rows.jsonl", "shots": "shots.txt", "hint_shots": "hint_shots.txt"}[kind]
    path = Path(path_or_name).expanduser()
    if not path.exists():
        what = kind.replace("_", "-") + " file"
        raise UserError(
            f"{path_or_name}: no such {what}; {SHIPPED} names the one that comes with the package; of a set of "
            "the hub, give one of its files"
        )
    return path


def read_commonsense_qa(
    path: str | os.PathLike[str], on_bad: Literal["raise", "skip"] = "raise"
) -> list[MultipleChoiceQuestion]:
    """Read a file of CommonsenseQA's schema.

    ``{"id", "answerKey", "question": {"question_concept", "stem", "choices": [{"label", "text"} x 5]}}``, or as the
    hub has it, ``{"id", "answerKey", "question", "question_concept", "choices": {"label": [x 5], "text": [x 5]}}``.
    Blank lines, a byte order mark and keys of other tools are passed over. Choices are put into the order of their
    labels. A choice that holds another one's label in parentheses, or a stem that ends in one, is refused: in an answer
    and in a prompt it would be taken for the label and for the hint.

    Args:
        path: the file (one JSON object a line, an array of them, or a parquet table), or ``commonsense_qa`` for the
            shipped one.
        on_bad: what to do with a line that cannot be used: stop, or leave it out and say how many were.

    Returns:
        the questions in the file's order, at least one.

    Raises:
        UserError: names file, line and cause. Duplicate ids are refused in either mode: nobody could tell their
            answers apart.
    """
    path = commonsense_qa_file(path)
    questions: list[MultipleChoiceQuestion] = []
    seen: dict[str, int] = {}
    bad: list[str] = []
    for number, row in read_rows(path, "question file"):
        try:
            if isinstance(row, ValueError):
                raise row
            question = replace(_parse(_official(row)), line=number)
        except ValueError as error:
            if on_bad == "raise":
                raise UserError(f"{path}:{number}: {error}") from error
            bad.append(f"line {number}: {error}")
            continue
        if question.id in seen:
            raise UserError(f"{path}:{number}: id {question.id!r} was already used on line {seen[question.id]}")
        seen[question.id] = number
        questions.append(question)
    if bad:
        log.warning("%s: %d lines left out, the first: %s", path, len(bad), bad[0])
    if not questions:
        raise UserError(f"{path}: holds no questions" + (f" that can be used ({bad[0]})" if bad else ""))
    return questions


def to_row(question: MultipleChoiceQuestion) -> dict[str, Any]:
    """A question as an object of the schema, for writing."""
    return {
        "id": question.id,
        "answerKey": question.answer,
        "question": {
            "question_concept": question.concept,
            "stem": question.stem,
            "choices": [{"label": a, "text": b} for a, b in zip(LABELS, question.choices, strict=True)],
        },
    }


def commonsense_qa_digest(questions: Sequence[MultipleChoiceQuestion]) -> str:
    """16 hexadecimal digits of what the questions say, for the resume key."""
    rows = json.dumps([to_row(question) for question in questions], sort_keys=True)
    return hashlib.sha256(rows.encode()).hexdigest()[:16]


def _official(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the hub's layout in that of the official files; another as it is."""
    stem, choices = row.get("question"), row.get("choices")
    if not isinstance(stem, str) or not isinstance(choices, dict):
        return row
    labels, texts = choices.get("label"), choices.get("text")
    if not isinstance(labels, list) or not isinstance(texts, list) or len(labels) != len(texts):
        raise ValueError(f"choices must have as many labels as texts, found {_show(choices)}")
    pairs = [{"label": label, "text": text} for label, text in zip(labels, texts, strict=True)]
    return row | {
        "question": {"stem": stem, "question_concept": row.get("question_concept"), "choices": pairs},
        "answerKey": row.get("answerKey") or None,
    }


def _parse(row: dict[str, Any]) -> MultipleChoiceQuestion:
    key = row.get("id")
    if isinstance(key, bool) or not isinstance(key, str | int) or not str(key).strip():
        raise ValueError(f"id must be a non-blank string, found {_show(key)}")
    _check_pairs("id", str(key))
    if "question" not in row:
        raise ValueError("question is missing")
    question = row["question"]
    if not isinstance(question, dict):
        raise ValueError(f"question must be an object with stem and choices, found {_show(question)}")
    stem = _text("question.stem", question.get("stem"))
    if labels_in(stem[-3:]):
        raise ValueError(f"question.stem ends in {stem[-3:]}, which in a prompt would tell the answer; reword it")
    concept = question.get("question_concept")
    if concept is not None and not isinstance(concept, str):
        raise ValueError(f"question.question_concept must be a string, found {_show(concept)}")
    choices = _choices(question.get("choices"))
    if row.get("answerKey") is None:
        raise ValueError("answerKey is missing (the official test split has none; take train or dev)")
    answer = row["answerKey"]
    if answer not in LABELS:
        raise ValueError(f"answerKey {_show(answer)} is not among the labels {', '.join(LABELS)}")
    return MultipleChoiceQuestion(str(key), stem, choices, answer, concept)


def _choices(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"question.choices must be a list, found {_show(value)}")
    texts: dict[str, str] = {}
    for place, choice in enumerate(value, start=1):
        if not isinstance(choice, dict) or "label" not in choice or "text" not in choice:
            raise ValueError(f"choice {place} must have label and text, found {_show(choice)}")
        label = choice["label"]
        if label not in LABELS:
            raise ValueError(f"choice {place} has the label {_show(label)}; labels are {', '.join(LABELS)}")
        if label in texts:
            raise ValueError(f"the label {label} occurs twice among the choices")
        texts[label] = _text(f"the text of choice {label}", choice["text"])
    if len(texts) != len(LABELS):
        raise ValueError(f"there must be {len(LABELS)} choices, found {len(texts)}")
    for label, text in texts.items():
        if set(labels_in(text)) - {label}:
            raise ValueError(
                f"the text of choice {label}, {_show(text)}, holds the label of another choice, which an answer that "
                "repeats it would be read as; reword it"
            )
    return tuple(texts[label] for label in LABELS)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text that is not blank, found {_show(value)}")
    _check_pairs(name, value)
    if "\n" in value.strip():
        raise ValueError(f"{name} holds a line break, which ends it in the prompt")
    return value.strip()


def _check_pairs(name: str, text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"{name} holds half of a surrogate pair (a broken \\uD8xx escape)")


def _show(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."
