"""The loop as processes: killed anywhere, or on two ranks, it comes to what one undisturbed process makes."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_hass.__main__ import main
from tests.door.conftest import ROOT, process  # noqa: F401  # a fixture
from tests.star.test_loop import arguments, lines, state

DYING = ("--model.class_path", "tests.star.dying.DyingRationaleModule")
CONFIGS = ROOT / "configs"
DDP = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


def without_times(folder: Path, name: str) -> list[dict]:
    return [{**line, "seconds": 0} for line in lines(folder / name)]


def read_board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance={"histograms": 0}).Reload()


@pytest.fixture(scope="module")
def whole(known, tmp_path_factory) -> Path:
    """The folder of a loop that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "loop"
    assert main(arguments(known, out)) == 0
    return out


@pytest.mark.ddp
def test_two_ranks_predict_and_keep_what_one_does(process, known, tmp_path) -> None:  # noqa: F811
    """One pass by ``predict``: seven and five questions, batches that differ, one merged folder."""
    common = [
        "predict", "-c", CONFIGS / "rationale.yaml", "-c", CONFIGS / "callbacks" / "lengths.yaml",
        "--model.base", known.base, "--model.max_new_tokens", 24, "--data.questions", known.train,
        "--data.shots", "null", "--data.batch_size", 5, "--trainer.accelerator", "cpu",
        "--trainer.logger.init_args.save_dir", tmp_path,
    ]  # fmt: skip
    version = "--trainer.logger.init_args.version"
    assert main([str(part) for part in (*common, version, 1)]) == 0
    run = process([*common, version, 2, *DDP])
    assert run.wait() == 0, run.text()
    one, two = (tmp_path / "rationale" / f"version_{n}" for n in (1, 2))
    assert not list(two.glob("*.rank*"))
    assert without_times(two, "predictions.jsonl") == without_times(one, "predictions.jsonl")
    assert without_times(two, "correct.jsonl") == without_times(one, "correct.jsonl")
    assert [line["id"] for line in lines(two / "predictions.jsonl")] == known.ids
    assert [line["id"] for line in lines(two / "correct.jsonl")] == known.right
    assert (two / "correct_data.txt").read_bytes() == (one / "correct_data.txt").read_bytes()
    figures = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    timed = {"seconds", "tokens_per_second"}
    assert [{k: v for k, v in found.items() if k not in timed} for found in figures[:1]] == [
        {k: v for k, v in found.items() if k not in timed} for found in figures[1:]
    ]
    counted = [json.loads((folder / "lengths.json").read_text())["all"] for folder in (one, two)]
    for kind in ("prompt", "answer", "total"):
        assert all(counted[0][kind][key] == counted[1][kind][key] for key in ("ended", "cut", "count", "p99", "mean"))
        (event,) = read_board(two).Histograms(f"lengths/{kind}")
        assert event.histogram_value.num == 12 and event.histogram_value.max == counted[0][kind]["max"] + 0.5


@pytest.mark.slow
def test_killed_at_any_point_it_goes_on_where_it_was(process, known, whole, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "loop"
    command = arguments(known, out)
    run = process([*command, *DYING], DIES="0")
    assert run.wait() != 0, run.text()
    [shard] = out.rglob("predictions.rank0.jsonl")
    begun = lines(shard)
    assert len(begun) == 4
    for appears in (
        "iter_0/train/predictions.jsonl", "iter_0/correct.jsonl", "iter_0/training.ckpt", "iter_0/DONE",
        "iter_1/training.ckpt",
    ):  # fmt: skip
        run = process(command)
        run.wait_for((out / appears).exists)
        run.kill()
    run = process(command)
    assert run.wait() == 0, run.text()
    assert state(out) == state(whole)
    asked_first = {line["id"]: line for line in lines(out / "iter_0" / "validation" / "predictions.jsonl")}
    assert all(asked_first[line["id"]] == line for line in begun), "what was answered was asked again"
    assert not [path for path in out.rglob("*") if "unfinished" in path.name or path.name == "run.lock"]


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_come_to_what_one_does(process, known, whole, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "loop"
    run = process(arguments(known, out, *DDP))
    assert run.wait() == 0, run.text()
    two, one = ([line for line in lines(folder / "iter_0" / "train" / "predictions.jsonl")] for folder in (out, whole))
    assert [{**line, "seconds": 0} for line in two] == [{**line, "seconds": 0} for line in one]
    texts = [(folder / "iter_0" / "correct_data.txt").read_text() for folder in (out, whole)]
    assert texts[0] == texts[1]
    validated = [without_times(folder / "iter_0" / "validation", "predictions.jsonl") for folder in (out, whole)]
    assert validated[0] == validated[1]
    figures = [json.loads((folder / "iter_0" / "metrics.json").read_text()) for folder in (out, whole)]
    for part in ("validation", "train"):
        assert [f[part]["accuracy"] for f in figures][0] == figures[1][part]["accuracy"]
    assert (out / "iter_1" / "DONE").exists() and json.loads((out / "star.json").read_text())["iterations"][2]


@pytest.mark.slow
@pytest.mark.ddp
def test_a_rank_that_dies_fails_the_loop_and_one_process_finishes_it(process, known, whole, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "loop"
    run = process([*arguments(known, out, "--data.batch_size", 2), *DDP, *DYING], DIES="1")
    assert run.wait() != 0, run.text()
    assert not (out / "iter_0" / "validation" / "predictions.jsonl").exists()
    run = process(arguments(known, out))
    assert run.wait() == 0, run.text()
    assert state(out) == state(whole)


@pytest.mark.slow
def test_a_second_loop_in_the_same_folder_is_refused(process, known, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "loop"
    first = process(arguments(known, out))
    first.wait_for((out / "run.lock").exists)
    first.process.send_signal(signal.SIGSTOP)  # it would be done before the second has started
    second = process(arguments(known, out))
    assert second.wait() == 2 and "another run is writing here" in second.text()
    first.process.send_signal(signal.SIGCONT)
    assert first.wait() == 0, first.text()
    shutil.rmtree(out)
