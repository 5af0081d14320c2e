"""`AnswerWriter`, `GenerationStatistics` and `GenerationProgressBar` in real runs of a tiny model."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import AnswerWriter, CorrectDataWriter, GenerationProgressBar, GenerationStatistics
from lit_hass.data import QuestionDataModule
from lit_hass.errors import UserError
from lit_hass.modules import GenerationModule
from lit_hass.records import RunFolder, read_answers
from lit_hass.reports import generation_statistics


class Stop(Callback):
    """Dies behind a batch, as a kill would."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_predict_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.batch:
            raise InterruptedError


class StopBeforeMerge(Callback):
    def on_predict_epoch_end(self, trainer, pl_module):
        raise InterruptedError


@pytest.fixture
def questions(tmp_path) -> str:
    path = tmp_path / "questions.jsonl"
    lines = [
        {"question_id": i, "category": "ab"[i % 2], "turns": [f"<td>{i}</td>"], "reference": ["x"]} for i in range(5)
    ]
    lines[3]["turns"].append("again")
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return str(path)


def run(base: Path, folder: Path, questions: str, more=(), first=(), version=0, data_settings=(), **settings):
    writer, statistics = AnswerWriter(), GenerationStatistics(samples=2)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=TensorBoardLogger(folder, "run", version, default_hp_metric=False),
        callbacks=[*first, writer, statistics, *more],
        enable_progress_bar=bool([c for c in more if isinstance(c, GenerationProgressBar)]),
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    module = GenerationModule(str(base), **{"max_new_tokens": 6, "warmup": 0, **settings})
    data = QuestionDataModule(questions, **dict(data_settings))
    trainer.predict(module, datamodule=data, return_predictions=False)
    return RunFolder(folder / "run" / f"version_{version}"), writer, statistics


def what_was_said(folder: RunFolder):
    return [(a["question_id"], [c["output_ids"] for c in a["choices"]]) for a in read_answers(folder.answers)]


def test_every_question_is_answered_once_in_order(tiny_base, tmp_path, questions) -> None:
    folder, writer, _ = run(tiny_base, tmp_path, questions, data_settings={"batch_size": 2, "num_choices": 2})
    answers = read_answers(folder.answers)
    assert [a["question_id"] for a in answers] == [0, 1, 2, 3, 4] and writer.failed_ids == []
    assert [len(a["choices"]) for a in answers] == [2] * 5
    for answer in answers:
        assert answer["model_id"] == f"{tiny_base.name}-temperature-0.0"
        for choice in answer["choices"]:
            turns = 2 if answer["question_id"] == 3 else 1
            assert len(choice["turns"]) == turns and choice["accept_length"] == []
            assert choice["new_tokens"] == [len(ids) for ids in choice["output_ids"]]
            # only the first turn has a reference
            assert choice["exact_match"] == [False] + [None] * (turns - 1)
            for wall, prefill, decode in zip(
                choice["wall_time"], choice["prefill_time"], choice["decode_time"], strict=True
            ):
                assert wall == pytest.approx(prefill + decode) and prefill > 0
    assert folder.is_finished and not folder.shards()


@pytest.mark.parametrize("stop", [Stop(0), Stop(2), Stop(4), StopBeforeMerge()])
def test_a_stopped_run_is_resumed_with_nothing_lost_or_twice(tiny_base, tmp_path, questions, stop) -> None:
    whole, _, _ = run(tiny_base, tmp_path / "whole", questions)
    after = isinstance(stop, Stop)
    with pytest.raises(InterruptedError):
        run(tiny_base, tmp_path, questions, more=[stop] if after else [], first=[] if after else [stop])
    folder = RunFolder(tmp_path / "run" / "version_0")
    assert not folder.answers.exists() and folder.shards()
    kept = {json.loads(line)["answer_id"] for line in folder.shards()[0].read_bytes().splitlines()}
    assert len(kept) == (stop.batch + 1 if after else 5)
    folder, _, statistics = run(tiny_base, tmp_path, questions)
    assert what_was_said(folder) == what_was_said(whole)
    assert kept <= {a["answer_id"] for a in read_answers(folder.answers)}
    assert statistics.statistics["questions"]["answered"] == 5
    assert folder.is_finished


def test_a_finished_run_stays_as_it_is(tiny_base, tmp_path, questions) -> None:
    folder, _, _ = run(tiny_base, tmp_path, questions)
    before = folder.answers.read_bytes()
    folder, writer, statistics = run(tiny_base, tmp_path, questions)
    assert folder.answers.read_bytes() == before
    assert writer.failed_ids == [] and statistics.statistics["questions"]["answered"] == 5


def test_another_run_s_folder_is_refused_and_left_alone(tiny_base, tmp_path, questions) -> None:
    folder, _, _ = run(tiny_base, tmp_path, questions)
    before = folder.answers.read_bytes()
    with pytest.raises(UserError, match="max_new_tokens"):
        run(tiny_base, tmp_path, questions, max_new_tokens=7)
    assert folder.answers.read_bytes() == before
    run(tiny_base, tmp_path, questions, model_id="x")  # decides no answer; and the lock is free again


def test_a_failed_question_is_recorded_and_tried_again(tiny_base, tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    lines = [{"question_id": "ok", "turns": ["a"]}, {"question_id": "long", "turns": ["a", ";" * 600]}]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    for _ in range(2):
        folder, writer, statistics = run(tiny_base, tmp_path, str(path))
        assert writer.failed_ids == ["long"]
        ok, failed = read_answers(folder.answers)
        assert len(ok["choices"]) == 1
        assert failed["choices"] == [] and "context of 512" in failed["error"]
        assert statistics.statistics["questions"] == {"total": 2, "answered": 1, "failed": 1}
        shown = board(folder).Tensors("answers/long/text_summary")[0].tensor_proto.string_val[0].decode()
        assert "**failed:**" in shown


def board(folder: RunFolder) -> EventAccumulator:
    found = EventAccumulator(str(folder.path), {"tensors": 0, "scalars": 0, "histograms": 0})
    found.Reload()
    return found


def test_statistics_are_those_of_the_answers(tiny_base, tmp_path, questions, capsys) -> None:
    folder, _, statistics = run(tiny_base, tmp_path, questions)
    expected = generation_statistics(read_answers(folder.answers), {i: "ab"[i % 2] for i in range(5)})
    written = json.loads(folder.statistics.read_text())
    for key, value in expected.items():
        assert statistics.statistics[key] == value and written[key] == value
    assert written["devices"] == 1 and written["environment"]["packages"]["torch"]
    assert set(written["exact_match"]["by_category"]) == {"a", "b"}
    events = board(folder)
    scalars = set(events.Tags()["scalars"])
    assert {f"predict/{k}" for k in ("tokens_per_second", "new_tokens", "prefill_seconds", "decode_seconds")} <= scalars
    assert [e.step for e in events.Scalars("predict/new_tokens")] == [1, 2, 3, 4, 5]
    speed = events.Scalars("summary/tokens_per_second")[0].value
    assert speed == pytest.approx(expected["tokens_per_second"]["end_to_end"], rel=1e-5)
    assert {f"answers/{k}" for k in ("new_tokens", "prompt_tokens", "wall_time")} == set(events.Tags()["histograms"])
    samples = [tag for tag in events.Tags()["tensors"] if tag.startswith("answers/")]
    assert len(samples) == 2  # as many as were asked for
    printed = capsys.readouterr().out
    assert "5 of 5" in printed and "tokens per second" in printed and "0.0% (0 of 5)" in printed


def test_undefined_numbers_are_null_in_the_file(tiny_base, tmp_path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(json.dumps({"question_id": 1, "turns": ["a"]}), encoding="utf-8")
    folder, _, statistics = run(tiny_base, tmp_path, str(path), max_new_tokens=1)
    assert math.isnan(statistics.statistics["exact_match"]["share"])
    written = json.loads(folder.statistics.read_text())
    assert written["exact_match"]["share"] is None and written["tokens_per_second"]["decode_only"] is None
    assert "summary/exact_match" not in board(folder).Tags()["scalars"]


def test_statistics_need_a_writer(tiny_base, tmp_path, questions) -> None:
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, callbacks=[GenerationStatistics()])
    with pytest.raises(UserError, match="add callbacks.AnswerWriter"):
        trainer.predict(GenerationModule(str(tiny_base)), datamodule=QuestionDataModule(questions))
    with pytest.raises(UserError, match="must not be negative, found -1"):
        GenerationStatistics(samples=-1)


def test_the_bar_counts_to_the_end(tiny_base, tmp_path, questions) -> None:
    bar = GenerationProgressBar()
    run(tiny_base, tmp_path, questions, more=[bar], data_settings={"batch_size": 2})
    assert bar._tokens == 6 * 6 and bar._seconds > 0 and bar._progress is None  # 6 turns; the screen is given back


def test_a_module_that_cannot_be_resumed_is_refused(tmp_path, questions) -> None:
    class Other(LightningModule):
        pass

    trainer = Trainer(accelerator="cpu", devices=1, logger=False, default_root_dir=tmp_path)
    with pytest.raises(UserError, match="a module that has resume_settings.., not Other"):
        AnswerWriter().check(trainer, Other(), LightningDataModule())


def test_check_refuses_another_run_without_touching_it(tiny_base, tmp_path, questions) -> None:
    folder, writer, _ = run(tiny_base, tmp_path, questions)
    files = {p: p.read_bytes() for p in folder.path.iterdir()}
    trainer = Trainer(accelerator="cpu", devices=1, logger=TensorBoardLogger(tmp_path, "run", 0))
    data = QuestionDataModule(questions)
    same, other = GenerationModule(str(tiny_base), max_new_tokens=6), GenerationModule(str(tiny_base), max_new_tokens=9)
    data.check(same)
    writer.check(trainer, same, data)
    with pytest.raises(UserError, match="holds answers of another run: .*max_new_tokens"):
        writer.check(trainer, other, data)
    assert {p: p.read_bytes() for p in folder.path.iterdir()} == files


def test_a_model_s_weights_are_part_of_the_key(tiny_base, tmp_path, questions) -> None:
    import shutil

    from lit_hass.models import load_base

    run(tiny_base, tmp_path, questions)
    changed = tmp_path / "changed"
    shutil.copytree(tiny_base, changed)
    model = load_base(changed)
    with torch.no_grad():
        model.lm_head.weight[5, 5] += 1
    model.save_pretrained(changed)
    with pytest.raises(UserError, match=r"other settings .model\.base: was"):
        run(changed, tmp_path, questions)


@pytest.mark.parametrize("writer", [AnswerWriter, CorrectDataWriter])
def test_a_trial_that_took_no_folder_removes_none(writer, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("precious.txt").write_text("mine")
    trainer = Trainer(fast_dev_run=True, accelerator="cpu", logger=False, enable_progress_bar=False)
    callback = writer()
    callback.setup(trainer, None, "fit")  # a writer has nothing to do in a fit
    callback.teardown(trainer, None, "fit")
    assert Path("precious.txt").read_text() == "mine"
