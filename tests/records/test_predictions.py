"""Predictions survive what kills a run, and what is kept is right, whole and told once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lit_hass.errors import RunError, UserError
from lit_hass.records.predictions import (
    END_OF_TEXT,
    Prediction,
    PredictionFolder,
    kept_of,
    parse_prediction,
    write_kept,
)

ONE = Prediction(
    id="a", iter=0, prompt="Q: x\nA:", completion=" yes (A).", answer="A", loose="A", key="A", correct=True,
    hinted=False, prompt_tokens=9, gen_tokens=4, cut=False, seconds=0.5,
)  # fmt: skip


def test_a_line_comes_back_and_a_bad_one_is_named() -> None:
    assert parse_prediction(json.loads(json.dumps({**ONE.to_dict(), "more": 1}))) == ONE
    assert parse_prediction({**ONE.to_dict(), "answer": None, "seconds": 1}).answer is None
    for name, value in (("id", None), ("id", 3), ("correct", 1), ("iter", True), ("cut", None), ("seconds", "x")):
        with pytest.raises(ValueError, match=name):
            parse_prediction({**ONE.to_dict(), name: value})


def test_shards_are_merged_in_order_and_a_torn_end_is_dropped(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    with folder.writer(0) as first, folder.writer(4) as second:
        first.write([replace(ONE, id="c").to_dict(), replace(ONE, id="a").to_dict()])
        second.write([replace(ONE, id="b", correct=False).to_dict()])
    with (tmp_path / "predictions.rank4.jsonl").open("ab") as file:
        file.write(b'{"id": "d", "it')
    assert set(folder.completed()) == {"a", "b", "c"} and not folder.is_finished
    with pytest.raises(RunError, match="1 of 4 questions missing"):
        folder.merge(["a", "b", "c", "d"])
    with pytest.raises(RunError, match="not in this run"):
        folder.merge(["a", "b"])
    with folder.writer(4) as again:  # drops the torn end, else the next line would be lost with it
        again.write([replace(ONE, id="d", cut=True).to_dict()])
    assert (
        [one.id for one in folder.merge(["a", "b", "c", "d"])]
        == ["a", "b", "c", "d"]
        == [one.id for one in folder.read()]
    )
    assert folder.is_finished and folder.shards() == []
    assert [json.loads(line)["id"] for line in folder.correct.read_text().splitlines()] == ["a", "c"]
    assert folder.merge(["a", "b", "c", "d"]) == folder.read()


def test_killed_between_the_merged_file_and_the_shards_end(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    with folder.writer(0) as shard:
        shard.write([ONE.to_dict()])
    before = (tmp_path / "predictions.rank0.jsonl").read_bytes()
    folder.merge(["a"])
    (tmp_path / "predictions.rank0.jsonl").write_bytes(before)
    assert not folder.is_finished and folder.merge(["a"]) == [ONE] and folder.is_finished


def test_a_writer_takes_nothing_but_predictions(tmp_path: Path) -> None:
    with PredictionFolder(tmp_path).writer(0) as shard, pytest.raises(ValueError, match="id"):
        shard.write([{"question_id": 1}])


def test_a_broken_merged_file_is_named(tmp_path: Path) -> None:
    folder = PredictionFolder(tmp_path)
    folder.predictions.write_text(json.dumps(ONE.to_dict()) + '\n{"id": "b"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"predictions.jsonl:2: iter"):
        folder.read()


def test_what_is_kept(tmp_path: Path) -> None:
    wrong, cut = replace(ONE, id="w", correct=False), replace(ONE, id="c", cut=True)
    hinted = [replace(ONE, id=key, hinted=True, completion=" told (A).") for key in ("a", "w")]
    kept = kept_of([ONE, wrong, cut], hinted)
    assert [(one.id, one.hinted) for one in kept] == [("a", False), ("w", True)]
    folder = PredictionFolder(tmp_path)
    spoiled = replace(ONE, id="s", completion=f" no{END_OF_TEXT} (A)")
    assert write_kept(folder, [*kept, spoiled]) == 1 == write_kept(folder, [*kept, spoiled])
    assert folder.correct_data.read_text(encoding="utf-8") == "".join(
        f"Q: x\nA:{text}{END_OF_TEXT}\n\n" for text in (" yes (A).", " told (A).")
    )
    assert len(folder.correct.read_text(encoding="utf-8").splitlines()) == 3
