"""Recommendations, runs and files of ``lit-hass lengths``, without a command line around them."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lit_hass.data import CommonsenseQADataModule
from lit_hass.errors import UserError
from lit_hass.metrics.functional.token_lengths import LengthHistogram
from lit_hass.models import load_tokenizer
from lit_hass.records import claim, failed_answer
from lit_hass.records.predictions import Prediction, PredictionFolder
from lit_hass.reports.lengths_files import write_outputs
from lit_hass.reports.lengths_recommendation import CensoredError, recommend_lengths
from lit_hass.reports.lengths_run import add_run
from lit_hass.reports.lengths_samples import PromptSettings, Sample, Samples, read_samples
from tests.reports.run_folders import line, turn, write_run


@pytest.mark.parametrize(("ended", "cut"), [(1, 6), (6, 3), (55, 45), (3, 7)])
def test_a_refusal_says_in_how_many_tokens_the_others_ended(ended: int, cut: int) -> None:
    """For some of these counts ``1 - cut / n`` times ``n`` is a little more than the answers that ended."""
    lengths, is_cut = [*range(1, ended + 1), *[64] * cut], [False] * ended + [True] * cut
    prompts = LengthHistogram.of([5], cap=16)
    with pytest.raises(CensoredError, match=f"ended by themselves, in {ended} tokens or fewer$"):
        recommend_lengths(prompts, LengthHistogram.of(lengths, is_cut, cap=64), 0.999, 64)
    with pytest.raises(CensoredError) as raised:
        recommend_lengths(prompts, LengthHistogram.of([64] * cut, [True] * cut, cap=64), 0.999, 64)
    assert "ended by themselves" not in str(raised.value)


def test_later_turns_of_questions_that_are_not_measured_are_not_counted(tmp_path: Path) -> None:
    lines = [line(key, [turn([1], 0.1), turn([1, 2, 3], 0.1, prompt_tokens=40)]) for key in ("one", "two")]
    run = write_run(tmp_path / "run", lines)
    found = add_run(Samples("questions", tmp_path / "q.jsonl", [Sample('"two"', "x", 9)]), str(run))
    assert [(row.id, row.prompt_tokens, row.answer_tokens) for row in found.rows] == [
        ('"two"', 9, 1), ('"two", turn 2', 40, 3)
    ]  # fmt: skip
    assert "2 answers of the run are to questions that are not measured here" in found.notes


@pytest.mark.parametrize("shots", [None, "commonsense_qa"])
def test_the_questions_that_a_run_with_the_same_limit_asks(shots: str | None) -> None:
    """Drawn in another order, or before the examples' questions were left out, they would be others."""
    for limit, seed in ((5, 0), (5, 3), (30, 3)):
        data = CommonsenseQADataModule(shots=shots, limit=limit, seed=seed)
        data.check(SimpleNamespace(base="html_to_tsv", max_new_tokens=8))
        tokenizer = load_tokenizer("html_to_tsv")
        samples = read_samples("commonsense_qa", tokenizer, PromptSettings(n_shot=shots))
        whole = {row.id for row in samples.rows}
        samples.draw(limit, seed)
        assert [row.id for row in samples.rows] == [question.id for question in data.questions]
        assert [row.prompt_tokens for row in samples.rows] == [len(row.ids) for row in data.rows]
        assert len(samples.rows) == limit < len(whole)


def test_whole_questions_are_drawn(tmp_path: Path) -> None:
    rows = [Sample(f"{i}", "x", i, first=f"{i // 2 * 2}") for i in range(20)]
    samples = Samples("questions", tmp_path / "q.jsonl", rows)
    samples.draw(3, 1)
    assert len(samples.rows) == 6 and len({row.question for row in samples.rows}) == 3
    assert samples.notes == ["3 of 10 questions, drawn with seed 1"]
    samples.draw(3, 1)
    assert len(samples.rows) == 6 and len(samples.notes) == 1


def test_with_a_run_its_own_questions_are_measured(tmp_path: Path) -> None:
    lines = [line(key, [turn([1] * key, 0.1)]) for key in (3, 1)] + [failed_answer(5, "no")]
    run = write_run(tmp_path / "run", lines)
    asked = Samples("questions", tmp_path / "q.jsonl", [Sample(f"{i}", "x", 9) for i in range(8)])
    found = add_run(asked, str(run))
    assert [(row.id, row.answer_tokens) for row in found.rows] == [("3", 3), ("1", 1), ("5", None)]
    assert "3 of 8 questions of the file: those of the run" in found.notes


def prediction(key: str, prompt_tokens: int) -> Prediction:
    return Prediction(key, 0, "p", " the answer is (A)", "A", "A", "A", True, False, prompt_tokens, 5, False, 0.1)


def test_a_question_is_held_to_its_prompt_whatever_its_id_is(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    claim(tmp_path, {"model": {"max_new_tokens": 8}})
    shard = folder.writer(0)
    shard.write([prediction("a, turn 2", 9).to_dict()])
    shard.close()
    folder.merge(["a, turn 2"])
    asked = Samples("commonsense_qa", tmp_path / "q.jsonl", [Sample("a, turn 2", "p", 7)])
    with pytest.raises(UserError, match="prompt of 9 tokens in the run and has 7 here"):
        add_run(asked, str(tmp_path))


def test_no_file_is_written_where_one_of_them_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for places in (("a.yaml", "file/b.yaml", None), ("a.yaml", None, "file/cqa.json")):
        with pytest.raises(UserError, match="file"):
            write_outputs(REPORT, *(place and str(tmp_path / place) for place in places))
        assert not (tmp_path / "a.yaml").exists()
    assert len(write_outputs(REPORT, str(tmp_path / "a.yaml"), None, str(tmp_path / "new" / "cqa.json"))) == 2


REPORT = {
    "file": "q.jsonl", "kind": "questions", "file_sha256": "0", "tokenizer": "t", "tokenizer_sha256": "0",
    "n_shot": None, "answers_from": None, "limit": None, "coverage": 0.999, "lengths": {}, "memory": None, "notes": [],
    "context": None, "context_given": False,
    "recommendation": {"max_length": 24, "gen_length": 8, "prompt_budget": 16, "batch_size": None},
}  # fmt: skip
