"""The loop on a model that knows what it answers: counts, files, resume, refusals."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_hass.__main__ import main
from lit_hass.data.commonsense_qa_prompts import build_prompt
from lit_hass.data.commonsense_qa_questions import read_commonsense_qa
from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.errors import RunError
from lit_hass.modules import LanguageModelingModule
from lit_hass.records.predictions import END_OF_TEXT, PredictionFolder
from lit_hass.star import passes


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def state(out: Path) -> dict[str, object]:
    """Everything that a loop decides, without times and seconds."""
    found: dict[str, object] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name.endswith(".jsonl"):
            found[name] = [{k: v for k, v in line.items() if k != "seconds"} for line in lines(path)]
        elif path.name in ("model.safetensors", "correct_data.txt", "DONE"):
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def whole(known, tmp_path_factory) -> Path:
    """The folder of a loop that nothing disturbed; do not change it."""
    out = tmp_path_factory.mktemp("whole") / "loop"
    assert main(arguments(known, out)) == 0
    return out


def arguments(known, out: Path, *more: object) -> list[str]:
    given = [
        "--out", out, "--iterations", 2, "--hints", "false", "--validation", known.held_out,
        "--model.base", known.base, "--model.max_new_tokens", 24,
        "--data.questions", known.train, "--data.shots", "null", "--data.hint_shots", "null", "--data.batch_size", 4,
        "--fit.steps", 6, "--fit.lr", 1e-3, "--fit.warmup_steps", 1, "--fit.batch_size", 4,
        "--fit.checkpoint_every", 2, "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip
    return ["star", *map(str, given)]


def test_what_is_answered_kept_and_trained_on(known, whole) -> None:
    first = {line["id"]: line for line in lines(whole / "iter_0" / "train" / "predictions.jsonl")}
    assert list(first) == known.ids
    assert {key for key, line in first.items() if line["correct"] and not line["cut"]} == set(known.right)
    assert first[known.endless]["correct"] and first[known.endless]["cut"]
    kept = lines(whole / "iter_0" / "correct.jsonl")
    assert [line["id"] for line in kept] == known.right
    questions = {q.id: q for q in read_commonsense_qa(known.train)}
    text = ""
    for line in kept:
        assert line["prompt"] == build_prompt(questions[line["id"]]) and not line["hinted"]
        assert line["completion"] == known.expected[line["id"]]
        text += f"{line['prompt']}{line['completion']}{END_OF_TEXT}\n\n"
    assert (whole / "iter_0" / "correct_data.txt").read_text(encoding="utf-8") == text
    metrics = json.loads((whole / "iter_0" / "metrics.json").read_text())
    assert (metrics["kept"], metrics["fit"]["steps"], metrics["kept_hinted_share"]) == (8, 6, 0.0)
    assert metrics["train"]["accuracy"] == 9 / 12 and metrics["train"]["cut_rate"] == 1 / 12
    assert metrics["validation"]["accuracy"] == 4 / 6 and metrics["train"]["parse_rate"] == 1.0
    summary = json.loads((whole / "star.json").read_text())["iterations"]
    assert [one["iteration"] for one in summary] == [0, 1, 2] and "fit" not in summary[2]
    assert not (whole / "iter_2" / "DONE").exists() and not list(whole.rglob("training.ckpt"))


def test_tensorboard_has_a_point_per_iteration(whole) -> None:
    board = EventAccumulator(str(whole / "tensorboard"), size_guidance={"scalars": 0})
    board.Reload()
    points = board.Scalars("star/validation/accuracy")
    summary = json.loads((whole / "star.json").read_text())["iterations"]
    assert [point.step for point in points] == [0, 1, 2]
    assert [point.value for point in points] == pytest.approx([one["validation"]["accuracy"] for one in summary])
    assert [point.value for point in board.Scalars("star/kept")][0] == 8.0


def test_the_loop_ends_with_a_table_of_its_iterations(known, whole, capsys) -> None:
    assert main(arguments(known, whole)) == 0  # finished: it only says what is there
    said = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split()[:2] for line in said[1:4]] == [["0", "66.7%"], ["1", "66.7%"], ["2", "66.7%"]]
    first, last = said[1].split(), said[3].split()
    loss = json.loads((whole / "star.json").read_text())["iterations"][0]["fit"]["loss"]
    assert first[-5:] == ["75.0%", "8", "0.0%", "6", f"{loss:.3f}"] and len(last) == 5
    assert str(whole / "star.json") in said[4]


def test_the_same_loop_again_is_the_same_and_a_finished_one_does_nothing(known, whole, tmp_path) -> None:
    out = tmp_path / "again"
    assert main(arguments(known, out)) == 0
    assert state(out) == state(whole)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    boards = list((out / "tensorboard").iterdir())
    assert main(arguments(known, out)) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")} == times
    assert list((out / "tensorboard").iterdir()) == boards, "a point was shown twice"


@pytest.mark.parametrize(
    "lost",
    [
        ["iter_1", "iter_2"],
        ["iter_1/DONE", "iter_2"],
        pytest.param(["iter_0/DONE", "iter_0/checkpoint", "iter_1", "iter_2"], marks=pytest.mark.slow),
        ["iter_0/correct.jsonl", "iter_0/DONE", "iter_0/checkpoint", "iter_0/metrics.json", "iter_1", "iter_2"],
        ["iter_1/train/metrics.json", "iter_1/DONE", "iter_1/checkpoint", "iter_2"],
        ["iter_2/validation", "star.json"],
    ],
)
def test_files_lost_at_any_point_are_made_again(known, whole, tmp_path, lost: list[str]) -> None:
    out = tmp_path / "loop"
    shutil.copytree(whole, out)
    for name in lost:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(arguments(known, out)) == 0
    assert state(out) == state(whole)


def test_a_torn_shard_is_taken_up_where_it_was(known, whole, tmp_path) -> None:
    out = tmp_path / "loop"
    shutil.copytree(whole, out)
    for name in ("iter_1", "iter_2"):
        shutil.rmtree(out / name)
    folder = PredictionFolder(out / "iter_0" / "train")
    content = folder.predictions.read_bytes()
    for name in ("predictions.jsonl", "correct.jsonl", "correct_data.txt", "metrics.json"):
        (folder.path / name).unlink()
    for name in ("DONE", "metrics.json"):
        (out / "iter_0" / name).unlink()
    shutil.rmtree(out / "iter_0" / "checkpoint")
    (folder.path / "predictions.rank3.jsonl").write_bytes(content[: len(content) // 2])
    torn = len(content[: len(content) // 2].split(b"\n")) - 1
    assert main(arguments(known, out)) == 0
    assert state(out) == state(whole) and 0 < torn < 12
    # What was there was not asked again.
    before = [line["seconds"] for line in map(json.loads, content.splitlines()[:torn])]
    assert [line["seconds"] for line in lines(folder.predictions)[:torn]] == before


def test_more_iterations_go_on_and_other_settings_are_refused(known, whole, tmp_path, capsys) -> None:
    out = tmp_path / "loop"
    shutil.copytree(whole, out)
    assert main(arguments(known, out, "--iterations", 3)) == 0
    assert [one["iteration"] for one in json.loads((out / "star.json").read_text())["iterations"]] == [0, 1, 2, 3]
    assert (out / "iter_2" / "DONE").exists()
    capsys.readouterr()
    for option, value, named in (
        ("--fit.lr", 2e-3, "fit.lr"),
        ("--restart", "previous", "restart"),
        ("--seed", 1, "seed"),
    ):
        assert main(arguments(known, out, option, value)) == 2
        assert named in capsys.readouterr().err
    assert main(arguments(known, out, "--iterations", 3, "--data.batch_size", 2)) == 0


def test_hints_make_wrong_answers_right_and_are_no_accuracy(known, tmp_path) -> None:
    out = tmp_path / "loop"
    assert main(arguments(known, out, "--hints", "true", "--iterations", 1)) == 0
    metrics = json.loads((out / "iter_0" / "metrics.json").read_text())
    hinted = lines(out / "iter_0" / "hinted" / "predictions.jsonl")
    assert [line["id"] for line in hinted] == known.wrong and all(line["hinted"] for line in hinted)
    assert metrics["train"]["accuracy"] == 9 / 12 and metrics["hinted"]["accuracy"] is None
    made_right = metrics["hinted"]["correct"]
    assert made_right == 3 and metrics["kept"] == 11 and metrics["kept_hinted_share"] == 3 / 11
    questions = {q.id: q for q in read_commonsense_qa(known.train)}
    text = (out / "iter_0" / "correct_data.txt").read_text()
    for line in lines(out / "iter_0" / "correct.jsonl"):
        # Neither the file nor the prompt that is trained on tells the answer.
        assert line["prompt"] == build_prompt(questions[line["id"]]) in text
        assert f"{questions[line['id']].stem} (" not in text


def test_the_control_has_as_many_answers_and_wrong_ones(known, tmp_path) -> None:
    out = tmp_path / "loop"
    assert main(arguments(known, out, "--keep", "unfiltered", "--iterations", 1)) == 0
    metrics = json.loads((out / "iter_0" / "metrics.json").read_text())
    kept = lines(out / "iter_0" / "correct.jsonl")
    assert len(kept) == metrics["kept"] == 8 and not any(line["cut"] for line in kept)
    assert {line["id"] for line in kept} & set(known.wrong)
    assert metrics["kept_correct_share"] == sum(line["correct"] for line in kept) / 8 < 1


def test_restart_from_the_previous_model(known, whole, tmp_path) -> None:
    out = tmp_path / "loop"
    assert main(arguments(known, out, "--restart", "previous")) == 0
    ours, base = ((folder / "iter_1" / "checkpoint" / "model.safetensors").read_bytes() for folder in (out, whole))
    same = [(folder / "iter_0" / "checkpoint" / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert same[0] == same[1] and ours != base


def test_nothing_correct_ends_with_status_1_and_says_why(known, tmp_path, capsys) -> None:
    rows = lines(known.train)
    wrong = [row for row in rows if row["id"] in known.wrong]
    path = tmp_path / "wrong.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in wrong), encoding="utf-8")
    out = tmp_path / "loop"
    assert main(arguments(known, out, "--data.questions", path)) == 1
    error = capsys.readouterr().err
    assert "none of 3 answers is correct" in error and "100.0% name an answer, 0.0% hit the limit" in error
    assert not (out / "iter_0" / "checkpoint").exists() and not (out / "iter_0" / "correct.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--iterations", 0], "--iterations"),
        (["--fit.steps", 0], "fit.steps"),
        (["--fit.lr", "fast"], "fit.lr"),
        (["--model.base", "nowhere/at/all"], "nowhere/at/all"),
        (["--data.questions", "missing.jsonl"], "missing.jsonl"),
        (["--model.max_new_tokens", 160], "max_new_tokens 160"),
        (["--data.max_length", 161], "context of 160"),
        (["--trainer.strategy", "ddp_spawn"], "ddp_spawn"),
        (["--colour", "red"], "colour"),
        (["--restart", "never"], "restart"),
    ],
)
def test_bad_settings_are_refused_in_one_line_and_leave_nothing(known, tmp_path, capsys, options, named) -> None:
    out = tmp_path / "loop"
    assert main(arguments(known, out, *options)) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("lit-hass: error: ") and named in message, message
    assert not out.exists()


def test_memory_that_runs_out_is_said_with_a_batch_that_fits(known, whole, tmp_path, capsys, monkeypatch) -> None:
    def too_large(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    out = tmp_path / "loop"
    for owner, name, said in (
        (AutoregressiveDecoder, "generate", "--data.batch_size 2. What is answered is kept: run it again to go on."),
        (LanguageModelingModule, "training_step", "--fit.batch_size 2 needs about half; run the same command again"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, too_large)
            assert main(arguments(known, out)) == 1
        error = capsys.readouterr().err
        assert "out of memory" in error and said in error, error
    assert main(arguments(known, out)) == 0 and state(out) == state(whole)


def test_questions_in_both_files_are_refused(known, tmp_path, capsys) -> None:
    assert main(arguments(known, tmp_path / "loop", "--validation", known.train)) == 2
    assert "12 questions stand in both" in capsys.readouterr().err


def test_a_training_that_was_done_but_not_written_is_not_done_again(known, whole, tmp_path, monkeypatch) -> None:
    def full(*args: object) -> None:
        raise RunError("the disk is full")

    out = tmp_path / "loop"
    with monkeypatch.context() as patch:
        patch.setattr(passes, "write_folder", full)
        assert main(arguments(known, out)) == 1
    assert (out / "iter_0" / "training.ckpt").exists() and not (out / "iter_0" / "DONE").exists()
    assert main(arguments(known, out)) == 0
    assert state(out) == state(whole)
    figures = [json.loads((folder / "iter_0" / "metrics.json").read_text())["fit"] for folder in (out, whole)]
    assert figures[0]["loss"] == figures[1]["loss"]
