"""`LengthMonitor`: what it counts in predict, evaluate and fit runs, what it logs, and what a resume adds."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import AnswerWriter, LengthMonitor
from callbacks.length_monitor import bars
from lit_hass.data import QuestionDataModule, TextDataModule
from lit_hass.errors import UserError
from lit_hass.metrics.functional.token_lengths import LengthHistogram
from lit_hass.models import DraftModel, load_base
from lit_hass.modules import EvaluationModule, GenerationModule, LanguageModelingModule
from lit_hass.records import read_answers

#: The greatest lengths differ, so that batches of two have padding.
TURNS = [["<td>1</td>"], ["<td>22</td><td>333</td>", "<td>4</td>"], ["<table><tr><td>x</td></tr></table>"], ["<b>"]]


def questions(folder: Path) -> Path:
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps({"question_id": i, "turns": t}) + "\n" for i, t in enumerate(TURNS)))
    return path


def run(folder: Path, *callbacks, **settings) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(folder, "run", 0, default_hp_metric=False),
        callbacks=list(callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        **settings,
    )


def board(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "run" / "version_0"), size_guidance={"histograms": 0, "scalars": 0}).Reload()


def test_predict_counts_what_the_answers_say(tiny_base: Path, tmp_path: Path) -> None:
    monitor = LengthMonitor(length=20)
    trainer = run(tmp_path, AnswerWriter(), monitor)
    data = QuestionDataModule(str(questions(tmp_path)), num_choices=2, batch_size=2)
    trainer.predict(GenerationModule(str(tiny_base), max_new_tokens=6, warmup=0), data, return_predictions=False)
    choices = [c for answer in read_answers(tmp_path / "run/version_0/answers.jsonl") for c in answer["choices"]]
    prompt = np.array([n for c in choices for n in c["prompt_tokens"]])
    answer = np.array([n for c in choices for n in c["new_tokens"]])
    cut = np.array([reason == "length" for c in choices for reason in c["stop_reason"]])
    assert len(prompt) == 10 and cut.any()
    # with batches of two questions: the first turns of both together, then the second turn of the one that has it
    groups = [[0, 1], [1.5], [2, 3]]
    by_turn = {0: [], 1: [], 1.5: [], 2: [], 3: []}
    for c, question in zip(choices, np.repeat(range(4), 2), strict=True):
        for turn, n in enumerate(c["prompt_tokens"]):
            by_turn[question + turn / 2].append(n)
    cells = sum(max(sum((by_turn[q] for q in group), [])) * sum(len(by_turn[q]) for q in group) for group in groups)
    written = json.loads((tmp_path / "run/version_0/lengths.json").read_text())["all"]
    scalars, found = board(tmp_path), monitor.histograms[""]
    for kind, lengths in (("prompt", prompt), ("answer", answer), ("total", prompt + answer)):
        for q, name in ((0.5, "p50"), (0.95, "p95"), (0.999, "p99.9")):
            expected = np.quantile(lengths, q, method="inverted_cdf")
            assert written[kind][name] == expected
            (event,) = scalars.Scalars(f"lengths/{kind}/{name}")
            assert (event.value, event.step) == (expected, 10)
        assert written[kind]["mean"] == pytest.approx(lengths.mean()) and written[kind]["count"] == 10
        whole = {**written[kind]["ended"]}
        for length, count in written[kind]["cut"].items():
            whole[length] = whole.get(length, 0) + count
        assert whole == {str(v): int(n) for v, n in zip(*np.unique(lengths, return_counts=True), strict=True)}
        (histogram,) = scalars.Histograms(f"lengths/{kind}")
        value = histogram.histogram_value
        assert (value.num, value.sum) == (10, lengths.sum()) and sum(value.bucket) == 10
        assert value.sum_squares == (lengths**2).sum()
        # every bar holds the lengths that lie within its edges
        edges = [value.min, *value.bucket_limit]
        heights = [int(((lengths > a) & (lengths < b)).sum()) for a, b in zip(edges[:-1], edges[1:], strict=True)]
        assert heights == [int(n) for n in value.bucket]
    assert written["answer"]["cut_rate"] == pytest.approx(cut.mean())
    assert written["prompt"]["padding_waste"] == pytest.approx(1 - prompt.sum() / cells)
    assert found["prompt"].cells == cells and math.isnan(found["answer"].observed_waste)
    total = prompt + answer
    assert written["total"]["truncation_rate"] == pytest.approx((total > 20).mean())
    assert written["total"]["fixed_waste"] == pytest.approx(1 - np.minimum(total, 20).mean() / 20)


def test_a_resumed_run_counts_everything_once(tiny_base: Path, tmp_path: Path) -> None:
    path = questions(tmp_path)
    module = {"max_new_tokens": 4, "warmup": 0}
    whole = LengthMonitor()
    run(tmp_path / "whole", whole, AnswerWriter()).predict(
        GenerationModule(str(tiny_base), **module), QuestionDataModule(str(path)), return_predictions=False
    )

    class Stopped(GenerationModule):
        def predict_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise InterruptedError
            return super().predict_step(batch, batch_idx)

    with pytest.raises(InterruptedError):
        run(tmp_path, LengthMonitor(), AnswerWriter()).predict(
            Stopped(str(tiny_base), **module), QuestionDataModule(str(path)), return_predictions=False
        )
    resumed = LengthMonitor()
    for _ in range(2):  # the second time there is nothing left to answer
        run(tmp_path, resumed, AnswerWriter()).predict(
            GenerationModule(str(tiny_base), **module), QuestionDataModule(str(path)), return_predictions=False
        )
        for kind, expected in whole.histograms[""].items():
            found = resumed.histograms[""][kind]
            assert np.array_equal(found.ended, expected.ended) and np.array_equal(found.cut, expected.cut)
            assert found.total == expected.total


def test_each_method_of_an_evaluation_is_counted(tiny_base: Path, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(draft)
    monitor = LengthMonitor()
    writers = [AnswerWriter("baseline"), AnswerWriter("hass")]
    module = EvaluationModule(str(tiny_base), str(draft), max_new_tokens=4, warmup=0, repeats=1)
    run(tmp_path, *writers, monitor).predict(
        module, QuestionDataModule(str(questions(tmp_path))), return_predictions=False
    )
    assert set(monitor.histograms) == {"baseline", "hass"}
    both = [monitor.histograms[name]["total"] for name in ("baseline", "hass")]
    assert both[0].n == both[1].n == 5 and np.array_equal(both[0].counts, both[1].counts)
    assert {"baseline/lengths/prompt/p50", "hass/lengths/answer/max"} <= set(board(tmp_path).Tags()["scalars"])


def test_fit_counts_rows_and_their_padding(tiny_base: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 60)
    data = TextDataModule([str(text)], str(tiny_base), block_size=16, batch_size=4)
    monitor = LengthMonitor(every_n_steps=2)
    run(tmp_path, monitor, max_steps=5, num_sanity_val_steps=0, limit_val_batches=0, log_every_n_steps=1).fit(
        LanguageModelingModule(base=str(tiny_base), warmup_steps=1), data
    )
    found = monitor.histograms["train"]
    assert found["total"].n == 20 and found["total"].longest == 16 and found["total"].observed_waste == 0
    assert found["prompt"].longest == 0 and found["answer"].total == found["total"].total
    steps = [event.step for event in board(tmp_path).Scalars("train/lengths/total/count")]
    assert steps == [2, 4, 5]
    last = board(tmp_path).Histograms("train/lengths/total")[-1]
    assert last.step == 5 and last.histogram_value.num == 20 and last.histogram_value.sum == found["total"].total


def test_the_prompt_of_a_training_row_is_what_is_not_scored(tmp_path: Path) -> None:
    from lit_hass.data.batches import collate

    monitor = LengthMonitor(every_n_steps=100)
    trainer = type("T", (), {"global_step": 1})()
    monitor._part("train")
    batch = collate([([5, 6, 7, 8], 3), ([5, 6], 1), ([5, 6, 7], 3)])
    monitor.on_train_batch_end(trainer, None, None, batch, 0)
    metrics = monitor._metrics["train"]
    assert metrics["prompt"].histogram().counts[:5].tolist() == [0, 1, 0, 2, 0]
    assert metrics["answer"].histogram().counts[:3].tolist() == [1, 2, 0]
    assert metrics["total"].histogram().observed_waste == pytest.approx(1 - 9 / 12)
    with pytest.raises(UserError, match="batches are Tensor"):
        monitor.on_train_batch_end(trainer, None, None, torch.zeros(2, 2), 0)


@pytest.mark.parametrize("name", ["cap", "every_n_steps", "length"])
def test_settings_are_refused_by_name(name: str) -> None:
    with pytest.raises(UserError, match=name):
        LengthMonitor(**{name: 0})


@pytest.mark.parametrize(("lengths", "cap"), [([7], 100), ([0, 500, 1000], 5000), ([3, 4, 90], 10), ([90, 95], 10)])
def test_bars_lose_nothing(lengths, cap) -> None:
    found = LengthHistogram.of(lengths, cap=cap)
    drawn = bars(found)
    assert sum(drawn["bucket_counts"]) == len(lengths) and len(drawn["bucket_counts"]) <= 65
    assert drawn["bucket_limits"] == sorted(drawn["bucket_limits"]) and drawn["bucket_limits"][-1] == drawn["max"]
    assert drawn["min"] < min(min(lengths), cap + 1) and drawn["sum"] == sum(lengths)
    if max(lengths) <= cap:
        assert drawn["sum_squares"] == sum(n * n for n in lengths)
