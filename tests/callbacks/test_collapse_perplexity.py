"""Collapse metrics of plain text: those of one plain forward over each window, whatever the batch and the ranks."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_hass.features import special_ids
from lit_hass.modules.window_scorer import WindowScorer
from tests.callbacks.collapse_runs import CALLBACKS, config_file
from tests.door.conftest import ROOT, door, process  # noqa: F401  # fixtures
from tests.features.plain_metrics import assert_plain, entropy, plain_metrics
from tests.perplexity_bases import make_base, write_text

RUN = Path("logs/perplexity/version_0")
CONFIG = ROOT / "configs" / "perplexity.yaml"
WINDOW = 32


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", pages=4)


@pytest.fixture(scope="module")
def expected(base, text):
    """Wanda's windows by hand: rows joined by blank lines, the rest dropped, a plain forward each."""
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base, dtype="float64")
    lines = text.read_text(encoding="utf-8").splitlines(keepends=True)
    # The published data set has rows without even a newline for blank lines.
    ids = tokenizer("\n\n".join(line if line.strip() else "" for line in lines))["input_ids"]
    rows, targets, chunks = [], [], {}
    for window in range(len(ids) // WINDOW):
        part = torch.tensor([ids[window * WINDOW : (window + 1) * WINDOW]])
        with torch.no_grad():
            hidden = model(part, output_hidden_states=True).hidden_states[-1][0, :-1]
        rows.append(hidden)
        targets.append(part[0, 1:])
        chunks[f"window {window}"] = [entropy(piece) for piece in hidden.tensor_split(5)]
    head = model.lm_head.weight.detach()
    return plain_metrics(torch.cat(rows), torch.cat(targets), head, special_ids(tokenizer)), chunks


def arguments(base, text, folder, *more):
    return [
        "test", "-c", CONFIG, "-c", config_file(folder), "--model.base", base, "--model.dtype", "float64",
        "--data.path", text, "--data.protocols", "[wanda]", "--data.window", WINDOW, "--data.ladder", "none",
        "--trainer.accelerator", "cpu", *more,
    ]  # fmt: skip


def check(run, expected):
    metrics = json.loads((run / "dump.json").read_text())
    plain, chunks = expected
    assert_plain(metrics, "overall", plain)
    assert_plain(metrics, "prompt", plain)
    assert metrics["counts"]["questions"] == metrics["counts"]["sequences"] == len(chunks)
    assert metrics["states"]["prompt"]["rows"] == metrics["counts"]["rows_in_statistics"] == plain["total_tokens"]
    found = {chunk["question_id"]: chunk["entropies"] for chunk in metrics["chunks"]}
    assert found.keys() == chunks.keys() and not list(run.glob("*.partial*"))
    for name, values in chunks.items():
        assert found[name] == pytest.approx(values, abs=1e-6)


@pytest.mark.parametrize("batch_tokens", [WINDOW, 4 * WINDOW])
def test_windows_one_by_one_or_together(door, base, text, tmp_path, expected, batch_tokens):  # noqa: F811
    result = door(*arguments(base, text, tmp_path, "--data.batch_tokens", batch_tokens))
    assert result.status == 0, result.err
    check(RUN, expected)


@pytest.mark.ddp
def test_two_ranks(process, base, text, tmp_path, expected):  # noqa: F811
    ddp = ("-c", str(ROOT / "configs" / "trainer" / "ddp.yaml"))
    run = process(arguments(base, text, tmp_path, "--data.batch_tokens", 4 * WINDOW, *ddp))
    assert run.wait() == 0, run.text()
    check(tmp_path / RUN, expected)


STOPS = """
    - class_path: tests.callbacks.collapse_stop.Stop
      init_args: {batch: 3}
"""


def test_a_run_that_fails_leaves_what_it_measured(door, base, text, tmp_path, expected):  # noqa: F811
    file = config_file(tmp_path)
    args = arguments(base, text, tmp_path, "--data.batch_tokens", WINDOW)
    file.write_text(file.read_text() + STOPS.removeprefix("\n"), encoding="utf-8")
    result = door(*args)
    assert result.status == 1 and "told to fail" in result.err
    assert "wrote the collapse metrics of 4 questions" in result.err
    partial = json.loads((RUN / "collapse_metrics.partial.json").read_text())
    assert partial["meta"]["complete"] is False and partial["counts"]["questions"] == 4
    assert partial["total_tokens"] == partial["counts"]["rows_in_statistics"] > 0
    assert not list(RUN.rglob("*.lit-hass-tmp"))


@pytest.fixture
def stopped(door, monkeypatch):  # noqa: F811
    """Run a command that the keyboard stops behind so many batches."""

    def run(*args, batches):
        score, left = WindowScorer.__call__, iter(range(batches))

        def until(self, batch):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return score(self, batch)

        with monkeypatch.context() as patch:
            patch.setattr(WindowScorer, "__call__", until)
            assert door(*args).status == 130

    return run


def test_a_stopped_run_resumes_with_the_features_of_each_window_once(door, base, text, tmp_path, expected, stopped):  # noqa: F811
    args = [*arguments(base, text, tmp_path, "--data.batch_tokens", WINDOW), "--trainer.logger.init_args.version", 0]
    for batches in (2, 3):
        stopped(*args, batches=batches)
    journal = RUN / "features" / "rank0.journal"
    assert journal.stat().st_size > 0
    result = door(*args)
    assert result.status == 0, result.err
    check(RUN, expected)


def test_windows_scored_without_features_are_not_left_out_in_silence(door, base, text, tmp_path, stopped):  # noqa: F811
    args = [*arguments(base, text, tmp_path, "--data.batch_tokens", WINDOW), "--trainer.logger.init_args.version", 0]
    plain = [part for place, part in enumerate(args) if place not in (3, 4)]
    stopped(*plain, batches=2)
    result = door(*args)
    assert result.status in (1, 2) and "features" in result.err and "begin a new" in result.err
    config_file(tmp_path, CALLBACKS.replace("    - class_path: callbacks.FeatureBuffer\n", ""))
    result = door(*args)
    assert result.status == 2 and "2 windows are scored already, and only a FeatureBuffer" in result.err
