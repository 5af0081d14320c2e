"""``lit-hass compare``: exit statuses, files, refusals in one line, and nothing heavy imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.door.conftest import ROOT
from tests.reports.run_folders import DRAFT, line, original_line, turn, write_lines_to, write_run

FILES = {"comparison.json", "comparison.md", "comparison.png", "report.html", "run.json"}


@pytest.fixture
def runs(tmp_path: Path):
    """``runs(last_token, **settings)``: a baseline and a run with a draft, whose last answers end with a token."""

    def make(last: int = 9, **settings) -> tuple[Path, Path]:
        plain = [line(i, [turn([5, 6, 7, 9], 2.0, prefill=0.5)]) for i in (1, 2)]
        hass = [line(i, [turn([5, 6, 7, 9 if i == 1 else last], 0.5, [2], prefill=0.25)]) for i in (1, 2)]
        one = write_run(tmp_path / "baseline", plain)
        return one, write_run(tmp_path / "hass", hass, {**DRAFT, **settings})

    return make


def test_a_fair_lossless_pair(door, runs) -> None:
    one, other = runs()
    result = door("compare", one, other)
    assert result.status == 0 and "4.00x the baseline's tokens per second" in result.out
    assert "Lossless: 2 of 2" in result.out
    assert {path.name for path in (other / "comparison").iterdir()} == FILES
    assert str(other / "comparison") in result.err


def test_lost_tokens_make_the_status_1_and_the_files_are_there(door, runs, tmp_path: Path) -> None:
    one, other = runs(last=8)
    result = door("compare", one, other, "--out", tmp_path / "out")
    assert result.status == 1 and "NOT LOSSLESS" in result.out and "not lossless" in result.err
    found = json.loads((tmp_path / "out" / "comparison.json").read_text(encoding="utf-8"))
    assert found["lossless"] is False and not (other / "comparison").exists()


def test_lost_tokens_in_half_precision_are_shown_and_no_failure(door, tmp_path: Path) -> None:
    lines = [[line(1, [turn([5, last], 1.0, accepted, prefill=0.5)])] for last, accepted in ((6, []), (7, [1]))]
    one = write_run(tmp_path / "baseline", lines[0], {"dtype": "bfloat16"})
    other = write_run(tmp_path / "hass", lines[1], {**DRAFT, "dtype": "bfloat16"})
    result = door("compare", one, other)
    assert result.status == 0 and "Losslessness not judged: 0 of 1" in result.out


def test_an_unfair_pair_is_refused_in_one_line_and_nothing_is_written(door, runs, tmp_path: Path) -> None:
    one, other = runs(max_new_tokens=9, temperature=0.5)
    result = door("compare", one, other, "--out", tmp_path / "out")
    assert result.status == 2 and result.out == "" and not (tmp_path / "out").exists()
    assert result.err.count("\n") == 1 and result.err.startswith("lit-hass: error:")
    assert "model.max_new_tokens: 64 against 9" in result.err and "model.temperature: 0.0 against 0.5" in result.err


def test_a_folder_with_files_of_somebody_else_is_left_alone(door, runs, tmp_path: Path) -> None:
    one, other = runs()
    mine = other / "comparison" / "report.html"
    mine.parent.mkdir()
    mine.write_text("mine")
    result = door("compare", one, other)
    assert result.status == 2 and "no run wrote (report.html)" in result.err and "--out" in result.err
    assert mine.read_text() == "mine" and list(mine.parent.iterdir()) == [mine]
    for _ in range(2):  # what compare has written it may write anew
        assert door("compare", one, other, "--out", tmp_path / "out").status == 0
    (tmp_path / "out" / "run.json").unlink()  # as before there were marks
    assert door("compare", one, other, "--out", tmp_path / "out").status == 0
    (tmp_path / "out" / "run.json").unlink()
    (tmp_path / "out" / "mine").touch()
    assert door("compare", one, other, "--out", tmp_path / "out").status == 2


def test_an_unfair_pair_is_compared_when_allowed(door, runs) -> None:
    result = door("compare", *runs(max_new_tokens=9), "--allow-differences")
    assert result.status == 0 and "DIFFERENCE model.max_new_tokens" in result.out and "No headline" in result.out


def test_files_of_the_original_scripts(door, tmp_path: Path) -> None:
    choice = {"index": 0, "turns": ["x"], "idxs": [1], "new_tokens": [4], "wall_time": [0.5], "accept_length": [1, 1]}
    one = write_lines_to(tmp_path / "base.jsonl", [original_line(81, {**choice, "wall_time": [1.0]}, drafted=False)])
    other = write_lines_to(tmp_path / "ea.jsonl", [original_line(81, choice)])
    assert door("compare", one, other).status == 2
    result = door("compare", one, other, "--allow-differences")
    assert result.status == 0 and "2.00x" in result.out
    assert {path.name for path in (tmp_path / "comparison").iterdir()} == FILES


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--out", "/dev/null/x"), "/dev/null"),
    ],
)
def test_bad_arguments_are_one_line(door, runs, more, named) -> None:
    result = door("compare", *runs(), *more)
    assert result.status == 2 and named in result.err and result.err.count("\n") == 1


def test_missing_arguments_and_runs(door, tmp_path: Path) -> None:
    assert door("compare").status == 2
    result = door("compare", tmp_path / "a", tmp_path / "b")
    assert result.status == 2 and "no such run folder" in result.err and result.err.count("\n") == 1
    help_text = door("compare", "--help")
    assert help_text.status == 0 and "--allow-differences" in help_text.out
    assert "compare" in door("--help").out


def test_torch_and_lightning_are_not_imported(runs) -> None:
    one, other = map(str, runs())
    heavy = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "scipy.stats")
    code = (
        "import sys, json\nfrom lit_hass.__main__ import main\n"
        f"status = main(['compare', {one!r}, {other!r}])\n"
        f"print('\\n' + json.dumps([status, [m for m in {heavy!r} if m in sys.modules]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]


def test_a_key_that_stands_twice_is_refused_by_file_and_line(door, runs) -> None:
    one, other = runs()
    path = other / "answers.jsonl"
    first, second = path.read_text(encoding="utf-8").splitlines()
    path.write_text(f'{first}\n{second[:-1]}, "tstamp": 2.0}}\n', encoding="utf-8")
    result = door("compare", one, other)
    assert result.status == 2 and f"{path}:2: the key 'tstamp' stands twice" in result.err


def test_numbers_that_no_run_can_have_are_refused_by_name(door, runs) -> None:
    one, other = runs()
    path = other / "statistics.json"
    kept = path.read_text(encoding="utf-8")
    path.write_text(json.dumps({**json.loads(kept), "exact_match": {"share": 7.0}}), encoding="utf-8")
    for command in (("compare", one, other), ("report", other)):
        result = door(*command)
        assert result.status == 2 and f"{path}: exact_match.share is 7.0, not a number from 0 to 1" in result.err
    path.write_text(kept, encoding="utf-8")
    line = json.loads((other / "answers.jsonl").read_text(encoding="utf-8").splitlines()[0])
    line["choices"][0] |= {"accept_length": [12], "accept_lengths": [[12]]}
    write_lines_to(other / "answers.jsonl", [line])
    result = door("compare", one, other)
    assert result.status == 2 and "question 1 has a step that accepted 12 draft tokens" in result.err
