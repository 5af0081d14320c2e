"""The loop as processes: killed anywhere, or on two ranks, it comes to what one undisturbed process makes."""

import json
import shutil
from pathlib import Path

import pytest

from lit_hass.__main__ import main
from tests.door.conftest import process  # noqa: F401  # a fixture
from tests.star.test_loop import arguments, lines, state

DYING = ("--model.class_path", "tests.star.dying.DyingRationaleModule")
DDP = ("--trainer.devices", 2, "--trainer.strategy", "ddp")


@pytest.fixture(scope="module")
def whole(known, tmp_path_factory) -> Path:
    """The folder of a loop that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole") / "loop"
    assert main(arguments(known, out)) == 0
    return out


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
    for name in ("iter_0/correct_data.txt", "iter_0/validation/predictions.jsonl"):
        pair = [(folder / name).read_text() for folder in (out, whole)]
        if name.endswith("txt"):
            assert pair[0] == pair[1]
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
    second = process(arguments(known, out))
    assert second.wait() == 2 and "another run is writing here" in second.text()
    assert first.wait() == 0, first.text()
    shutil.rmtree(out)
