"""The question file: MT-bench's format, one JSON object a line."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.json_lines import QuestionId, is_question_id, name_fault, read_objects

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One question of one or several turns.

    Attributes:
        question_id: Unique in its file; ``1`` and ``"1"`` are different.
        category: Free text, None where the file has none.
        turns: What the user says, turn by turn; at least one, none blank.
        reference: Reference answers, possibly none.
        line: Where it stands in its file, from 1; no part of what the question says.
    """

    question_id: QuestionId
    category: str | None
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()
    line: int | None = field(default=None, compare=False)


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Read a question file (MT-bench, Spec-Bench or our own).

    Blank lines, a byte order mark, Windows line ends and keys of other tools are passed over; anything else that is not
    as it should be is refused, since a question that is silently left out changes every number of a comparison.

    Args:
        path: One JSON object a line: ``question_id`` (integer or string), ``turns`` (list of non-blank strings) and,
            optional, ``category`` (string) and ``reference`` (list of strings); null counts as absent for these two.

    Returns:
        The questions in the file's order, at least one.

    Raises:
        UserError: The file or one of its lines cannot be used; names file, line and cause.
    """
    questions: list[Question] = []
    seen: dict[QuestionId, int] = {}
    for number, obj in read_objects(path, "question file"):
        try:
            question = replace(_parse_question(obj), line=number)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        if question.question_id in seen:
            first = seen[question.question_id]
            raise UserError(f"{path}:{number}: question_id {question.question_id!r} was already used on line {first}")
        seen[question.question_id] = number
        questions.append(question)
    if not questions:
        raise UserError(f"{path}: holds no questions")
    return questions


def _parse_question(obj: dict[str, Any]) -> Question:
    if "question_id" not in obj:
        raise ValueError("question_id is missing")
    question_id, category = obj["question_id"], obj.get("category")
    for key, text in (("question_id", question_id), ("category", category)):
        if isinstance(text, str) and (fault := name_fault(text)):
            raise ValueError(f"{key} {fault}")
    if not is_question_id(question_id):
        raise ValueError(f"question_id must be an integer or a non-blank string, found {_show(question_id)}")
    if category is not None and not isinstance(category, str):
        raise ValueError(f"category must be a string, found {_show(category)}")
    if "turns" not in obj:
        raise ValueError("turns is missing")
    turns = _strings("turns", obj["turns"])
    if not turns:
        raise ValueError("turns is empty")
    for i, turn in enumerate(turns, start=1):
        if not turn.strip():
            raise ValueError(f"turn {i} of turns is blank")
    reference = obj.get("reference")
    return Question(question_id, category, turns, () if reference is None else _strings("reference", reference))


def _strings(key: str, value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"{key} must be a list of strings, found {_show(value)}")
    for i, item in enumerate(value, start=1):
        if not isinstance(item, str):
            raise ValueError(f"{key} must be a list of strings, its item {i} is {_show(item)}")
        if _has_half_pair(item):
            raise ValueError(f"item {i} of {key} holds half of a surrogate pair (a broken \\uD8xx escape)")
    return tuple(value)


def _has_half_pair(text: str) -> bool:
    """JSON can spell half a surrogate pair; it is no text, and tokenizers fail on it deep inside a run."""
    return any("\ud800" <= character <= "\udfff" for character in text)


def _show(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def select_questions(questions: Sequence[Question], begin: int | None = None, end: int | None = None) -> list[Question]:
    """Take a half-open range of positions, as ``question_begin`` and ``question_end`` of the original scripts.

    Args:
        questions: All questions of a file.
        begin: First position, from 0; None starts at the first.
        end: Position after the last; None takes all. Beyond the number of questions it is cut, with a warning.

    Returns:
        At least one question.

    Raises:
        UserError: The range is negative, reversed, empty or begins beyond the last question.
    """
    count = len(questions)
    start = 0 if begin is None else begin
    stop = count if end is None else end
    for name, value in (("question_begin", start), ("question_end", stop)):
        if value < 0:
            raise UserError(f"{name} must not be negative, found {value}")
    if start >= count:
        raise UserError(f"question_begin {start} is beyond the last question ({count} questions, counted from 0)")
    if stop <= start:
        raise UserError(f"question_end {stop} must be greater than question_begin {start}")
    if stop > count:
        _log.warning("question_end %d is beyond the last question; all %d from %d on are taken", stop, count, start)
        stop = count
    return list(questions[start:stop])


def questions_digest(questions: Sequence[Question]) -> str:
    """Hash what the questions say, in order, for the resume key; formatting and foreign keys do not count.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    rows = [[q.question_id, q.category, list(q.turns), list(q.reference)] for q in questions]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode("ascii")).hexdigest()
