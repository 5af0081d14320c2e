"""Runs of every verb that writes, killed at random moments and resumed, end with the files of an undisturbed run.

25 kills in all, each of the whole process group (SIGKILL) at some moment between the making of the run's folder and the
end. Times, and what follows from them, are left out of the comparison.
"""

import contextlib
import json
import math
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.door.conftest import CONFIG, ROOT, Process, lines
from tests.door.test_evaluate import pair, tiny_draft  # noqa: F401  # a fixture
from tests.perplexity_bases import make_base, write_text
from tests.star.conftest import known  # noqa: F401  # a fixture
from tests.star.test_loop import arguments as star_arguments

pytestmark = pytest.mark.slow

VERSION = ("--trainer.logger.init_args.version", 0)
DDP = ("--trainer.devices", 2, "--trainer.strategy", "ddp")
#: Parts of the names of what is a time, follows from times, is drawn anew by each process, or is the machine's load.
TIMES = (
    "time", "second", "tstamp", "answer_id", "speed", "memory", "environment", "bytes", "peak", "throughput", "ratio",
    "cost_model", "notes", "headline", "load",
)  # fmt: skip
#: Known of the batches that one process has made itself.
OF_BATCHES = {"padding_waste"}
#: Files about nothing but times, which only have to be there; and a run's own diary.
ONLY_THERE = {"comparison.md", "comparison.png", "report.html"}
IGNORED = ("events.out.tfevents", "hparams.yaml")
#: Of these, sums are merged in another order after a kill.
ROUNDED = {"collapse_metrics.json", "collapse_report.json", "comparison.json"}


@dataclass
class Case:
    """A command, where it writes, and what is added to the command when it goes on."""

    command: Callable[[Path], list[Any]]
    folder: str
    resume: Callable[[Path], tuple[Any, ...]] = lambda folder: ()


def _answering(base, asked):
    return [
        "predict", "-c", CONFIG, "-c", ROOT / "configs" / "callbacks" / "lengths.yaml", "--model.base", base,
        "--data.questions", asked, "--model.max_new_tokens", 12, "--model.sampling.temperature", 0.9,
        "--data.num_choices", 2, "--trainer.accelerator", "cpu", *VERSION,
    ]  # fmt: skip


def _scoring(base, text):
    return [
        "test", "-c", ROOT / "configs" / "perplexity.yaml", "-c", ROOT / "configs" / "callbacks" / "collapse.yaml",
        "--model.base", base, "--data.path", text, "--data.protocols", "[strided, wanda, document]",
        "--data.window", 32, "--data.stride", 2, "--data.batch_tokens", 200, "--trainer.accelerator", "cpu", *VERSION,
    ]  # fmt: skip


def _training(base, config):
    return [
        "fit", "-c", config, "--data.tokenizer", base, "--data.tokens_per_batch", 256,
        "--data.validation", 8, "--model.architecture.num_hidden_layers", 2, "--model.architecture.hidden_size", 32,
        "--trainer.max_steps", 120, "--trainer.val_check_interval", 40, "--trainer.accelerator", "cpu",
        "--trainer.enable_progress_bar", "false", *VERSION,
    ]  # fmt: skip


def _last(folder: Path) -> tuple[Any, ...]:
    return ("--ckpt_path", "last") if (folder / "checkpoints" / "last.ckpt").exists() else ()


def _kept(folder: Path) -> dict[str, Any]:
    """What a run leaves, by the file's name, without times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir() or path.name.startswith(IGNORED) or name.startswith(("features/", "tensorboard/")):
            continue
        if "/features/" in name or "/tensors.tsv" in name or "/metadata.tsv" in name:  # a board's, and what resumes it
            continue
        if path.name in ONLY_THERE:
            found[name] = "there"
        elif path.suffix in (".json", ".jsonl") and "checkpoint/" not in name:
            content = lines(path) if path.suffix == ".jsonl" else json.loads(path.read_text())
            found[name] = _without_times(content)
        elif path.suffix == ".ckpt":
            checkpoint = torch.load(path, weights_only=True)
            found[name] = {key: checkpoint[key] for key in ("global_step", "state_dict", "optimizer_states")}
        elif path.name == "config.yaml":
            text = path.read_text().splitlines()
            found[name] = [line for line in text if not line.strip().startswith(("ckpt_path", "out:"))]
        else:
            found[name] = path.read_bytes()
    return found


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in OF_BATCHES and not _timed(k)}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _timed(key: str) -> bool:
    return any(part in key for part in TIMES)


def _same(one: Any, other: Any, rounded: bool) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key], rounded) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(_same(*both, rounded) for both in zip(one, other, strict=True))
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if rounded and isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-6)
    return one == other


def _assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert _same(one[name], other[name], Path(name).name in ROUNDED), name


@pytest.fixture
def case(request, tiny_base, tiny_draft, questions, tmp_path):  # noqa: F811
    match request.param:
        case "predict":
            asked = questions(40)
            return Case(lambda out: _answering(tiny_base, asked), "logs/generate_baseline/version_0")
        case "evaluate":
            asked = questions(12)
            return Case(
                lambda out: [*pair(tiny_base, tiny_draft), "--data.questions", asked, "--model.repeats", 1, *VERSION],
                "logs/evaluate/version_0",
            )
        case "test":
            base, text = make_base(tmp_path / "base"), write_text(tmp_path / "text.txt", pages=4)
            return Case(lambda out: _scoring(base, text), "logs/perplexity/version_0")
        case "fit":
            config, shipped = tmp_path / "train.yaml", (ROOT / "configs" / "train_base.yaml").read_text()
            assert "every_n_train_steps: 250" in shipped
            config.write_text(shipped.replace("every_n_train_steps: 250", "every_n_train_steps: 20"))
            return Case(lambda out: _training(tiny_base, config), "logs/train_base/version_0", _last)
        case _:
            questions_of = request.getfixturevalue("known")
            more = ("--fit.steps", 20)
            return Case(lambda out: star_arguments(questions_of, out / "loop", *more), "loop")


CASES = [
    ("predict", 1, 3), ("predict", 2, 3), ("evaluate", 1, 3), ("evaluate", 2, 2), ("test", 1, 3), ("test", 2, 3),
    ("fit", 1, 3), ("fit", 2, 2), ("star", 1, 2), ("star", 2, 1),
]  # fmt: skip


def test_there_are_25_kills_over_all_verbs() -> None:
    assert sum(kills for _, _, kills in CASES) == 25


@pytest.fixture
def start():
    """``start(folder, args)`` starts the command there; what still runs at the end is killed."""
    started: list[Process] = []

    def start_in(folder: Path, args: list[Any]) -> Process:
        started.append(Process(args, folder))
        return started[-1]

    yield start_in
    for one in started:
        if one.process.poll() is None:
            one.kill()


@pytest.mark.ddp
@pytest.mark.parametrize(("case", "ranks", "kills"), CASES, indirect=["case"])
def test_killed_at_random_and_resumed(start, case, ranks, kills, tmp_path) -> None:
    chance = random.Random()
    more = DDP if ranks > 1 else ()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    run = start(whole, [*case.command(whole), *more])
    run.wait_for((whole / case.folder / "run.json").exists, 400)
    appeared = time.monotonic()
    assert run.wait(900) == 0, run.text()
    lasted = longest = time.monotonic() - appeared
    folder, moments = killed / case.folder, []
    mark = folder / "run.json"
    while len(moments) < kills:
        killed.mkdir(exist_ok=True)
        before = mark.stat().st_mtime_ns if mark.exists() else 0
        run = start(killed, [*case.command(killed), *more, *case.resume(folder)])
        # Each command marks the folder anew when it takes it.
        run.wait_for(lambda before=before: mark.exists() and mark.stat().st_mtime_ns > before, 400)
        moment = chance.uniform(0, longest)
        with contextlib.suppress(subprocess.TimeoutExpired):
            run.process.wait(moment)
        longest *= 0.8  # so that there is something left to kill
        if run.process.poll() is None:
            run.kill()
            moments.append(round(moment, 1))
        else:  # it was done before: begin anew
            assert run.wait() == 0, run.text()
            shutil.rmtree(killed)
    run = start(killed, [*case.command(killed), *more, *case.resume(folder)])
    assert run.wait(900) == 0, run.text()
    print(f"{case.folder}, {ranks} processes: killed after {moments} of {lasted:.1f} s")
    _assert_same(_kept(whole / case.folder), _kept(folder))
    assert not [path for path in folder.rglob("*") if path.name.startswith(".") or path.name == "run.lock"]
