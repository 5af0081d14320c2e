"""Sampling prompts and answers block by block, into a file that a stopped run goes on with."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import filelock
import torch
from torch import Tensor

from lit_hass.data.prompting import Prompting
from lit_hass.decoding import AutoregressiveDecoder, Generation, SamplingConfig, derive_seed
from lit_hass.dialogues.prompts import implausible, same_prompt, user_opening
from lit_hass.errors import RunError, UserError
from lit_hass.models import load_base, load_tokenizer, model_digest, stop_ids
from lit_hass.records import ensure_writable, to_json, write_json
from lit_hass.records.atomic import sync_folder, write_error
from lit_hass.records.json_lines import kind_of_file, read_object, read_objects

log = logging.getLogger(__name__)

#: The beginnings of the file that is being written, and of the note of how far it is.
_PARTIAL, _PROGRESS = ".partial", ".progress.json"
#: A base of which fewer texts pass for prompts is given up after a few blocks.
_FEWEST_PLAUSIBLE = 0.02


@dataclass(frozen=True)
class DialogueSettings:
    """What decides the dialogues, to the byte on one machine (in float32 with any batch, in half precision with this).

    Args:
        base: folder, hub id, shipped name or GGUF file.
        n: dialogues to write.
        seed: of prompts and answers.
        batch: prompts sampled together, and their answers.
        prompt_tokens: a prompt that is longer than this is dropped.
        max_new_tokens: limit of an answer; a longer one ends there.
        prompt_sampling: of the prompts.
        sampling: of the answers.
        dtype: of the base.
        prompts: prompts that were read from a file instead of sampled.
        date: what a chat template that asks for the date is told, ``"2026-11-28"``; None is today.
    """

    base: str
    n: int
    seed: int = 1
    batch: int = 32
    prompt_tokens: int = 64
    max_new_tokens: int = 256
    prompt_sampling: SamplingConfig = SamplingConfig(temperature=1.0, top_p=0.95)
    sampling: SamplingConfig = SamplingConfig()
    dtype: str = "auto"
    prompts: tuple[str, ...] | None = None
    date: str | None = None

    def __post_init__(self) -> None:
        """Check the counts.

        Raises:
            UserError: one is not positive.
        """
        for name in ("n", "batch", "prompt_tokens", "max_new_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} must be at least 1, found {getattr(self, name)}")

    def key(self) -> dict[str, Any]:
        """What two runs must share to be the same one."""
        found = {**asdict(self), "base": model_digest(self.base), "date": self._day()}
        if self.prompts is not None:
            found["prompts"] = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        return found

    def prompting(self) -> Prompting:
        """Makes the prompts of these dialogues."""
        return Prompting(load_tokenizer(self.base), date=self.date)

    def _day(self) -> str | None:
        """The date that stands in every conversation; None where the base's chat template does not ask for it."""
        prompting = self.prompting()
        prompting.encode(["a"], [])  # which it is known from
        return prompting.settings()["date"]


@dataclass
class _Progress:
    """How far a file is: blocks of prompts that are done, dialogues and bytes that they gave, what was dropped."""

    blocks: int
    dialogues: int
    bytes: int
    dropped: Counter[str]


def write_dialogues(settings: DialogueSettings, out: str | os.PathLike[str]) -> dict[str, int]:
    """Write dialogues in the questions' format with references, one a line.

    Dialogues are sampled in blocks of ``batch`` prompts. After each block the new lines are on disk in ``OUT.partial``,
    and ``OUT.progress.json`` says so; the same call goes on behind the last whole block, and moves the file to ``OUT``
    when it is complete. A file that is complete already is left as it is.

    Args:
        settings: what decides the content.
        out: the file.

    Returns:
        How many prompts were dropped, by reason.

    Raises:
        UserError: the base, the prompts or the file cannot be used; the file is another run's.
        RunError: the disk is full, or the base's prompts are nearly all implausible.
    """
    path = Path(out)
    ensure_writable(path.parent)
    if path.exists():
        raise UserError(f"{path}: is there already; give another --out, or delete it")
    lock = filelock.FileLock(f"{path}.lock", blocking=False)
    try:
        with lock:
            dropped = _Writer(settings, path).run()
    except filelock.Timeout as error:
        raise UserError(f"{path}: another process is writing it") from error
    Path(f"{path}.lock").unlink(missing_ok=True)
    return dropped


class _Writer:
    def __init__(self, settings: DialogueSettings, path: Path) -> None:
        self.path = path
        self.partial, self.note = Path(f"{path}{_PARTIAL}"), Path(f"{path}{_PROGRESS}")
        self.key = json.loads(to_json(settings.key()))
        # The day of the key, should midnight pass meanwhile.
        self.settings = settings = replace(settings, date=self.key["date"] or settings.date)
        self.progress = self._resume()
        self.seen: set[str] = set()

    def run(self) -> dict[str, int]:
        settings, progress = self.settings, self.progress
        prompting = settings.prompting()
        tokenizer = prompting.tokenizer
        model = load_base(settings.base, dtype=settings.dtype)
        ends = stop_ids(model, tokenizer)
        decoder = AutoregressiveDecoder(model)
        opening = None if settings.prompts is not None else user_opening(tokenizer, ends, settings.date)
        if progress.dialogues:
            self.seen = {same_prompt(row["turns"][0]) for _, row in read_objects(self.partial, "dialogue file")}
            log.info("going on behind %d dialogues", progress.dialogues)
        while progress.dialogues < settings.n:
            if settings.prompts is None:
                assert opening is not None
                numbered = self._sample(decoder, prompting, torch.tensor(opening.ids), ends)
            else:
                numbered = self._from_file()
                if not numbered and progress.blocks * settings.batch >= len(settings.prompts):
                    break
            self._append(self._answer(decoder, prompting, numbered, ends))
            tried = progress.blocks * settings.batch
            if progress.blocks >= 4 and progress.dialogues < _FEWEST_PLAUSIBLE * tried:
                raise RunError(
                    f"{progress.dialogues} of the first {tried} sampled texts pass for a prompt "
                    f"({_counts(progress.dropped)}): is {settings.base} instruction-tuned, with its own template?"
                )
        self._finish()
        return dict(progress.dropped)

    def _sample(
        self, decoder: AutoregressiveDecoder, prompting: Prompting, opening: Tensor, ends: Sequence[int]
    ) -> list[tuple[int, str]]:
        """The plausible ones of the next block of prompts, with their numbers."""
        settings = self.settings
        first = self.progress.blocks * settings.batch
        numbers = range(first, first + settings.batch)
        found = decoder.generate(
            [opening] * settings.batch,
            settings.prompt_tokens,
            settings.prompt_sampling,
            stop_ids=ends,
            seeds=[derive_seed("dialogue", settings.seed, number, "prompt") for number in numbers],
        )
        kept = []
        for number, sampled in zip(numbers, found, strict=True):
            text = prompting.decode(sampled.output_ids.tolist()).strip()
            reason = self._why_dropped(sampled, text, prompting)
            if reason is None:
                self.seen.add(same_prompt(text))
                kept.append((number, text))
            else:
                self.progress.dropped[reason] += 1
        return kept

    def _why_dropped(self, sampled: Generation, text: str, prompting: Prompting) -> str | None:
        if sampled.stop_reason != "stop":
            return "too long"
        if set(sampled.output_ids[:-1].tolist()) & set(prompting.tokenizer.all_special_ids):
            return "special tokens"
        return implausible(text) or ("seen before" if same_prompt(text) in self.seen else None)

    def _from_file(self) -> list[tuple[int, str]]:
        """The next block of given prompts, with their numbers; all of them are taken, but each only once."""
        assert self.settings.prompts is not None
        first = self.progress.blocks * self.settings.batch
        kept = []
        for number, text in enumerate(self.settings.prompts[first : first + self.settings.batch], start=first):
            if same_prompt(text) in self.seen:
                self.progress.dropped["seen before"] += 1
            else:
                self.seen.add(same_prompt(text))
                kept.append((number, text))
        return kept

    def _answer(
        self,
        decoder: AutoregressiveDecoder,
        prompting: Prompting,
        numbered: list[tuple[int, str]],
        ends: Sequence[int],
    ) -> list[dict[str, Any]]:
        settings = self.settings
        if not numbered:
            return []
        answers = decoder.generate(
            [prompting.encode([text], []) for _, text in numbered],
            settings.max_new_tokens,
            settings.sampling,
            stop_ids=ends,
            seeds=[derive_seed("dialogue", settings.seed, number, "answer") for number, _ in numbered],
        )
        rows = []
        for (number, text), answer in zip(numbered, answers, strict=True):
            reference = prompting.decode(answer.output_ids.tolist())
            if not reference.strip():
                self.progress.dropped["empty answer"] += 1
                continue
            rows.append({"question_id": number, "category": "dialogue", "turns": [text], "reference": [reference]})
        return rows

    def _resume(self) -> _Progress:
        """What an earlier run of the same settings left; the bytes behind its last whole block are cut off."""
        found = read_object(self.note)
        if found is None:
            self.partial.unlink(missing_ok=True)
            return _Progress(0, 0, 0, Counter())
        was = found["key"]
        if changed := [name for name in self.key | was if was.get(name) != self.key.get(name)]:
            way = f"go on with --date {was['date']}, give" if changed == ["date"] and was.get("date") else "give"
            raise UserError(
                f"{self.note}: another run's ({', '.join(changed)} differ); {way} another --out, or delete it and "
                f"{self.partial.name}"
            )
        progress = _Progress(found["blocks"], found["dialogues"], found["bytes"], Counter(found["dropped"]))
        size = self.partial.stat().st_size if self.partial.exists() else 0
        if size < progress.bytes:
            raise UserError(
                f"{self.partial}: {size} bytes, {progress.bytes} were written; delete it and {self.note.name}"
            )
        if size > progress.bytes:
            os.truncate(self.partial, progress.bytes)
        return progress

    def _append(self, rows: list[dict[str, Any]]) -> None:
        progress = self.progress
        rows = rows[: self.settings.n - progress.dialogues]
        data = "".join(to_json(row) + "\n" for row in rows).encode()
        try:
            with open(self.partial, "ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise write_error(self.partial, error) from error
        progress.blocks += 1
        progress.dialogues += len(rows)
        progress.bytes += len(data)
        write_json(self.note, {"key": self.key, **vars(progress)})
        log.info(
            "%d of %d dialogues; dropped %s", progress.dialogues, self.settings.n, _counts(progress.dropped) or "none"
        )

    def _finish(self) -> None:
        if not self.progress.dialogues:
            raise RunError("no dialogue was written: every prompt or answer was dropped")
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)
        self.note.unlink(missing_ok=True)


def _counts(dropped: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))


def read_prompts(path: str) -> tuple[str, ...]:
    """First turns of a question file, or the lines of a text file.

    Raises:
        UserError: the file cannot be read, or holds nothing.
    """
    if kind_of_file(path) in (".jsonl", ".json", ".parquet"):
        from lit_hass.records import read_questions

        return tuple(question.turns[0] for question in read_questions(path))
    found = tuple(_lines(Path(path)))
    if not found:
        raise UserError(f"{path}: holds no prompt")
    return found


def _lines(path: Path) -> Iterator[str]:
    from lit_hass.records.json_lines import read_bytes

    try:
        text = read_bytes(path, "file of prompts").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8") from error
    yield from (line.strip() for line in text.split("\n") if line.strip())
