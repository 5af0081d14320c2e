"""The question file: MT-bench's format, one JSON object a line; conversations of other formats are read, too."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.conversations import NotAConversation, as_question
from lit_hass.records.json_lines import QuestionId, is_question_id, name_fault, read_rows

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One question of one or several turns.

    Attributes:
        question_id: Unique in its file; ``1`` and ``"1"`` are different.
        category: Free text, None where the file has none.
        turns: What the user says, turn by turn; at least one, none blank.
        reference: Reference answers turn by turn, possibly none.
        accepted: Every answer that counts as the reference, turn by turn; empty where each turn has one.
        line: Where it stands in its file, from 1; no part of what the question says.
    """

    question_id: QuestionId
    category: str | None
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()
    accepted: tuple[tuple[str, ...], ...] = ()
    line: int | None = field(default=None, compare=False)

    def accepts(self, turn: int) -> tuple[str, ...]:
        """The answers that count as the reference of a turn (from 0); none where it has no reference."""
        if self.accepted:
            return self.accepted[turn] if turn < len(self.accepted) else ()
        return self.reference[turn : turn + 1]


def read_questions(
    path: str | os.PathLike[str], begin: int | None = None, end: int | None = None, answered: bool = False
) -> list[Question]:
    """Read a question file (MT-bench, Spec-Bench or our own), or conversations of another format.

    Blank lines, a byte order mark, Windows line ends and keys of other tools are passed over; anything else that is not
    as it should be is refused, since a question that is silently left out changes every number of a comparison. A row
    outside of the range is only counted, and warned of.

    Args:
        path: One JSON object a line, an array of them, or a parquet table: ``question_id`` (integer or string),
            ``turns`` (list of non-blank strings) and, optional, ``category`` (string or number, or a list of them) and
            ``reference`` (list of strings or numbers, turn by turn; a list in it holds the answers that are accepted);
            null counts as absent for these two. Rows of ShareGPT's, the hub's (``messages``) and Alpaca's format
            become questions by `lit_hass.records.conversations`, numbered from 1.
        begin: As for `question_range`, which says more.
        end: Likewise.
        answered: Of the other formats take only what has an answer, as training needs it.

    Returns:
        The questions in the file's order, at least one.

    Raises:
        UserError: The file, the range or one of its lines cannot be used; names file, line and cause.
    """
    rows = list(read_rows(path, "question file"))
    if not rows:
        raise UserError(f"{path}: holds no questions")
    first, stop = question_range(len(rows), begin, end)
    if stop - first < len(rows):
        _log.info("taking %d of the %d questions of %s", stop - first, len(rows), path)
    questions: list[Question] = []
    left_out: list[str] = []
    broken: list[str] = []
    seen: dict[QuestionId, int] = {}
    for position, (number, row) in enumerate(rows):
        inside = first <= position < stop
        try:
            if isinstance(row, ValueError):
                raise row
            question = replace(_parse_question(as_question(row, position + 1, answered)), line=number)
        except NotAConversation as cause:
            left_out += [f"line {number}: {cause}"] if inside else []
            continue
        except ValueError as error:
            if inside:
                raise UserError(f"{path}:{number}: {error}") from error
            broken.append(f"line {number}: {error}")
            continue
        if not inside:
            continue
        if question.question_id in seen:
            line = seen[question.question_id]
            raise UserError(f"{path}:{number}: question_id {question.question_id!r} was already used on line {line}")
        seen[question.question_id] = number
        questions.append(question)
    for causes, what in ((left_out, "hold no conversation"), (broken, "outside of the selection cannot be used")):
        if causes:
            _log.warning("%s: %d rows %s, the first: %s", path, len(causes), what, causes[0])
    if not questions:
        raise UserError(f"{path}: holds no questions" + (f" ({left_out[0]})" if left_out else ""))
    return questions


def _parse_question(obj: dict[str, Any]) -> Question:
    if "question_id" not in obj:
        raise ValueError(
            'question_id is missing; a row is {"question_id": 1, "turns": ["..."]}, or has conversations (ShareGPT), '
            "messages (the hub) or instruction (Alpaca)"
        )
    question_id, category = obj["question_id"], _category(obj.get("category"))
    for key, text in (("question_id", question_id), ("category", category)):
        if isinstance(text, str) and (fault := name_fault(text)):
            raise ValueError(f"{key} {fault}")
    if not is_question_id(question_id):
        raise ValueError(f"question_id must be an integer or a non-blank string, found {_show(question_id)}")
    if "turns" not in obj:
        raise ValueError("turns is missing")
    turns = _strings("turns", obj["turns"])
    if not turns:
        raise ValueError("turns is empty")
    for i, turn in enumerate(turns, start=1):
        if not turn.strip():
            raise ValueError(f"turn {i} of turns is blank")
    accepted = _accepted(obj.get("reference"), len(turns))
    several = any(len(answers) > 1 for answers in accepted)
    return Question(
        question_id, category, turns, tuple(answers[0] for answers in accepted), accepted if several else ()
    )


def _category(value: object) -> str | None:
    """A category's name; that of several is all of them, with a comma between."""
    if value is None or isinstance(value, str):
        return value
    parts = value if isinstance(value, list) and value else [value]
    names = [part if isinstance(part, str) else _number(part) for part in parts]
    if any(name is None for name in names):
        raise ValueError(f"category must be a string, found {_show(value)}")
    return ", ".join(str(name) for name in names)


def _accepted(value: object, turns: int) -> tuple[tuple[str, ...], ...]:
    """The accepted answers of each turn that has a reference."""
    if value is None or value == []:
        return ()
    if (isinstance(value, str) or _number(value) is not None) and turns == 1:
        value = [value]
    if not isinstance(value, list):
        raise ValueError(f"reference must be a list of strings, found {_show(value)}")
    if all(item == [] for item in value):
        return ()
    found = []
    for i, item in enumerate(value, start=1):
        several = item if isinstance(item, list) else [item]
        texts = [text if isinstance(text, str) else _number(text) for text in several]
        if not texts or None in texts:
            raise ValueError(f"reference must be a list of strings, its item {i} is {_show(item)}")
        found.append(_strings("reference", texts))
    return tuple(found)


def _number(value: object) -> str | None:
    """A number as JSON writes it; None for anything else."""
    return json.dumps(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


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


def question_range(count: int, begin: int | None, end: int | None) -> tuple[int, int]:
    """Check a half-open range of positions, as ``question_begin`` and ``question_end`` of the original scripts.

    Args:
        count: How many there are.
        begin: First position, from 0; None starts at the first.
        end: Position after the last; None takes all. Beyond the count it is cut, with a warning.

    Returns:
        The first position and that behind the last, at least one apart.

    Raises:
        UserError: The range is negative, reversed, empty or begins beyond the last question.
    """
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
    return start, stop


def draw(keys: Sequence[str], limit: int | None, seed: int) -> list[int]:
    """Draw at random by a hash of the key: the draws of one seed lie in each other, whatever else a file holds.

    Args:
        keys: What tells the rows apart.
        limit: How many to draw; None, or as many as there are, takes all.
        seed: Of the draw.

    Returns:
        Positions, ascending.
    """
    if limit is None or limit >= len(keys):
        return list(range(len(keys)))
    return sorted(sorted(range(len(keys)), key=lambda i: key_hash(f"limit {seed}", keys[i]))[:limit])


def key_hash(purpose: str, key: str) -> int:
    """A number below 2^64 by which rows are shared out or drawn, another for each purpose."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{key}".encode()).digest()[:8], "big")


def prompts_digest(prompts: Iterable[Iterable[int]]) -> str:
    """Hash the token ids of prompts, in order: what a template and a tokenizer make of questions, on that day.

    Returns:
        16 hexadecimal digits (of SHA-256).
    """
    digest = hashlib.sha256()
    for ids in prompts:
        digest.update(" ".join(map(str, ids)).encode("ascii") + b"\n")
    return digest.hexdigest()[:16]


def questions_digest(questions: Sequence[Question]) -> str:
    """Hash what the questions say, in order, for the resume key; formatting and foreign keys do not count.

    Returns:
        64 hexadecimal digits (SHA-256).
    """
    rows = [[q.question_id, q.category, list(q.turns), list(q.accepted or q.reference)] for q in questions]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode("ascii")).hexdigest()
