"""Run folders as the project writes them, and answer files as the original scripts do."""

import copy
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_hass.records import AnswerRecord, ChoiceRecord, RunKey, TurnRecord, to_json, write_json

ENVIRONMENT = {
    "python": "3.11.7",
    "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
    "system": "Linux",
    "machine": "x86_64",
    "cpu_model": "A processor",
    "cpu_count": 2,
    "cpu_threads": 1,
    "gpus": [],
}
SETTINGS = {
    "model": {
        "base": "7d3aa6687cf3ba10",
        "dtype": "auto",
        "temperature": 0.0,
        "top_p": 1.0,
        "top_k": 0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "seed": None,
        "max_new_tokens": 64,
        "extra_stop_ids": [],
        "strip_answers": False,
        "draft": None,
        "tree": None,
    },
    "data": {"questions": "digest", "question_count": 0, "num_choices": 1, "template": "chat"},
    "device": "cpu",
}
DRAFT = {"draft": "abcdef0123456789", "tree": {"total_tokens": 11, "depth": 9, "top_k": 1}}


def turn(
    ids: Sequence[int], seconds: float, accepted: Sequence[int] = (), prefill: float = 0.0, text: str = "", **more: Any
) -> TurnRecord:
    """A turn decoded alone."""
    settings = {"batch_rows": 1, "time_share": seconds, "prompt_tokens": 9, "stop_reason": "stop", **more}
    return TurnRecord(
        text=text or " ".join(map(str, ids)),
        output_ids=list(ids),
        wall_time=seconds,
        steps=len(accepted) or len(ids),
        accept_lengths=list(accepted),
        prefill_time=prefill,
        decode_time=seconds - prefill,
        **settings,
    )


def accepted_in(rng: random.Random, tokens: int) -> list[int]:
    """Accepted draft tokens of steps behind a first token, which together give so many tokens (at least 1 step)."""
    found, left = [], max(tokens - 1, 1)
    while left > 0:
        found.append(min(rng.randint(0, 6), left - 1))
        left -= found[-1] + 1
    return found


def line(question_id: Any, *choices: Sequence[TurnRecord]) -> dict[str, Any]:
    """The answer line of choices, each a list of turns."""
    records = [ChoiceRecord.from_turns(i, turns) for i, turns in enumerate(choices)]
    return AnswerRecord(question_id, "m-temperature-0.0", records).to_dict()


def original_line(question_id: Any, *choices: dict[str, Any], drafted: bool = True) -> dict[str, Any]:
    """A line with the six keys of the original scripts; their baseline leaves ``accept_length`` out."""
    keys = ("index", "turns", "idxs", "new_tokens", "wall_time", *(("accept_length",) if drafted else ()))
    return {
        "question_id": question_id,
        "answer_id": f"a{question_id}",
        "model_id": "llama-temperature-0.0",
        "tstamp": 1.0,
        "choices": [dict(zip(keys, (choice[key] for key in keys), strict=True)) for choice in choices],
    }


def write_lines_to(path: Path, lines: Sequence[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(to_json(each) + "\n" for each in lines), encoding="utf-8")
    return path


def write_run(
    folder: Path,
    lines: Sequence[dict[str, Any]],
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    device: str = "cpu",
    environment: dict[str, Any] | None = None,
    devices: int = 1,
) -> Path:
    """A finished run folder; the arguments change its settings."""
    write_lines_to(folder / "answers.jsonl", lines)
    settings = copy.deepcopy(SETTINGS)
    settings["device"] = device
    settings["model"].update(model or {})
    settings["data"].update({"question_count": len(lines), **(data or {})})
    key = RunKey(settings)
    write_json(folder / "run_key.json", {"settings": key.settings, "sha256": key.digest})
    write_json(folder / "statistics.json", {"devices": devices, "environment": {**ENVIRONMENT, **(environment or {})}})
    return folder


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The objects of an answer file."""
    return [json.loads(each) for each in path.read_text(encoding="utf-8").splitlines()]
