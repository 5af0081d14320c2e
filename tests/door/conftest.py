"""Running the door: in this process for most tests, as a process of its own where processes are what is tested."""

import contextlib
import io
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lit_hass.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = str(ROOT / "configs" / "generate_baseline.yaml")


@dataclass
class Result:
    """What a command did."""

    status: int
    out: str
    err: str


@pytest.fixture
def door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """``door("predict", "-c", ...)`` runs the command in an empty folder, in this process."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["lit-hass"])

    def run(*args: object) -> Result:
        out, err = io.StringIO(), io.StringIO()
        environment = dict(os.environ)
        handlers = {name: logging.getLogger(name).handlers[:] for name in ("lit_hass", "callbacks")}
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                status = main([str(arg) for arg in args])
            except SystemExit as error:
                status = error.code if isinstance(error.code, int) else 1
        os.environ.clear()
        os.environ.update(environment)
        for name, kept in handlers.items():
            logging.getLogger(name).handlers[:] = kept
        return Result(status, out.getvalue(), err.getvalue())

    yield run
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., Path]:
    """``questions(n)`` writes a file of ``n`` short questions with ids 10, 11, ..."""

    def write(n: int, **extra: object) -> Path:
        path = tmp_path / f"questions{n}.jsonl"
        lines = [{"question_id": 10 + i, "turns": [f"<td>{i}</td>"], "reference": [str(i)], **extra} for i in range(n)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


class Process:
    """``python -m lit_hass ...`` in a process group of its own."""

    def __init__(self, args: Sequence[object], cwd: Path, launcher: Sequence[str] = (), **env: str) -> None:
        self.log = cwd / f"process{len(list(cwd.glob('process*.log')))}.log"
        command = [sys.executable, *(launcher or ["-m", "lit_hass"]), *map(str, args)]
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Ctrl-C as in a terminal, also where the tests run in the background, whose processes ignore it.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **env},
            )

    def wait(self, timeout: float = 240) -> int:
        """The exit status; the whole group is killed when it takes too long."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.terminate()
            time.sleep(5)
            raise AssertionError(f"no end after {timeout} s:\n{self.text()}") from None
        finally:
            self._end_group()

    def kill(self) -> None:
        """SIGKILL to every process of the group."""
        self._end_group()
        self.process.wait(30)

    def _end_group(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def text(self) -> str:
        """What it printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], bool], timeout: float = 180) -> None:
        """Wait until ``condition()``; fail when the process ends before."""
        end = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended too soon:\n{self.text()}"
            assert time.monotonic() < end, f"waited in vain:\n{self.text()}"
            time.sleep(0.02)


@pytest.fixture
def process(tmp_path: Path):
    """``process(args, **env)`` starts the command in ``tmp_path``; what still runs at the end is killed."""
    started: list[Process] = []

    def start(args: Sequence[object], launcher: Sequence[str] = (), **env: str) -> Process:
        started.append(Process(args, tmp_path, launcher, **env))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            # torchrun's workers lead sessions of their own; it ends them when asked, not when killed.
            one.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(15)
            one.kill()


def lines(path: Path) -> list[dict]:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tokens(path: Path) -> dict:
    """Question id -> output ids of all choices of an answer file; every id once."""
    answers = lines(path)
    found = {answer["question_id"]: [choice["output_ids"] for choice in answer["choices"]] for answer in answers}
    assert len(found) == len(answers)
    return found
