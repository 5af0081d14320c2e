"""``lit-hass evaluate`` as a user runs it: both methods on a tiny random pair, in one process and in two."""

import json
import statistics
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_hass.cli import EVALUATE
from lit_hass.models import DraftConfig, DraftModel, load_base, load_tokenizer
from tests.door.conftest import ROOT, lines, tokens

RUN = Path("logs/evaluate/version_0")


@pytest.fixture(scope="session")
def tiny_draft(tiny_base, tmp_path_factory):
    """A random draft of `tiny_base`; do not change it."""
    folder = tmp_path_factory.mktemp("tiny_draft")
    torch.manual_seed(3)
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(folder)
    return folder


def pair(base, draft):
    return [
        "evaluate", "--model.base", base, "--model.draft", draft, "--model.max_new_tokens", 12,
        "--model.tree.total_tokens", 6, "--model.tree.depth", 2, "--model.tree.top_k", 3,
        "--trainer.accelerator", "cpu",
    ]  # fmt: skip


@pytest.fixture
def evaluate(door, tiny_base, tiny_draft):
    """``evaluate(*options)`` on the tiny pair, with a narrow tree and short answers."""
    return lambda *more: door(*pair(tiny_base, tiny_draft), *more)


def speed_script(draft_file, baseline_file, tokenizer):
    """``speed.py`` of EAGLE: the draft file's own counts, the baseline's texts read again, means over questions."""
    means = []
    for file, again in ((draft_file, False), (baseline_file, True)):
        speeds = []
        for answer in lines(file):
            choice = answer["choices"][0]
            tokens = sum(choice["new_tokens"])
            if again:
                tokens = sum(len(tokenizer(text).input_ids) - 1 for text in choice["turns"])
            speeds.append(tokens / sum(choice["wall_time"]))
        means.append(sum(speeds) / len(speeds))
    return means[0] / means[1]


def test_both_methods_are_written_and_compared(evaluate, questions, tiny_base):
    result = evaluate("--data.questions", questions(3), "--model.repeats", 3)
    assert result.status == 0, result.err
    assert tokens(RUN / "baseline" / "answers.jsonl") == tokens(RUN / "hass" / "answers.jsonl")
    comparison = json.loads((RUN / "comparison.json").read_text())
    assert comparison["lossless"] is True and comparison["same_distribution"] is True
    totals = {}
    for method in ("baseline", "hass"):
        answers = lines(RUN / method / "answers.jsonl")
        choices = [answer["choices"][0] for answer in answers]
        for choice in choices:
            assert len(choice["wall_times"][0]) == 3
            # On a CPU the processor's time decides which of the repetitions stands for all.
            assert choice["processor_time"][0] == statistics.median(choice["processor_times"][0]) > 0
            place = choice["processor_times"][0].index(choice["processor_time"][0])
            assert choice["wall_time"][0] == choice["wall_times"][0][place]
            assert bool(choice["accept_length"]) == (method == "hass")
        totals[method] = sum(c["new_tokens"][0] for c in choices) / sum(c["processor_time"][0] for c in choices)
        assert all(answer["load"] >= 0 for answer in answers)
        assert json.loads((RUN / method / "statistics.json").read_text())["questions"]["answered"] == 3
    files = (RUN / method / "answers.jsonl" for method in ("hass", "baseline"))
    theirs = speed_script(*files, load_tokenizer(tiny_base))
    assert comparison["speed"]["original"]["ratio"] == pytest.approx(theirs) and "(original)" in result.out
    assert comparison["headline"]["clock"] == "processor" and "processor second" in result.out
    assert comparison["headline"]["speedup"] == pytest.approx(totals["hass"] / totals["baseline"], rel=1e-6)
    accepted = [a for line in lines(RUN / "hass" / "answers.jsonl") for a in line["choices"][0]["accept_length"]]
    expected = sum(a + 1 for a in accepted) / len(accepted)
    assert comparison["acceptance"]["hass"]["micro"] == pytest.approx(expected)
    for name in ("comparison.md", "comparison.png", "report.html", "config.yaml"):
        assert (RUN / name).stat().st_size > 0
    assert "Lossless" in result.out and "acceptance length" in result.out
    board = EventAccumulator(str(RUN), size_guidance={"scalars": 0})
    board.Reload()
    assert board.Scalars("comparison/speedup")[0].value == pytest.approx(comparison["headline"]["speedup"], rel=1e-5)
    assert {"baseline/predict/tokens_per_second", "hass/predict/acceptance_length"} <= set(board.Tags()["scalars"])


def test_sampled_answers_are_the_baseline_s_too(evaluate, questions):
    sampling = ("--model.sampling.temperature", 1.0, "--model.sampling.top_p", 0.9, "--data.num_choices", 2)
    result = evaluate("--data.questions", questions(2), "--model.repeats", 1, *sampling, "--data.batch_size", 2)
    assert result.status == 0, result.err
    found = tokens(RUN / "hass" / "answers.jsonl")
    assert tokens(RUN / "baseline" / "answers.jsonl") == found
    assert any(first != second for first, second in found.values())


#: Ends the process, as a kill would, after the baseline has written its third answer and before the draft has.
DIES = """
import os, sys
from callbacks import AnswerWriter
write = AnswerWriter.on_predict_batch_end
def dies(self, trainer, module, outputs, batch, batch_idx, *more):
    if self.method == "hass" and batch_idx == 2:
        os._exit(9)
    write(self, trainer, module, outputs, batch, batch_idx, *more)
AnswerWriter.on_predict_batch_end = dies
from lit_hass.__main__ import main
main(sys.argv[1:])
"""


def test_a_killed_run_goes_on_where_a_method_is_missing(evaluate, process, questions, tiny_base, tiny_draft):
    asked = questions(3)
    options = ("--data.questions", asked, "--model.repeats", 1)
    logs = ("--trainer.logger.init_args.save_dir", Path("logs").absolute())
    killed = process([*pair(tiny_base, tiny_draft), *options, *logs], ["-c", DIES])
    assert killed.wait() == 9, killed.text()
    kept = [len(path.read_text().splitlines()) for path in sorted(RUN.glob("*/answers.rank0.jsonl"))]
    assert kept == [3, 2] and not (RUN / "comparison.json").exists()
    before = lines(RUN / "baseline" / "answers.rank0.jsonl")
    again = evaluate(*options, "--trainer.logger.init_args.version", 0)
    assert again.status == 0, again.err
    assert "2 of 3 questions are answered" in again.err
    after = lines(RUN / "baseline" / "answers.jsonl")
    assert [a["answer_id"] for a in after[:2]] == [b["answer_id"] for b in before[:2]]
    assert len(after) == 3 and len(lines(RUN / "hass" / "answers.jsonl")) == 3
    # Each question's features count once, as in a run that nothing disturbed.
    assert evaluate(*options).status == 0
    for method in ("baseline", "hass"):
        resumed, whole = (
            json.loads((run / method / "collapse_metrics.json").read_text())
            for run in (RUN, RUN.with_name("version_1"))
        )
        assert resumed["total_tokens"] == whole["total_tokens"] and resumed["meta"]["questions"] == 3
        assert resumed["overall_metrics"]["svd_entropy"] == pytest.approx(whole["overall_metrics"]["svd_entropy"], 1e-9)


def test_other_settings_are_refused_on_resume(evaluate, questions):
    asked = questions(1)
    assert evaluate("--data.questions", asked, "--model.repeats", 1).status == 0
    again = ("--trainer.logger.init_args.version", 0, "--model.repeats", 1, "--data.questions", asked)
    result = evaluate(*again, "--model.tree.depth", 1)
    assert result.status == 2 and "tree.depth: was 2, now 1" in result.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model.repeats", 0), "model.repeats must be at least 1"),
        (("--model.tree.top_k", 0), "tree.top_k must be at least 1"),
        (("--model.tree.total_tokens", 0), "tree.total_tokens must be at least 1"),
        (("--model.tree.top_k", 5000), "tree.top_k is 5000, the vocabulary has"),
        (("--model.draft", "nowhere"), "nowhere: no such draft"),
        (("--model.draft", "null"), "model.draft is needed"),
        (("--model.draft", "html_to_tsv"), "is the draft of the shipped base html_to_tsv, not of"),
        (("--trainer.callbacks+", "callbacks.AnswerWriter"), "AnswerWriter.method is None"),
    ],
)
def test_bad_input_is_one_line(evaluate, questions, options, message):
    result = evaluate("--data.questions", questions(1), *options)
    assert result.status == 2, result.err
    assert message in result.err.strip().splitlines()[-1]


def test_a_draft_of_another_base(door, tiny_base, tmp_path, questions):
    config = DraftConfig(16, 24, 2, 2, 8, 99)
    DraftModel(config).save_pretrained(tmp_path / "other")
    result = door(
        "evaluate", "--model.base", tiny_base, "--model.draft", tmp_path / "other", "--data.questions", questions(1)
    )
    assert result.status == 2 and "hidden size is 16" in result.err
    assert not Path("logs").exists()  # refused before anything is written


def test_a_part_of_a_tree_is_refused(door, tiny_base, tiny_draft, questions):
    """Neither the shipped pair's chain nor the published tree lends its other numbers to it."""
    given = ("evaluate", "--model.base", tiny_base, "--model.draft", tiny_draft, "--data.questions", questions(1))
    result = door(*given, "--model.tree.total_tokens", 60)
    assert result.status == 2 and "without depth, top_k" in result.err and len(result.err.strip().splitlines()) == 1
    assert not Path("logs").exists()


@pytest.mark.ddp
def test_two_processes_share_the_questions(process, tiny_base, tiny_draft, questions, tmp_path):
    run = process(
        ["evaluate", "--model.base", tiny_base, "--model.draft", tiny_draft, "--model.max_new_tokens", 8,
         "--model.repeats", 1, "--data.questions", questions(3), "--trainer.accelerator", "cpu",
         "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    )  # fmt: skip
    assert run.wait() == 0, run.text()
    folder = tmp_path / RUN
    assert tokens(folder / "baseline" / "answers.jsonl") == tokens(folder / "hass" / "answers.jsonl")
    assert json.loads((folder / "comparison.json").read_text())["joined"]["questions"] == 3


def test_the_config_is_the_package_s():
    """``configs/evaluate.yaml`` shows what ``lit-hass evaluate`` begins with anyway."""
    shown = yaml.safe_load((ROOT / "configs" / "evaluate.yaml").read_text(encoding="utf-8"))
    assert shown == yaml.safe_load(EVALUATE.read_text(encoding="utf-8"))


def test_a_precision_of_the_trainer_is_refused_before_anything_is_made(evaluate, questions):
    for precision in ("bf16-mixed", "16-true"):
        result = evaluate("--data.questions", questions(1), "--trainer.precision", precision)
        assert result.status == 2 and "--model.dtype" in result.err and len(result.err.splitlines()) == 1
    assert not Path("logs").exists()
