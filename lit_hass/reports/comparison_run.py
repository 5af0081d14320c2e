"""A run as the comparison reads it: its answers, and what it says of itself."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.pretrained import questions_file
from lit_hass.records import (
    QuestionId,
    RunFolder,
    is_failed,
    questions_digest,
    read_key,
    read_object,
    read_questions,
)
from lit_hass.records.answer_files import read_latest_answers
from lit_hass.records.shapes import COUNT, NUMBER, TEXT, misfit
from lit_hass.records.yaml_files import read_yaml
from lit_hass.reports.statistics_shape import check_statistics

log = logging.getLogger(__name__)

#: The penalties of the original scripts' baseline, by the name that parity with their results goes by.
PRESETS = {"original": {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3}}


#: What a comparison looks at in ``run_key.json``.
_SETTINGS = {
    "model": {
        **dict.fromkeys(("temperature", "repetition_penalty", "no_repeat_ngram_size"), NUMBER),
        "dtype": TEXT,
        "tree": {"total_tokens": NUMBER, "depth": COUNT, "top_k": COUNT},
    },
    "data": {"question_count": COUNT},
    "device": TEXT,
}


@dataclass(frozen=True)
class ComparedRun:
    """What is on disk of a run.

    Attributes:
        path: its folder, or the answer file alone (as the original scripts leave it).
        answers: its answer lines.
        settings: what decides the answers (``run_key.json``); None where nobody wrote it down.
        statistics: its ``statistics.json``; None where there is none.
        finished: whether the answers were merged and no unfinished resume lies beside them.
        collapse: its ``collapse_metrics.json``; None where there is none.
        superseded: how many lines of an original file were left out for a later one to the same question.
    """

    path: Path
    answers: list[dict[str, Any]]
    settings: dict[str, Any] | None = None
    statistics: dict[str, Any] | None = None
    finished: bool = True
    collapse: dict[str, Any] | None = None
    superseded: int = 0
    answered: dict[QuestionId, dict[str, Any]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Index the answers that are there."""
        found = {answer["question_id"]: answer for answer in self.answers if not is_failed(answer)}
        object.__setattr__(self, "answered", found)

    @property
    def failed(self) -> list[QuestionId]:
        """The questions without an answer."""
        return [answer["question_id"] for answer in self.answers if is_failed(answer)]

    @property
    def model(self) -> dict[str, Any]:
        """The model's settings; empty where they are unknown."""
        return (self.settings or {}).get("model") or {}

    @property
    def environment(self) -> dict[str, Any] | None:
        """Machine and versions; None where they are unknown."""
        return (self.statistics or {}).get("environment")

    @property
    def questions_digest(self) -> str | None:
        """The hash of the questions that were asked; None where it is unknown."""
        return ((self.settings or {}).get("data") or {}).get("questions")

    @property
    def dtype(self) -> str | None:
        """The weights' dtype by its full name; None where it is unknown."""
        name = self.model.get("dtype")
        if name is None:
            return None
        if name == "auto":
            # On a GPU it is the checkpoint's own, which nobody wrote down.
            return "float32" if (self.settings or {}).get("device") == "cpu" else "auto"
        short = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
        return short.get(name, str(name).removeprefix("torch."))

    @property
    def batch_rows(self) -> int | None:
        """The most turns decoded together; None where nobody wrote it down."""
        rows = [n for answer in self.answered.values() for c in answer["choices"] for n in c.get("batch_rows", ()) if n]
        return max(rows, default=None)

    @property
    def ended_by_context(self) -> int:
        """Answers that the model's context ended, before their own limit."""
        choices = (choice for answer in self.answered.values() for choice in answer["choices"])
        return sum(reason == "context" for choice in choices for reason in choice.get("stop_reason") or ())

    @property
    def nodes_per_step(self) -> int | None:
        """Drafted nodes of a tree, the root not counted; None where unknown."""
        tree = self.model.get("tree") or {}
        size, depth, top_k = (tree.get(name) for name in ("total_tokens", "depth", "top_k"))
        if isinstance(size, int) and size >= 1 and depth is not None and top_k is not None:
            # More nodes than there are candidates cannot be had.
            return min(size - 1, top_k + depth * top_k * top_k)
        return ((self.statistics or {}).get("acceptance") or {}).get("nodes_per_step")

    @property
    def preset(self) -> str | None:
        """The name of its penalties, where they have one."""
        return next((n for n, p in PRESETS.items() if p.items() <= self.model.items()), None)

    @property
    def drafts(self) -> bool:
        """Whether anything was drafted."""
        return any(choice.get("accept_length") for answer in self.answered.values() for choice in answer["choices"])


def read_run(path: str | os.PathLike[str]) -> ComparedRun:
    """Read a run folder, or an answer file alone.

    Raises:
        UserError: there is none, it is not merged yet, or one of its files is broken; names the file.
    """
    path = Path(path)
    if path.is_file():
        lines, superseded = read_latest_answers(path)
        return ComparedRun(path, _unambiguous(path, lines), superseded=superseded)
    if not path.exists():
        raise UserError(f"{path}: no such run folder or answer file")
    folder = RunFolder(path)
    answers = _unambiguous(folder.answers, folder.read_answers())
    key, statistics = read_key(path), read_object(folder.statistics)
    if statistics is not None:
        check_statistics(folder.statistics, statistics)
    if key is not None:
        _check_settings(folder, dict(key.settings), answers)
    return ComparedRun(
        path,
        answers,
        None if key is None else dict(key.settings),
        statistics,
        folder.is_finished,
        read_object(path / "collapse_metrics.json"),
    )


def _check_settings(folder: RunFolder, settings: dict[str, Any], answers: list[dict[str, Any]]) -> None:
    """Refuse settings of the wrong kind, and answers that a run with these settings cannot give."""
    if fault := misfit(settings, _SETTINGS):
        raise UserError(f"{folder.key}: {fault}")
    tree = (settings.get("model") or {}).get("tree") or {}
    if tree.get("depth") is None:
        return
    for answer in answers:
        most = max((a for choice in answer["choices"] for a in choice.get("accept_length", ())), default=0)
        if most > tree["depth"] + 1:
            raise UserError(
                f"{folder.answers}: question {answer['question_id']!r} has a step that accepted {most} draft tokens, "
                f"and a tree of depth {tree['depth']} has at most {tree['depth'] + 1} in a row"
            )


def _unambiguous(path: Path, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for answer in answers:
        indices = [choice["index"] for choice in answer["choices"]]
        if len(set(indices)) < len(indices):
            raise UserError(f"{path}: question {answer['question_id']!r} has two choices of the same index")
    return answers


def read_categories(runs: Sequence[ComparedRun]) -> tuple[dict[QuestionId, str], str | None]:
    """Find the questions' categories: in the question file that a run's ``config.yaml`` names, else in the answers.

    The file must still hold the questions that were asked (``run_key.json`` has their hash); of it the rows that the
    run took are read, as the run read them. Where nobody says them, the log has why no file does.

    Returns:
        Question id -> category, and where they come from (None where nobody says).
    """
    causes: list[str] = []
    for run in runs:
        named = _named_questions(run)
        if named is None:
            continue
        try:
            return _from_question_file(run, **named)
        except UserError as error:
            causes.append(f"{run.path}: {error}")
    own = {
        answer["question_id"]: answer["category"]
        for run in runs
        for answer in run.answers
        if isinstance(answer.get("category"), str)
    }
    if not own and causes:
        log.warning("the questions' categories are not known: %s", "; ".join(causes))
    return own, "the answers" if own else None


def _named_questions(run: ComparedRun) -> dict[str, Any] | None:
    """The question file of a run and the part that it took, as its configuration has them; None where it has none.

    Raises:
        UserError: the configuration cannot be read, or has other things in these places.
    """
    path = RunFolder(run.path).config
    if run.questions_digest is None or not path.is_file():
        return None
    data = read_yaml(path).get("data")
    given = data.get("init_args", data) if isinstance(data, dict) else None
    if not isinstance(given, dict) or given.get("questions") is None:
        return None
    if fault := misfit(given, {"questions": TEXT, "question_begin": COUNT, "question_end": COUNT}, "data"):
        raise UserError(f"{path}: {fault}")
    return {"name": given["questions"], "begin": given.get("question_begin"), "end": given.get("question_end")}


def _from_question_file(
    run: ComparedRun, name: str, begin: int | None, end: int | None
) -> tuple[dict[QuestionId, str], str]:
    """The categories in a question file.

    Raises:
        UserError: it is not there (perhaps named relative to another folder), cannot be read, or holds other questions
            by now.
    """
    file = questions_file(name)
    questions = {question.question_id: question for question in read_questions(file, begin, end)}
    selected = [questions[answer["question_id"]] for answer in run.answers if answer["question_id"] in questions]
    if len(selected) < len(run.answers) or questions_digest(selected) != run.questions_digest:
        raise UserError(f"{file}: does not hold the questions that were asked, or no longer")
    return {q.question_id: q.category for q in selected if q.category is not None}, name
