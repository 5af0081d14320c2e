"""Two ranks, kills, signals: a run's collapse metrics are those of plain forwards over its answers all the same."""

import json
import os
import signal

import pytest

from lit_hass.models import DraftModel, load_base
from tests.callbacks.collapse_runs import RUN, arguments, ask, assert_equal, config_file, offline, read
from tests.door.conftest import ROOT, lines, process  # noqa: F401  # a fixture

DDP = ("-c", str(ROOT / "configs" / "trainer" / "ddp.yaml"))
VERSION = ("--trainer.logger.init_args.version", 0)


@pytest.fixture(scope="module")
def draft(tiny_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("drafts") / "draft"
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(path)
    return ["--model.draft", path, "--model.tree.total_tokens", 8, "--model.tree.depth", 3, "--model.tree.top_k", 3]


def check(tmp_path, base, path, questions):
    metrics = read(tmp_path / RUN)
    assert_equal(metrics, *offline(base, path, tmp_path / RUN / "answers.jsonl"))
    assert metrics["counts"]["questions"] == questions
    assert not list((tmp_path / RUN).rglob("*.lit-hass-tmp")) and not list((tmp_path / RUN).glob("*.partial*"))
    return metrics


def answered(folder) -> int:
    return sum(path.read_bytes().count(b"\n") for path in folder.glob("answers.rank*.jsonl"))


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("questions", "batch", "drafts"),
    [(5, 4, True), pytest.param(1, 1, False, marks=pytest.mark.slow), pytest.param(7, 1, True, marks=pytest.mark.slow),
     pytest.param(7, 4, False, marks=pytest.mark.slow)],
)  # fmt: skip
def test_two_ranks_one_of_them_with_less_or_nothing(process, tiny_base, tmp_path, draft, questions, batch, drafts):  # noqa: F811
    path = ask(tmp_path, questions)
    more = draft if drafts else []
    run = process(arguments(tiny_base, path, config_file(tmp_path), "--data.batch_size", batch, *DDP, *more))
    assert run.wait() == 0, run.text()
    metrics = check(tmp_path, tiny_base, path, questions)
    assert metrics["meta"]["world_size"] == 2 and (metrics["states"]["accepted"]["rows"] > 0) <= drafts


@pytest.mark.ddp
@pytest.mark.parametrize(
    ("worlds", "batch", "drafts"),
    [((1, 1, 1), 1, True), pytest.param((2, 1, 2), 4, True, marks=pytest.mark.slow),
     pytest.param((1, 2), 1, False, marks=pytest.mark.slow), pytest.param((2, 2), 4, False, marks=pytest.mark.slow)],
)  # fmt: skip
def test_killed_and_resumed(process, tiny_base, tmp_path, draft, worlds, batch, drafts):  # noqa: F811
    """SIGKILL to all processes, again and again; the number of processes may change."""
    total = 40
    path = ask(tmp_path, total)
    args = arguments(tiny_base, path, config_file(tmp_path), "--data.batch_size", batch, *VERSION)
    args += draft if drafts else []
    before = 0
    for world in worlds[:-1]:
        run = process([*args, *(DDP if world == 2 else ())])
        run.wait_for(lambda before=before: answered(tmp_path / RUN) >= before + 6)
        run.kill()
        before = answered(tmp_path / RUN)
        assert before < total
    run = process([*args, *(DDP if worlds[-1] == 2 else ())])
    assert run.wait() == 0, run.text()
    check(tmp_path, tiny_base, path, total)
    # Resumed once more with nothing to do: the same numbers.
    first = read(tmp_path / RUN)
    again = process(args)
    assert again.wait() == 0, again.text()
    second = check(tmp_path, tiny_base, path, total)
    assert first["token_metrics"].keys() == second["token_metrics"].keys() and first["chunks"] == second["chunks"]


@pytest.mark.parametrize("which", ["SIGINT", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_a_signal_ends_in_order_and_the_run_resumes(process, tiny_base, tmp_path, which):  # noqa: F811
    path = ask(tmp_path, 60)
    args = arguments(tiny_base, path, config_file(tmp_path), *VERSION)
    run = process(args)
    run.wait_for(lambda: answered(tmp_path / RUN) >= 3)
    os.kill(run.process.pid, getattr(signal, which))
    assert run.wait() == (130 if which == "SIGINT" else -signal.SIGTERM), run.text()
    assert "Traceback" not in run.text()
    features = tmp_path / RUN / "features"
    assert (features / "rank0.journal").stat().st_size > 0 and not list(features.glob("*.lit-hass-tmp"))
    if which == "SIGINT":  # what was measured is written
        partial = json.loads((tmp_path / RUN / "collapse_metrics.partial.json").read_text())
        assert partial["meta"]["complete"] is False and partial["counts"]["questions"] >= 3
        assert partial["overall_metrics"]["svd_entropy"] > 0
    again = process(args)
    assert again.wait() == 0, again.text()
    assert len(lines(tmp_path / RUN / "answers.jsonl")) == 60
    check(tmp_path, tiny_base, path, 60)
