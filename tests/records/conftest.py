"""Answers and child processes for the tests of ``lit_hass.records``."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lit_hass.records import AnswerRecord, ChoiceRecord, TurnRecord

ROOT = Path(__file__).resolve().parents[2]


def _answer(question_id: int | str, text: str = "yes", tstamp: float = 1.0) -> dict[str, Any]:
    turn = TurnRecord(text, output_ids=[5, 6, 2], wall_time=0.5, steps=2, accept_lengths=[1, 0], stop_reason="stop")
    choices = [ChoiceRecord.from_turns(0, [turn])]
    return AnswerRecord(question_id, "m-temperature-0.0", choices, f"id of {question_id!r}", tstamp).to_dict()


@pytest.fixture
def answer() -> Callable[..., dict[str, Any]]:
    return _answer


@pytest.fixture
def spawn() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Start Python code in a process of its own; whatever still runs at the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
