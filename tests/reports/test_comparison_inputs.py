"""What a comparison reads: categories, answer files, folders, and what it refuses by name."""

import json
from pathlib import Path

import pytest

from lit_hass.errors import UserError
from lit_hass.records import questions_digest, read_questions
from lit_hass.reports import compare_runs
from tests.reports.run_folders import DRAFT, line, turn, write_lines_to, write_run

PLAIN = [
    line("a", [turn([1, 2, 3, 4], 2.0, prefill=0.5)]),
    line("b", [turn([5, 6, 7, 8, 9, 10], 4.0, prefill=1.0)]),
]
DRAFTED = [
    line("a", [turn([1, 2, 3, 4], 0.5, [2], prefill=0.25)]),
    line("b", [turn([5, 6, 7, 8, 9, 10], 1.5, [3, 0], prefill=1.0)]),
]


def pair(tmp_path: Path, baseline, hass, data=None) -> tuple[Path, Path]:
    one = write_run(tmp_path / "baseline", baseline, data=data)
    return one, write_run(tmp_path / "hass", hass, DRAFT, data)


def question_file(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"question_id": i, "category": f"kind {i}", "turns": ["x"]} for i in "abc"]
    path.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return path


def test_categories_come_from_the_question_file(tmp_path: Path, caplog) -> None:
    path = question_file(tmp_path)
    data = {"questions": questions_digest(read_questions(path)[:2])}
    one, other = pair(tmp_path, PLAIN, DRAFTED, data=data)
    config = {"data": {"class_path": "QuestionDataModule", "init_args": {"questions": str(path)}}}
    (other / "config.yaml").write_text(json.dumps(config), encoding="utf-8")
    found = compare_runs(one, other)
    assert list(found["categories"]) == ["kind a", "kind b"] and found["category_source"] == str(path)
    kind = found["categories"]["kind b"]
    assert kind["speedup"] == pytest.approx(4 / 1.5) and kind["acceptance_length"] == 2.5 and kind["interval"] is None
    assert kind["questions"] == 1 and kind["identical_turn_share"] == 1.0
    # a file that holds other questions by now says nothing about this run
    for content, cause in ((path.read_text(encoding="utf-8").replace('"x"', '"y"'), "the questions that were asked"),
                           (None, "no such question file")):  # fmt: skip
        path.unlink() if content is None else path.write_text(content, encoding="utf-8")
        caplog.clear()
        found = compare_runs(one, other)
        assert found["categories"] == {} and found["category_source"] is None
        assert f"categories are not known: {other}: {path}: " in caplog.text and cause in caplog.text


def test_the_question_file_is_read_as_the_run_read_it(tmp_path: Path, caplog) -> None:
    """A broken row outside of the selection took nothing from the run, and takes no categories from its comparison."""
    path = question_file(tmp_path)
    rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(['{"question_id": "z", "turns": []}', *rows[:2], "{", rows[2]]), encoding="utf-8")
    one, other = pair(tmp_path, PLAIN, DRAFTED, data={"questions": questions_digest(read_questions(path, 1, 3))})
    given = {"questions": str(path), "question_begin": 1, "question_end": 3}
    for run in (one, other):
        (run / "config.yaml").write_text(json.dumps({"data": {"init_args": given}}), encoding="utf-8")
    found = compare_runs(one, other)
    assert list(found["categories"]) == ["kind a", "kind b"] and found["category_source"] == str(path)
    # Where a row that was taken is broken by now, the line is named, of each run.
    path.write_text("\n".join([rows[2], "{", *rows[:2]]), encoding="utf-8")
    assert compare_runs(one, other)["categories"] == {}
    assert f"not known: {one}: {path}:2: " in caplog.text and f"; {other}: {path}:2: " in caplog.text
    # What nobody could have begun a run with is no run's configuration.
    (one / "config.yaml").write_text(json.dumps({"data": {"init_args": given | {"question_end": "3"}}}))
    with pytest.raises(UserError, match="config.yaml: data.question_end is a str, not a whole number"):
        compare_runs(one, other)


def test_categories_of_the_caller_and_of_the_answers(tmp_path: Path) -> None:
    one, other = pair(tmp_path, PLAIN, DRAFTED)
    assert list(compare_runs(one, other, categories={"a": "x", "b": "x"})["categories"]) == ["x"]
    write_lines_to(one / "answers.jsonl", [{**each, "category": "y"} for each in PLAIN])
    found = compare_runs(one, other)
    assert found["categories"]["y"]["questions"] == 2 and found["category_source"] == "the answers"


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda lines: lines[0]["choices"].append(lines[0]["choices"][0]), "two choices of the same index"),
        (lambda lines: lines.append(lines[0]), "already answered on line 1"),
        (lambda lines: lines[0]["choices"][0].update(wall_times=[1.0]), "wall_times"),
        (lambda lines: lines[0]["choices"][0].update(divergence_gap=["x"]), "divergence_gap"),
        *(
            (lambda lines, wrong=wrong: lines[0]["choices"][0].update(prompt_digest=wrong), "prompt_digest")
            for wrong in ("abc", 5, [5], [["a"]], ["a", None], {"0": "a"})
        ),
    ],
)
def test_broken_answers_are_refused_by_name(tmp_path: Path, change, cause: str) -> None:
    one, other = pair(tmp_path, PLAIN, DRAFTED)
    lines = json.loads(json.dumps(DRAFTED))
    change(lines)
    write_lines_to(other / "answers.jsonl", lines)
    for allow in (False, True):
        with pytest.raises(UserError, match=cause) as caught:
            compare_runs(one, other, allow_differences=allow)
        assert str(other) in str(caught.value)


def test_what_is_no_run_is_refused_by_name(tmp_path: Path) -> None:
    one, other = pair(tmp_path, PLAIN, DRAFTED)
    for bad, cause in ((tmp_path / "gone", "no such run"), (tmp_path, "not the folder of a run")):
        with pytest.raises(UserError, match=cause):
            compare_runs(one, bad)
    with pytest.raises(UserError, match="with itself"):
        compare_runs(one, tmp_path / "hass" / ".." / "baseline")
    (other / "statistics.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="statistics.json"):
        compare_runs(one, other)


def test_nothing_in_common_is_refused_even_if_differences_are_allowed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no answered question in common"):
        compare_runs(*pair(tmp_path, PLAIN[:1], DRAFTED[1:]), allow_differences=True)
