"""Reading CommonsenseQA's schema: what is good comes back, what is bad is refused by file and line."""

import copy
import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from lit_hass.data.commonsense_qa_questions import LABELS, read_commonsense_qa, to_row
from lit_hass.errors import UserError

GOOD = {
    "id": "a1",
    "answerKey": "C",
    "question": {
        "question_concept": "sea",
        "stem": "Where do ships rest?",
        "choices": [{"label": label, "text": f"place {label}"} for label in LABELS],
    },
}


def changed(*path, value=None, **keys) -> dict:
    row = copy.deepcopy(GOOD)
    at = row
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return row | keys


def write(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def test_rows_come_back_as_they_were_written(tmp_path) -> None:
    shuffled = changed("question", "choices", value=GOOD["question"]["choices"][::-1], id="b2")
    path = write(tmp_path, GOOD, "", shuffled)
    first, second = read_commonsense_qa(path)
    assert (first.id, first.stem, first.answer, first.concept, first.line) == (
        "a1", "Where do ships rest?", "C", "sea", 1,
    )  # fmt: skip
    assert first.choices == second.choices == tuple(f"place {label}" for label in LABELS)
    assert second.line == 3 and to_row(first) == GOOD


CHOICES = GOOD["question"]["choices"]
BAD = {
    "malformed": ('{"id": "x", ', "not valid JSON"),
    "an array": ("[1]", "a JSON object is expected"),
    "no id": ({k: v for k, v in GOOD.items() if k != "id"}, "id must be"),
    "blank id": (changed("id", value=" "), "id must be"),
    "no question": ({k: v for k, v in GOOD.items() if k != "question"}, "question is missing"),
    "question a text": (changed("question", value="why"), "question must be an object"),
    "no stem": (changed("question", "stem", value=None), "question.stem"),
    "stem of two lines": (changed("question", "stem", value="a\nb"), "line break"),
    "half a pair": (changed("question", "stem", value="\ud800"), "surrogate"),
    "no answer": ({k: v for k, v in GOOD.items() if k != "answerKey"}, "answerKey is missing"),
    "answer not among labels": (changed("answerKey", value="F"), "'F'".replace("'", '"')),
    "answer a list": (changed("answerKey", value=["A"]), "not among the labels"),
    "duplicate labels": (changed("question", "choices", value=[*CHOICES[:4], CHOICES[0]]), "A occurs twice"),
    "four choices": (changed("question", "choices", value=CHOICES[:4]), "5 choices, found 4"),
    "other label": (changed("question", "choices", 0, "label", value="1"), 'label "1"'),
    "choice without text": (changed("question", "choices", value=[{"label": "A"}, *CHOICES[1:]]), "label and text"),
    "another label in a choice": (changed("question", "choices", 3, "text", value="vitamin (C)"), "choice D"),
    "label behind the stem": (changed("question", "stem", value="Which vitamin (C)"), "ends in (C)"),
    "half a pair in the id": (changed("id", value="\ud800"), "surrogate"),
    "no answer on the hub": (
        {"id": "x", "question": "s", "choices": {"label": ["A"], "text": ["t"]}, "answerKey": ""},
        "5 choices, found 1",
    ),
    "labels without texts": ({"id": "x", "question": "s", "choices": {"label": ["A"], "text": []}}, "as many labels"),
    "blank choice": (changed("question", "choices", 2, "text", value="  "), "choice C"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_lines_are_named_or_left_out(tmp_path, name: str, caplog) -> None:
    line, cause = BAD[name]
    path = write(tmp_path, GOOD, line)
    with pytest.raises(UserError) as refused:
        read_commonsense_qa(path)
    assert str(refused.value).startswith(f"{path}:2: ") and cause in str(refused.value)
    with caplog.at_level("WARNING", "lit_hass"):
        assert [question.id for question in read_commonsense_qa(path, on_bad="skip")] == ["a1"]


def test_duplicate_ids_are_refused_with_both_lines(tmp_path) -> None:
    path = write(tmp_path, GOOD, changed("question", "stem", value="Other?"))
    with pytest.raises(UserError, match=r"rows.jsonl:2: id 'a1' was already used on line 1"):
        read_commonsense_qa(path, on_bad="skip")


def test_files_that_are_missing_or_hold_nothing(tmp_path) -> None:
    with pytest.raises(UserError, match="no such questions file"):
        read_commonsense_qa(tmp_path / "none.jsonl")
    with pytest.raises(UserError, match="holds no questions"):
        read_commonsense_qa(write(tmp_path))
    with pytest.raises(UserError, match="holds no questions that can be used"):
        read_commonsense_qa(write(tmp_path, "{}"), on_bad="skip")


def test_the_shipped_questions() -> None:
    questions = read_commonsense_qa("commonsense_qa")
    assert len(questions) == 44 and len({q.stem for q in questions}) == 44
    counts = [sum(q.answer == label for q in questions) for label in LABELS]
    assert max(counts) - min(counts) <= 1
    assert all(len(set(q.choices)) == 5 for q in questions)


def test_a_choice_may_hold_its_own_label(tmp_path) -> None:
    row = changed("question", "choices", 0, "text", value="vitamin (A)")
    assert read_commonsense_qa(write(tmp_path, row))[0].choices[0] == "vitamin (A)"


HUB = [
    {
        "id": key,
        "question": f"Where is {key}?",
        "question_concept": "place",
        "choices": {"label": list("BADCE"), "text": [f"{key} {label}" for label in "BADCE"]},
        "answerKey": "D",
    }
    for key in ("one", "two")
]


def test_the_hubs_layout_in_lines_arrays_and_tables(tmp_path) -> None:
    official = [
        {"id": key, "answerKey": "D", "question": {"stem": f"Where is {key}?", "question_concept": "place",
            "choices": [{"label": label, "text": f"{key} {label}"} for label in LABELS]}}
        for key in ("one", "two")
    ]  # fmt: skip
    expected = read_commonsense_qa(write(tmp_path, *official))
    (tmp_path / "hub.json").write_text(json.dumps(HUB, indent=1))
    parquet.write_table(pyarrow.Table.from_pylist(HUB), tmp_path / "hub.parquet")
    (tmp_path / "hub.jsonl.gz").write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in HUB).encode()))
    for name in ("hub.json", "hub.parquet", "hub.jsonl.gz"):
        assert read_commonsense_qa(tmp_path / name) == expected
    unanswered = [row | {"answerKey": ""} for row in HUB]
    parquet.write_table(pyarrow.Table.from_pylist(unanswered), tmp_path / "test.parquet")
    with pytest.raises(UserError, match="test.parquet:1: answerKey is missing .the official test split has none"):
        read_commonsense_qa(tmp_path / "test.parquet")
