"""What goes wrong in a run: it goes on as configured, or ends with a message; nothing is lost or counted twice."""

import json
import os

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.features.journal import Journal
from tests.callbacks.collapse_runs import RUN, arguments, ask, assert_equal, config_file, offline, read
from tests.door.conftest import door, lines  # noqa: F401  # fixtures

VERSION = ("--trainer.logger.init_args.version", 0)
SETTINGS = "{max_samples_per_class: 4096"


def change_generation(monkeypatch, change):
    """``change(call, generations)`` sees what the decoder gives with features, call by call."""
    real, calls = AutoregressiveDecoder.generate, []

    def generate(self, *args, **kwargs):
        found = real(self, *args, **kwargs)
        if found[0].features is not None:
            change(len(calls), found)
            calls.append(1)
        return found

    monkeypatch.setattr(AutoregressiveDecoder, "generate", generate)


def rows_of_one(call, found):
    if call == 3:  # the first is the proof before the first answer
        found[0].features.features[3:5] = torch.nan


def test_features_that_are_not_finite_in_one_question(door, tiny_base, tmp_path, monkeypatch):  # noqa: F811
    path = ask(tmp_path, 5)
    with monkeypatch.context() as patch:
        change_generation(patch, rows_of_one)
        result = door(*arguments(tiny_base, path, config_file(tmp_path), *VERSION))
    assert result.status == 0, result.err
    metrics = read(RUN)
    assert metrics["counts"]["n_nonfinite"] + metrics["counts"]["n_special"] >= 2
    assert metrics["counts"]["n_nonfinite"] > 0 and metrics["counts"]["questions"] == 5
    assert metrics["overall_metrics"]["gnc2"] is not None and "not finite" in result.err


def test_features_that_are_not_finite_may_end_the_run_which_resumes(door, tiny_base, tmp_path, monkeypatch):  # noqa: F811
    path, file = ask(tmp_path, 5), config_file(tmp_path)
    file.write_text(file.read_text().replace(SETTINGS, SETTINGS + ", nan_strategy: error"), encoding="utf-8")
    args = arguments(tiny_base, path, file, *VERSION)
    with monkeypatch.context() as patch:
        change_generation(patch, rows_of_one)
        result = door(*args)
    assert result.status == 1 and "12, 0, 0: 2 feature rows are not finite" in result.err
    assert "Traceback" not in result.err
    assert json.loads((RUN / "collapse_metrics.partial.json").read_text())["counts"]["questions"] == 2
    result = door(*args)
    assert result.status == 0, result.err
    assert_equal(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl"))
    assert not (RUN / "collapse_metrics.partial.json").exists()


def test_a_question_that_fails_is_counted_and_has_no_rows(door, tiny_base, tmp_path):  # noqa: F811
    path = ask(tmp_path, 5)
    objects = lines(path)
    objects[3]["turns"] = ["beta", "beta " * 600]  # the second one outgrows the context
    path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    args = arguments(tiny_base, path, config_file(tmp_path), *VERSION)
    for _ in range(2):  # asked again, and counted once
        result = door(*args)
        assert result.status == 1, result.err
        metrics = read(RUN)
        assert metrics["counts"]["questions"] == 4 and metrics["counts"]["questions_failed"] == 1
        assert {chunk["question_id"] for chunk in metrics["chunks"]} == {10, 11, 12, 14}


STOPS = "    - class_path: tests.callbacks.collapse_stop.Stop\n      init_args: {batch: 2}\n"


def test_an_exception_writes_what_was_measured_and_the_run_resumes(door, tiny_base, tmp_path):  # noqa: F811
    path, file = ask(tmp_path, 6), config_file(tmp_path)
    args, whole = arguments(tiny_base, path, file, *VERSION), file.read_text()
    file.write_text(whole + STOPS, encoding="utf-8")
    result = door(*args)
    assert result.status == 1 and "told to fail" in result.err and "collapse metrics of 3 questions" in result.err
    assert json.loads((RUN / "collapse_metrics.partial.json").read_text())["meta"]["complete"] is False
    file.write_text(whole, encoding="utf-8")
    result = door(*args)
    assert result.status == 0, result.err
    assert_equal(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl"))


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_damaged_file_is_named_before_anything_is_asked(door, tiny_base, tmp_path, damage):  # noqa: F811
    path, file = ask(tmp_path, 6), config_file(tmp_path)
    file.write_text(file.read_text().replace("4096", "null"), encoding="utf-8")  # all rows, on disk
    args = arguments(tiny_base, path, file, *VERSION)
    assert door(*args).status == 0
    shard = RUN / "features" / "kept.rank0.rows"
    content, answers = shard.read_bytes(), (RUN / "answers.jsonl").read_bytes()
    shard.unlink() if damage == "gone" else shard.write_bytes(content[: len(content) // 2])
    result = door(*args)
    assert result.status == 1 and "kept.rank0.rows" in result.err and "Traceback" not in result.err
    assert (RUN / "answers.jsonl").read_bytes() == answers
    shard.write_bytes(content)
    assert door(*args).status == 0
    assert_equal(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl"))


def test_a_resume_that_is_refused_leaves_the_spilled_rows(door, tiny_base, tmp_path):  # noqa: F811
    path, file = ask(tmp_path, 4), config_file(tmp_path)
    file.write_text(file.read_text().replace("4096", "null"), encoding="utf-8")  # all rows, on disk
    args = arguments(tiny_base, path, file, *VERSION)
    assert door(*args).status == 0
    answers, shard = RUN / "answers.jsonl", RUN / "features" / "kept.rank0.rows"
    content, rows = answers.read_bytes(), shard.read_bytes()
    # Found out when the rows are taken over already.
    answers.write_bytes(b"".join(content.splitlines(keepends=True)[:-1]))
    result = door(*args)
    assert result.status == 1 and "1 questions that have no answer" in result.err and "Traceback" not in result.err
    assert shard.read_bytes() == rows
    answers.write_bytes(content)
    assert door(*args).status == 0
    assert_equal(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl"))


def test_a_full_disk_ends_the_run_with_a_message_and_it_resumes(door, tiny_base, tmp_path, monkeypatch):  # noqa: F811
    path = ask(tmp_path, 6)
    args, calls, real = arguments(tiny_base, path, config_file(tmp_path), *VERSION), [], Journal.append

    def append(self, question_id, sequences):
        calls.append(question_id)
        if len(calls) == 4:
            full = os.open("/dev/full", os.O_WRONLY)  # every write to it meets a full disk
            os.dup2(full, self._file.fileno())
            os.close(full)
        real(self, question_id, sequences)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append)
        result = door(*args)
    assert result.status == 1 and "No space left on device" in result.err and "rank0.journal" in result.err
    assert "Traceback" not in result.err
    result = door(*args)
    assert result.status == 0, result.err
    assert_equal(read(RUN), *offline(tiny_base, path, RUN / "answers.jsonl"))
