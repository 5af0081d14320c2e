"""Reading answer lines back: strictly from a finished file, whole lines only from a shard."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.answers import AnswerRecord, ChoiceRecord
from lit_hass.records.json_lines import QuestionId, is_question_id, name_fault, parse_object, read_bytes, read_objects

_log = logging.getLogger(__name__)


def parse_answer(obj: object) -> AnswerRecord:
    """Check one answer line, ours or the original scripts', and give it its types.

    Args:
        obj: The line's object. The original's keys are required but for ``accept_length``, which its own baseline
            leaves out; ours may be absent; others are passed over.

    Returns:
        The record; ``to_dict()`` gives the known keys back.

    Raises:
        ValueError: The object is no answer line; the message is the cause.
    """
    if not isinstance(obj, dict):
        raise ValueError(f"an answer must be an object, found {type(obj).__name__}")
    question_id = obj.get("question_id")
    for key, name in (("question_id", question_id), ("category", obj.get("category"))):
        if isinstance(name, str) and (fault := name_fault(name)):
            raise ValueError(f"{key} {fault}")
    if not is_question_id(question_id):
        raise ValueError("question_id is missing or is neither an integer nor a string that is not blank")
    error = obj.get("error")
    if error is not None and not isinstance(error, str):
        raise ValueError("error must be a string")
    choices = obj.get("choices")
    if not isinstance(choices, list):
        raise ValueError("choices must be a list")
    if error is not None:
        if choices:
            raise ValueError("a failed answer must have no choices")
        return AnswerRecord(question_id, None, [], answer_id=None, tstamp=None, error=error)
    if not choices:
        raise ValueError("choices is empty though no error is given")
    for key in ("answer_id", "model_id"):
        if not isinstance(obj.get(key), str):
            raise ValueError(f"{key} must be a string")
    if not _is_time(obj.get("tstamp")):
        raise ValueError("tstamp must be a number of seconds")
    records = []
    for position, choice in enumerate(choices):
        try:
            records.append(_parse_choice(choice))
        except ValueError as cause:
            raise ValueError(f"choice {position}: {cause}") from cause
    memory = obj.get("peak_memory")
    if not _is_count_or_null(memory):
        raise ValueError("peak_memory must be an integer that is not negative, or null")
    load = obj.get("load")
    if not _is_time_or_null(load):
        raise ValueError("load must be a number that is not negative, or null")
    return AnswerRecord(
        question_id,
        obj["model_id"],
        records,
        answer_id=obj["answer_id"],
        tstamp=obj["tstamp"],
        peak_memory=memory,
        load=obj.get("load"),
    )


def _parse_choice(obj: object) -> ChoiceRecord:
    if not isinstance(obj, dict):
        raise ValueError(f"must be an object, found {type(obj).__name__}")
    if not _is_count(obj.get("index")):
        raise ValueError("index must be an integer that is not negative")
    values: dict[str, list[Any]] = {}
    for key, (required, accepts) in _PER_TURN.items():
        entries = obj.get(key)
        if entries is None and not required:
            continue
        if not isinstance(entries, list) or not all(map(accepts, entries)):
            wanted = _MEANINGS[accepts]
            raise ValueError(f"{key} is missing or has an entry of the wrong type or size: each must be {wanted}")
        values[key] = entries
    count = len(values["turns"])
    if count == 0:
        raise ValueError("turns is empty")
    for key, entries in values.items():
        # An empty list of ours says "not recorded", as in a line made back from an original one.
        if len(entries) != count and (_PER_TURN[key][0] or entries):
            raise ValueError(f"{key} has {len(entries)} entries for {count} turns")
    flat = obj.get("accept_length", [])
    if not _are_counts(flat):
        raise ValueError(f"accept_length must be {_MEANINGS[_are_counts]}")
    if values.get("accept_lengths") and [a for turn in values["accept_lengths"] for a in turn] != flat:
        raise ValueError("accept_length is not accept_lengths laid flat")
    if values.get("output_ids") and [len(ids) for ids in values["output_ids"]] != values["new_tokens"]:
        raise ValueError("new_tokens is not the number of output_ids")
    _check_accepted(values, flat)
    return ChoiceRecord(index=obj["index"], accept_length=flat, **values)


def _check_accepted(values: dict[str, list[Any]], flat: list[int]) -> None:
    """Refuse more accepted tokens than an answer has.

    Each step commits what it accepts and one token more. Only the last step of a turn may be cut, which the original
    scripts do not do; their files say nothing of turns, so there everything must fit.
    """
    turns = values.get("accept_lengths")
    if turns:
        committed = [sum(turn[:-1]) + len(turn) - 1 if turn else 0 for turn in turns]
        found = list(zip(committed, values["new_tokens"], strict=True))
    else:
        found = [(sum(flat), sum(values["new_tokens"]))]
    for accepted, tokens in found:
        if accepted > tokens:
            raise ValueError(f"{accepted} tokens accepted of {tokens} new ones")


# Not beyond 64 bits: JSON has integers of any length, and arrays have not.
_LIMIT = 2**63


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -_LIMIT <= value < _LIMIT


def _is_int_or_null(value: object) -> bool:
    return value is None or _is_int(value)


def _is_count(value: object) -> bool:
    return _is_int(value) and value >= 0  # type: ignore[operator]


def _is_count_or_null(value: object) -> bool:
    return value is None or _is_count(value)


def _is_last_step(value: object) -> bool:
    return _is_int(value) and value >= -1  # type: ignore[operator]


def _is_rows(value: object) -> bool:
    return value is None or (_is_count(value) and value != 0)


def _are_counts(value: object) -> bool:
    # Token lists are long: type() in a set is several times faster here than a call per entry.
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        return False
    return not value or 0 <= min(value) <= max(value) < _LIMIT


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _is_number_or_null(value: object) -> bool:
    return value is None or _is_number(value)


def _is_time(value: object) -> bool:
    return _is_number(value) and value >= 0  # type: ignore[operator]


def _is_time_or_null(value: object) -> bool:
    return value is None or _is_time(value)


def _are_times(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_time, value))


def _is_str(value: object) -> bool:
    return isinstance(value, str)


def _is_str_or_null(value: object) -> bool:
    return value is None or _is_str(value)


def _is_bool_or_null(value: object) -> bool:
    return value is None or isinstance(value, bool)


#: What an entry must be, in words.
_MEANINGS: dict[Callable[[object], bool], str] = {
    _is_str: "a string",
    _is_str_or_null: "a string or null",
    _is_bool_or_null: "true, false or null",
    _is_int_or_null: "an integer of 64 bits or null",
    _is_count: "an integer that is not negative",
    _is_count_or_null: "an integer that is not negative, or null",
    _is_last_step: "an integer from -1 on",
    _is_rows: "a positive integer or null",
    _are_counts: "a list of integers that are not negative",
    _is_number_or_null: "a finite number or null",
    _is_time_or_null: "a finite number of seconds that is not negative, or null",
    _are_times: "a list of finite numbers of seconds that are not negative",
}

# Per-turn keys of a choice: whether the original has them, and what an entry may be.
_PER_TURN: dict[str, tuple[bool, Callable[[object], bool]]] = {
    "turns": (True, _is_str),
    "idxs": (True, _is_last_step),
    "new_tokens": (True, _is_count),
    "wall_time": (True, _is_time_or_null),
    "accept_lengths": (False, _are_counts),
    "output_ids": (False, _are_counts),
    "prefill_time": (False, _is_time_or_null),
    "decode_time": (False, _is_time_or_null),
    "steps": (False, _is_count),
    "stop_reason": (False, _is_str_or_null),
    "seed": (False, _is_int_or_null),
    "prompt_tokens": (False, _is_count_or_null),
    "batch_rows": (False, _is_rows),
    "time_share": (False, _is_time_or_null),
    "exact_match": (False, _is_bool_or_null),
    "wall_times": (False, _are_times),
    "divergence_gap": (False, _is_number_or_null),
    "prompt_digest": (False, _is_str_or_null),
    "text_tokens": (False, _is_count_or_null),
    "processor_time": (False, _is_time_or_null),
    "processor_prefill_time": (False, _is_time_or_null),
    "processor_times": (False, _are_times),
}


def read_answers(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a finished answer file, where every line must be right; see `read_latest_answers`, which also counts.

    Args:
        path: Our ``answers.jsonl`` or a file of the original scripts.

    Returns:
        The lines' objects, in the file's order, with all their keys.

    Raises:
        UserError: See there.
    """
    answers, superseded = read_latest_answers(path)
    if superseded:
        _log.warning("%s: %s", path, superseded_note(superseded))
    return answers


def read_latest_answers(path: str | os.PathLike[str]) -> tuple[list[dict[str, Any]], int]:
    """Read a finished answer file; of several answers of the original scripts to one question the last one counts.

    The original scripts append to a file that is there, and their own ``reorg_answer_file`` keeps the last line of each
    question. A file of ours has each question once; another line says that it was damaged.

    Returns:
        The lines' objects, in the order in which their questions come first, and how many lines were superseded.

    Raises:
        UserError: The file cannot be read, holds nothing, or a line is broken, no answer, or repeats a question of a
            file of ours; names file and line.
    """
    found: dict[QuestionId, tuple[int, dict[str, Any], bool]] = {}
    superseded = 0
    for number, obj in read_objects(path, "answer file"):
        try:
            answer = parse_answer(obj)
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
        original = not answer.failed and not any(choice.output_ids for choice in answer.choices)
        if answer.question_id in found:
            first, _, was_original = found[answer.question_id]
            if not (original and was_original):
                raise UserError(
                    f"{path}:{number}: question {answer.question_id!r} was already answered on line {first}"
                )
            superseded += 1
        found[answer.question_id] = number, obj, original
    if not found:
        raise UserError(f"{path}: holds no answers")
    return [obj for _, obj, _ in found.values()], superseded


def superseded_note(count: int) -> str:
    """What a reader should know of answers that a later one superseded."""
    are = "answers are" if count > 1 else "answer is"
    return f"{count} {are} superseded by a later one of the original scripts to the same question"


def iter_intact(
    path: str | os.PathLike[str], parse: Callable[[Any], object] = parse_answer
) -> Iterator[dict[str, Any]]:
    r"""Read a shard that a killed process may have left torn, whole answers only.

    A line counts once its ``\n`` is there: what follows the last one is being written, or was when the process died,
    and its own writer drops it on the next start, even if it happens to be whole.

    Args:
        path: A shard; a file that is gone counts as empty.
        parse: Raises ValueError for an object that is no line of such a shard.

    Yields:
        The objects of the lines that are whole answers. A broken line amid whole ones is logged as a warning.

    Raises:
        UserError: The file cannot be read.
    """
    try:
        content = read_bytes(path, "shard")
    except UserError:
        # A merge may remove shards between their listing and this.
        if not Path(path).exists():
            return
        raise
    lines = content.split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            obj = parse_object(line)
            parse(obj)
        except ValueError as error:
            # The question is simply not done then: it is asked again.
            _log.warning("%s:%d: passed over: %s", path, number, error)
        else:
            yield obj
