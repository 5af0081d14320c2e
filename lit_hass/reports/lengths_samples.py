"""The texts whose lengths are measured: questions of any schema, completions, or plain text."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lit_hass.data.commonsense_qa_prompts import build_prompt, read_shots, shot_stems
from lit_hass.data.commonsense_qa_questions import SHIPPED, commonsense_qa_file, read_commonsense_qa
from lit_hass.data.prompting import Prompting, Template
from lit_hass.errors import UserError
from lit_hass.metrics.functional.token_lengths import LengthHistogram
from lit_hass.pretrained import questions_file
from lit_hass.records import QuestionId, read_objects, read_questions
from lit_hass.records.json_lines import kind_of_file, read_bytes, read_rows, split_lines
from lit_hass.records.questions import draw

#: Ends a block in the original scripts' text format.
END_OF_TEXT = "<|end_of_text|>"

_ANSWER_CUE = re.compile(r"^A:", re.MULTILINE)


@dataclass(frozen=True)
class Sample:
    """One text, measured.

    Attributes:
        id: of the question (with turn and choice where there are several), or the number of the line or block.
        prompt: what the model reads.
        prompt_tokens: how long that is, special tokens included.
        answer: what follows; None where it is not known.
        answer_tokens: how long that is, with the token that ends it.
        cut: whether a limit ended it.
        first: the id of its question's first turn; None where that is its own.
    """

    id: str
    prompt: str
    prompt_tokens: int
    answer: str | None = None
    answer_tokens: int | None = None
    cut: bool = False
    first: str | None = None

    @property
    def question(self) -> str:
        """The id of its question, whichever turn it is."""
        return self.id if self.first is None else self.first

    @property
    def total(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + (self.answer_tokens or 0)


@dataclass
class Samples:
    """What was measured, and where it comes from.

    Attributes:
        kind: ``"questions"``, ``"commonsense_qa"``, ``"completions"`` or ``"text"``.
        file: the file.
        rows: one per prompt.
        answers_from: where the answers come from; None without any.
        limit: greatest number of new tokens of the run they come from, None where there is none.
        shot_tokens: how many tokens of each prompt are solved examples.
        notes: what a reader of the figures should know.
    """

    kind: str
    file: Path
    rows: list[Sample]
    answers_from: str | None = None
    limit: int | None = None
    shot_tokens: int = 0
    notes: list[str] = field(default_factory=list)

    def draw(self, limit: int, seed: int) -> None:
        """Keep so many questions (or rows of what is no question), those that a run with the same limit would ask."""
        questions = list(dict.fromkeys(row.question for row in self.rows))
        if limit < len(questions):
            chosen = {questions[i] for i in draw(questions, limit, seed)}
            self.rows = [row for row in self.rows if row.question in chosen]
            what = "questions" if self.kind in ("questions", "commonsense_qa") else "rows"
            self.notes.append(f"{limit} of {len(questions)} {what}, drawn with seed {seed}")

    def prompts(self) -> LengthHistogram:
        """Lengths of the prompts."""
        return _histogram([row.prompt_tokens for row in self.rows])

    def answers(self) -> LengthHistogram:
        """Lengths of the answers that are known."""
        known = [row for row in self.rows if row.answer_tokens is not None]
        return _histogram([row.answer_tokens or 0 for row in known], [row.cut for row in known])

    def totals(self) -> LengthHistogram:
        """Lengths of prompt and answer together where both are known; of the texts where there are no answers."""
        known = [row for row in self.rows if row.answer_tokens is not None] or self.rows
        return _histogram([row.total for row in known], [row.cut for row in known])

    def longest(self) -> Sample:
        """The one with the greatest total, the first of them."""
        return max(self.rows, key=lambda row: row.total)


def _histogram(lengths: list[int], cut: list[bool] | None = None) -> LengthHistogram:
    # The cap is the longest: nothing lies beyond it.
    return LengthHistogram.of(lengths, cut, cap=max(lengths, default=1) or 1)


@dataclass(frozen=True)
class PromptSettings:
    """How questions become prompts; the DataModules' own settings.

    Attributes:
        template: of questions in MT-bench's format; None is ``"chat"`` where the tokenizer has a chat template.
        system_prompt: likewise.
        n_shot: file with solved examples that come before each question.
    """

    template: Template | None = None
    system_prompt: str | None = None
    n_shot: str | None = None


def read_samples(questions: str, tokenizer: Any, settings: PromptSettings) -> Samples:
    """Read a file and measure it.

    Args:
        questions: MT-bench's format, CommonsenseQA's, objects with ``prompt`` and ``completion``, or plain text: blocks
            that end in ``<|end_of_text|>``, or one text a line. Shipped names are understood.
        tokenizer: a ``transformers`` tokenizer.
        settings: of the prompts.

    Raises:
        UserError: the file cannot be used; names file and line.
    """
    kind, path = _kind_of(questions)
    if settings.n_shot is not None and kind not in ("questions", "commonsense_qa"):
        raise UserError(f"--n-shot puts examples before questions; {path} holds {kind}")
    match kind:
        case "commonsense_qa":
            found = _commonsense_qa(path, tokenizer, settings.n_shot)
        case "questions":
            found = _questions(path, tokenizer, settings)
        case "completions":
            found = _completions(path, tokenizer)
        case _:
            found = _text(path, tokenizer)
    if not found.rows:
        raise UserError(f"{path}: holds nothing to measure")
    return found


def _kind_of(name: str) -> tuple[str, Path]:
    if name == SHIPPED:
        return "commonsense_qa", commonsense_qa_file(name)
    path = questions_file(name)
    if kind_of_file(path) in (".csv", ".tsv"):
        raise UserError(f"{path}: a table with separators, which would be measured as prose; convert it to .jsonl")
    if kind_of_file(path) not in (".jsonl", ".json", ".parquet"):
        first = next((line for _, line in split_lines(read_bytes(path, "question file"))), b"")
        if not first.lstrip().startswith(b"{"):
            return "text", path
    row = next((row for _, row in read_rows(path, "question file")), {})
    # Of a row that is none the reader says what is wrong with it.
    keys = set() if isinstance(row, ValueError) else set(row)
    if "answerKey" in keys or "question" in keys:
        return "commonsense_qa", path
    return ("completions" if {"prompt", "completion"} <= keys else "questions"), path


def count_tokens(tokenizer: Any, texts: Sequence[str], special: bool = True) -> list[int]:
    """How many tokens each text has."""
    if not texts:
        return []
    return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=special)["input_ids"]]


def _commonsense_qa(path: Path, tokenizer: Any, n_shot: str | None) -> Samples:
    questions = read_commonsense_qa(path)
    shots = read_shots(n_shot) if n_shot is not None else ()
    known = shot_stems(shots)
    asked = [question for question in questions if question.stem not in known]
    prompts = [build_prompt(question, shots) for question in asked]
    tokens = count_tokens(tokenizer, prompts)
    rows = [Sample(q.id, text, n) for q, text, n in zip(asked, prompts, tokens, strict=True)]
    found = Samples("commonsense_qa", path, rows)
    if shots and asked:
        found.shot_tokens = tokens[0] - count_tokens(tokenizer, [build_prompt(asked[0])])[0]
    if len(asked) < len(questions):
        found.notes.append(f"{len(questions) - len(asked)} questions left out, the examples answer them")
    return found


def _questions(path: Path, tokenizer: Any, settings: PromptSettings) -> Samples:
    template = settings.template or ("chat" if tokenizer.chat_template else "plain")
    prompting = Prompting(tokenizer, template, settings.system_prompt)
    questions = read_questions(path)
    shots = _shots_text(settings.n_shot)
    found = Samples("questions", path, [])
    skipped = 0
    for question in questions:
        turns = (shots + question.turns[0], *question.turns[1:])
        # A later turn's prompt holds the answers before it: the references, where there are any.
        answered = min(len(question.reference), len(turns))
        reach = min(len(turns), answered + 1)
        skipped += len(turns) - reach
        for turn in range(reach):
            prompt = prompting.text(turns[: turn + 1], question.reference[:turn])
            special = template == "plain"
            answer = question.reference[turn] if turn < answered else None
            row = _measured(tokenizer, turn_id(question.question_id, turn), prompt, answer, special)
            found.rows.append(replace(row, first=turn_id(question.question_id, 0)))
    if any(row.answer is not None for row in found.rows):
        found.answers_from = "the references of the question file"
    if skipped:
        found.notes.append(f"{skipped} later turns left out: their prompts hold answers that no --run gives")
    if shots:
        bare = prompting.text(questions[0].turns[:1], ())
        whole = prompting.text((shots + questions[0].turns[0],), ())
        lengths = count_tokens(tokenizer, [whole, bare], template == "plain")
        found.shot_tokens = lengths[0] - lengths[1]
    return found


def _shots_text(n_shot: str | None) -> str:
    if n_shot is None:
        return ""
    try:
        text = read_bytes(n_shot, "n-shot file").decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{n_shot}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    if not text:
        raise UserError(f"{n_shot}: holds no example")
    return text + "\n\n"


def turn_id(question_id: QuestionId, turn: int) -> str:
    """The name of a question's turn: that of the first is the question's."""
    # As JSON, because 1 and "1" are different questions.
    return json.dumps(question_id, ensure_ascii=False) + (f", turn {turn + 1}" if turn else "")


def _measured(tokenizer: Any, name: str, prompt: str, answer: str | None, special: bool) -> Sample:
    sample = Sample(name, prompt, count_tokens(tokenizer, [prompt], special)[0])
    if answer is None:
        return sample
    # One more for the token that ends it.
    return replace(sample, answer=answer, answer_tokens=count_tokens(tokenizer, [answer], False)[0] + 1)


def _completions(path: Path, tokenizer: Any) -> Samples:
    found = Samples("completions", path, [], "the completions of the file")
    for number, obj in read_objects(path, "completion file"):
        prompt, completion = obj.get("prompt"), obj.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise UserError(f"{path}:{number}: prompt and completion must be texts")
        row = _measured(tokenizer, str(obj.get("id", number)), prompt, completion, True)
        found.rows.append(replace(row, cut=obj.get("cut") is True))
    found.notes.append("completions that were kept for being right tend to be shorter than all: prefer --run")
    return found


def _text(path: Path, tokenizer: Any) -> Samples:
    try:
        text = read_bytes(path, "text file").decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    blocks = END_OF_TEXT in text
    parts = text.split(END_OF_TEXT) if blocks else text.split("\n")
    numbered = [(i, part.strip("\n")) for i, part in enumerate(parts, start=1) if part.strip()]
    cut = [_split_block(part) for _, part in numbered] if blocks else []
    found = Samples("text", path, [])
    if cut and all(answer is not None for _, answer in cut):
        found.kind = "completions"
        found.answers_from = "the blocks of the file"
        found.notes.append("answers that were kept for being right tend to be shorter than all: prefer --run")
        for (number, _), (prompt, answer) in zip(numbered, cut, strict=True):
            found.rows.append(_measured(tokenizer, f"block {number}", prompt, answer, True))
        return found
    tokens = count_tokens(tokenizer, [part for _, part in numbered])
    what = "block" if blocks else "line"
    found.rows = [Sample(f"{what} {i}", part, n) for (i, part), n in zip(numbered, tokens, strict=True)]
    return found


def _split_block(block: str) -> tuple[str, str | None]:
    """A block's question with its cue, and its answer; None where it has no cue."""
    # Behind the options: a question, too, may have a line that begins with "A:".
    start = block.find("\nOptions:\n")
    cue = _ANSWER_CUE.search(block, max(start, 0))
    return (block, None) if cue is None else (block[: cue.end()], block[cue.end() :])


def file_digest(path: Path) -> str:
    """64 hexadecimal digits (SHA-256) of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
