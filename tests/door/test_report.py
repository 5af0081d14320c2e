"""``lit-hass report``: the page, the table, what is refused, and nothing heavy imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_hass.records import write_json
from lit_hass.reports import compare_runs, write_comparison
from tests.door.conftest import ROOT
from tests.reports.collapse_data import metrics_dict, write_collapse_run
from tests.reports.run_folders import DRAFT, line, turn, write_run

RANK = {
    "rank": 0, "seconds": 12.5, "batches": 2, "host": {"peak_bytes": 3 * 2**20, "mean_cpus": 0.5},
    "device": {"name": "cpu", "peak_bytes": None}, "throughput": {"tokens_per_second": 8.0},
}  # fmt: skip


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """A run of both methods with everything that evaluate leaves."""
    folder = tmp_path / "evaluate"
    plain = write_run(folder / "baseline", [line(i, [turn([5, 6, 9], 2.0, prefill=0.5)]) for i in (1, 2)])
    hass = write_run(folder / "hass", [line(i, [turn([5, 6, 9], 0.5, [2], prefill=0.2)]) for i in (1, 2)], DRAFT)
    write_comparison(folder, compare_runs(plain, hass))
    write_collapse_run(plain, metrics_dict(draft=False))
    write_collapse_run(hass, metrics_dict())
    write_json(folder / "resources.json", {"ranks": [RANK]})
    return folder


def test_one_run_with_both_methods(door, evaluation: Path) -> None:
    result = door("report", evaluation)
    assert result.status == 0, result.err
    page = (evaluation / "report.html").read_text(encoding="utf-8")
    for text in (result.out, page):
        assert "baseline" in text and "GNC2 (mean)" in text and "Lossless: 2 of 2" in text
        assert "3 MiB" in text and "Resources" in text
    # What the comparison's own page had is still there.
    assert "tokens/s end to end" in page and page.count("<img") == 5
    assert str(evaluation / "report.html") in result.err


def test_two_runs_side_by_side(door, evaluation: Path, tmp_path: Path) -> None:
    other = write_collapse_run(tmp_path / "other", metrics_dict(seed=5, d=16, model="small"))
    result = door("report", evaluation / "hass", other)
    assert result.status == 0, result.err
    assert (other / "side_by_side.html").is_file()
    assert "n/c" in result.out and "features of 24 and 16 numbers" in " ".join(result.out.split())
    assert "two models: tiny-hass" in result.out or "two models: tiny and small" in " ".join(result.out.split())
    out = tmp_path / "new" / "page.html"
    result = door("report", evaluation, other, "--out", out)
    assert result.status == 0 and "evaluate/hass" in out.read_text(encoding="utf-8")
    assert "other against evaluate/baseline" in " ".join(result.out.split())


def test_a_run_without_features_is_reported_too(door, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_json(run / "resources.json", {"ranks": [RANK]})
    assert door("report", run).status == 0
    assert "No collapse metrics were collected" in (run / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        (None, None, "no such run folder"),
        ("other.json", "{}", "holds nothing to report"),
        ("collapse_metrics.json", "{", "cannot be read"),
        ("collapse_metrics.json", "[]", "JSON object"),
        ("collapse_metrics.json", "{}", "total_tokens"),
        (
            "collapse_metrics.json",
            '{"total_tokens": 3, "token_metrics": {"7": 3}}',
            "7 is a int, not an object",
        ),
        ("collapse_metrics.json", '{"total_tokens": 3, "token_metrics": {"7": {}}}', "token_metrics.7 has no num"),
        ("collapse_metrics.json", '{"total_tokens": 3, "family": {"answer": [1]}}', "family.answer is a list"),
        ("collapse_metrics.json", '{"total_tokens": 3, "chunks": [{"entropies": ["a"]}]}', "chunks[0].entropies[0]"),
        ("resources.json", '{"ranks": [1]}', "no resources that ResourceMonitor wrote"),
        ("resources.json", "{}", "no resources that ResourceMonitor wrote"),
        ("comparison.json", "{}", "no comparison"),
    ],
)
def test_bad_runs_are_refused_in_one_line(door, tmp_path: Path, name, content, named) -> None:
    run = tmp_path / "run"
    if name is not None:
        run.mkdir()
        (run / name).write_text(content, encoding="utf-8")
    result = door("report", run)
    assert result.status == 2 and named in result.err and result.err.count("\n") == 1 and str(run) in result.err
    assert result.out == "" and not list(tmp_path.rglob("*.html"))


def test_arguments(door, tmp_path: Path) -> None:
    assert door("report").status == 2
    assert "side by side" in door("report", "--help").out and "report" in door("--help").out
    run = write_collapse_run(tmp_path / "run", metrics_dict(questions=2))
    result = door("report", run, "--out", "/dev/null/x.html")
    assert result.status == 2 and "/dev/null" in result.err and result.err.count("\n") == 1
    for same in (run, tmp_path / "other" / ".." / "run"):
        (tmp_path / "other").mkdir(exist_ok=True)
        result = door("report", run, same)
        assert result.status == 2 and "is named twice" in result.err and result.err.count("\n") == 1


def test_torch_and_lightning_are_not_imported(evaluation: Path) -> None:
    heavy = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "scipy")
    code = (
        "import sys, json\nfrom lit_hass.__main__ import main\n"
        f"status = main(['report', {str(evaluation)!r}])\n"
        f"print('\\n' + json.dumps([status, [m for m in {heavy!r} if m in sys.modules]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
