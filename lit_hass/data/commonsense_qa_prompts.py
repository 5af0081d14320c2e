r"""From a multiple-choice question to the text that a model continues. Standard library only.

A prompt is any number of solved examples ("shots") and the question, each a block of lines, a blank line between::

    Q: <stem>
    Options:
    (A) <text>
    ...
    (E) <text>
    A:

It ends in ``A:`` without a space behind it: the answer begins with one, as in the shots. A hint names the right answer
behind the stem, as STaR's rationalisation does (Zelikman et al. 2022): ``Q: <stem> (E)``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from lit_hass.data.commonsense_qa_answers import strict_answer
from lit_hass.data.commonsense_qa_questions import LABELS, MultipleChoiceQuestion, commonsense_qa_file
from lit_hass.errors import UserError
from lit_hass.records.json_lines import parse_json, read_bytes

_STEM = re.compile(r"Q: (?P<stem>[^\n]*?)(?P<hint> \([A-E]\))?\n")


def build_prompt(question: MultipleChoiceQuestion, shots: Sequence[str] = (), hint: str | None = None) -> str:
    """The text that a model continues with a rationale and an answer.

    Args:
        question: what is asked.
        shots: solved examples that come before it, see `read_shots`.
        hint: the label of the right answer, to be shown behind the stem; None shows nothing.
    """
    if hint is not None and hint not in LABELS:
        raise ValueError(f"a hint is one of {LABELS}, not {hint!r}")
    told = "" if hint is None else f" ({hint})"
    options = "\n".join(f"({label}) {text}" for label, text in zip(LABELS, question.choices, strict=True))
    return "\n\n".join((*shots, f"Q: {question.stem}{told}\nOptions:\n{options}\nA:"))


def read_shots(path: str | os.PathLike[str], hinted: bool = False) -> tuple[str, ...]:
    r"""Read solved examples from a file.

    Args:
        path: a plain text file whose examples each begin with a line ``Q: ...`` and end with their answer, blank lines
            between; or the original's JSON, ``{"n_shot_prompts": [{"prompt": "Q: ..."}, ...]}``; or ``commonsense_qa``
            for the shipped ones.
        hinted: whether the examples have a hint behind the stem; all do, or none does.

    Returns:
        the examples, at least one, without white space around them.

    Raises:
        UserError: the file cannot be read, holds no example, or one of them has no stem, no answer in the form
            ``answer is ... (E)``, a hint that is not its answer, or no hint where there should be one (and the
            other way round); names the file and the example.
    """
    path = commonsense_qa_file(path, "hint_shots" if hinted else "shots")
    try:
        text = read_bytes(path, "shots file").decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    shots = _from_json(text, str(path)) if text.lstrip().startswith("{") else _from_text(text)
    if not shots:
        raise UserError(f"{path}: holds no example; one begins with a line 'Q: ...'")
    for number, shot in enumerate(shots, start=1):
        found = _STEM.match(shot)
        if found is None:
            raise UserError(f"{path}: example {number} does not begin with 'Q: ...'")
        answer = strict_answer(shot.rpartition("\nA:")[2]) if "\nA:" in shot else None
        if answer is None:
            raise UserError(f"{path}: example {number} has no 'A: ... answer is ... (E)'")
        hint = found["hint"]
        if bool(hint) != hinted:
            cause = "has no hint behind its question" if hinted else "has a hint behind its question"
            raise UserError(f"{path}: example {number} {cause}")
        if hint and hint.strip(" ()") != answer:
            raise UserError(f"{path}: example {number} has the hint{hint} and the answer ({answer})")
    return tuple(shots)


def shot_stems(shots: Sequence[str]) -> set[str]:
    """What the shots ask: questions with these stems are no test of a model that was shown their answers."""
    return {found["stem"].strip() for shot in shots if (found := _STEM.match(shot))}


def _from_text(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"^(?=Q:)", text, flags=re.MULTILINE) if part.strip()]


def _from_json(text: str, path: str) -> list[str]:
    try:
        shots = [entry["prompt"].strip() for entry in parse_json(text.encode("utf-8"))["n_shot_prompts"]]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        cause = 'expected {"n_shot_prompts": [{"prompt": "Q: ..."}, ...]}'
        raise UserError(f"{path}: not a shots file: {cause}") from error
    return shots
