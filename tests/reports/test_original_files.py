"""Answer files of the original scripts, and their formulas on ours."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from lit_hass.errors import UserError
from lit_hass.records import failed_answer, read_answers, to_json
from lit_hass.reports import compare_runs, generation_statistics
from lit_hass.reports.comparison_rows import figure_rows
from tests.reports.run_folders import DRAFT, accepted_in, line, original_line, turn, write_lines_to, write_run


def acceptance_length_script(path: Path) -> float:
    """``acceptance_length.py`` as the reference describes it: choice 0 only, each question weighs the same."""
    per_question = []
    with open(path) as file:
        for text in file:
            answer = json.loads(text)
            steps = answer["choices"][0]["accept_length"]
            per_question.append(sum(steps) / len(steps) + 1)
    return float(np.mean(per_question))


def speed_script(draft_file: Path, baseline_file: Path) -> float:
    """``speed.py`` likewise, but for the tokenizer: the tokens of choice 0 over its seconds, means over each file."""
    means = []
    for path in (draft_file, baseline_file):
        speeds = []
        with open(path) as file:
            for text in file:
                choice = json.loads(text)["choices"][0]
                tokens, seconds = 0, 0.0
                for i in range(len(choice["turns"])):
                    tokens += choice["new_tokens"][i]
                    seconds += choice["wall_time"][i]
                speeds.append(tokens / seconds)
        means.append(np.array(speeds).mean())
    return float(means[0] / means[1])


def talks(seed: int, choices: int = 2):
    """The same questions answered by a baseline and with a draft, in two lists of lines."""
    rng = random.Random(seed)
    baseline, hass = [], []
    for number in range(12):
        pairs = [[], []]
        for _ in range(choices):
            talk = [[], []]
            for _ in range(rng.randint(1, 3)):
                ids = [rng.randint(0, 99) for _ in range(rng.randint(2, 40))]
                accepted = accepted_in(rng, len(ids))
                talk[0].append(turn(ids, rng.uniform(0.5, 2), prefill=0.1))
                talk[1].append(turn(ids, rng.uniform(0.1, 1), accepted, prefill=0.1))
            for side in (0, 1):
                pairs[side].append(talk[side])
        baseline.append(line(number, *pairs[0]))
        hass.append(line(number, *pairs[1]))
    return baseline, hass


@pytest.mark.parametrize("seed", range(3))
def test_their_formulas_on_our_files_give_what_we_report(tmp_path: Path, seed: int) -> None:
    baseline, hass = talks(seed)
    one = write_run(tmp_path / "baseline", baseline, data={"num_choices": 2})
    other = write_run(tmp_path / "hass", hass, DRAFT, {"num_choices": 2})
    found = compare_runs(one, other)
    expected = acceptance_length_script(other / "answers.jsonl")
    assert found["acceptance"]["hass"]["mean_of_questions"] == pytest.approx(expected)
    assert generation_statistics(hass)["acceptance"]["mean_of_questions"] == pytest.approx(expected)
    # Their decoder makes more steps than ours, so that it is not what they would print.
    assert found["acceptance"]["hass"]["original"] is None
    assert any("one step beyond an end token" in note for note in found["notes"])
    # not the same thing as ours, or the test would say nothing
    assert abs(found["acceptance"]["hass"]["micro"] - expected) > 1e-3
    ratio = speed_script(other / "answers.jsonl", one / "answers.jsonl")
    assert found["speed"]["original"]["ratio"] == pytest.approx(ratio)
    assert abs(found["speed"]["end_to_end"]["ratio"] - ratio) > 1e-3
    assert found["speed"]["original"]["is_original"] is False and "texts again" in found["speed"]["original"]["note"]
    labels = [row.label for row in figure_rows(found)]
    assert "tokens/s question mean" in labels and not any("(original)" in label for label in labels)


def test_texts_read_again_are_counted_as_speed_py_does(tmp_path: Path) -> None:
    """Its baseline has as many tokens as its texts have when the tokenizer reads them, less one a text."""
    plain = [line(i, [turn([1] * 9, 2.0, text_tokens=8), turn([1] * 5, 1.0, text_tokens=4)]) for i in range(3)]
    hass = [line(i, [turn([1] * 9, 0.5, [8]), turn([1] * 5, 0.5, [4])]) for i in range(3)]
    one = write_run(tmp_path / "baseline", plain)
    other = write_run(tmp_path / "hass", hass, DRAFT)
    found = compare_runs(one, other)
    assert found["speed"]["original"]["baseline"] == pytest.approx((7 + 3) / 3)
    assert (
        found["speed"]["original"]["ratio"] == pytest.approx(14 / (10 / 3))
        and found["speed"]["original"]["is_original"]
    )
    assert "tokens/s (original)" in [row.label for row in figure_rows(found)]


def original_files(tmp_path: Path) -> tuple[Path, Path]:
    draft = [
        original_line(
            80 + i,
            {
                "index": 0,
                "turns": ["one two", "three"],
                "idxs": [1, 0],
                "new_tokens": [7, 4],  # overshoot included: sum of a + 1
                "wall_time": [0.5, 0.25 + i],
                "accept_length": [2, 3, 3],
            },
        )
        for i in range(3)
    ]
    plain = [
        original_line(
            80 + i,
            {"index": 0, "turns": ["one two", "four"], "idxs": [0, 0], "new_tokens": [6, 3], "wall_time": [1.0, 2.0]},
            drafted=False,
        )
        for i in range(3)
    ]
    return write_lines_to(tmp_path / "base.jsonl", plain), write_lines_to(tmp_path / "ea.jsonl", draft)


def test_statistics_of_an_original_draft_file(tmp_path: Path) -> None:
    _, path = original_files(tmp_path)
    found = generation_statistics(read_answers(path))
    seconds = 3 * 0.75 + 0 + 1 + 2
    assert found["tokens_per_second"]["end_to_end"] == pytest.approx(33 / seconds)
    assert found["seconds"]["total"] == pytest.approx(seconds) and found["new_tokens"]["total"] == 33
    assert found["acceptance"]["micro"] == pytest.approx(8 / 3 + 1) == found["acceptance"]["original"]
    assert found["acceptance"]["mean_of_questions"] == found["acceptance"]["original"]
    assert found["acceptance"]["steps"] == 9 and found["acceptance"]["tokens_per_step"] == pytest.approx(33 / 9)
    assert found["acceptance"]["by_depth"] == pytest.approx([1, 1, 2 / 3])
    # what such a file does not say
    written = json.loads(to_json(found))
    assert written["tokens_per_second"]["decode_only"] is None and written["seconds"]["prefill"] is None
    assert written["prompt_tokens"]["mean"] is None and written["exact_match"]["share"] is None
    assert (
        written["stop_reasons"] == dict.fromkeys(("stop", "length", "context")) and written["peak_memory_bytes"] is None
    )
    assert written["acceptance"]["node_acceptance_rate"] is None and len(written["acceptance"]["reasons"]) == 1
    assert written["unknown"] == {"prefill_seconds": 6, "prompt_tokens": 6, "stop_reason": 6}


def test_statistics_of_an_original_baseline_file(tmp_path: Path) -> None:
    path, _ = original_files(tmp_path)
    found = generation_statistics(read_answers(path))
    assert found["acceptance"] is None and found["tokens_per_second"]["end_to_end"] == pytest.approx(27 / 9)


def test_an_unknown_time_is_left_out_and_counted(tmp_path: Path) -> None:
    path, _ = original_files(tmp_path)
    lines = read_answers(path)
    lines[0]["choices"][0]["wall_time"][1] = None
    found = generation_statistics(lines)
    assert found["tokens_per_second"]["end_to_end"] == pytest.approx((27 - 3) / (9 - 2))
    assert found["unknown"]["seconds"] == 1
    for each in lines:
        each["choices"][0]["wall_time"] = [None, None]
    assert math.isnan(generation_statistics(lines)["tokens_per_second"]["end_to_end"])


def test_original_files_are_compared_when_allowed(tmp_path: Path) -> None:
    one, other = original_files(tmp_path)
    with pytest.raises(UserError, match=r"settings: not recorded \(no run_key.json\).*environment: not recorded"):
        compare_runs(one, other)
    found = compare_runs(one, other, allow_differences=True)
    assert found["headline"] is None and found["same_distribution"] is None and found["lossless"] is None
    assert {d["kind"] for d in found["differences"]} == {"unknown"}
    assert found["speed"]["end_to_end"]["ratio"] == pytest.approx((33 / 5.25) / (27 / 9))
    assert found["speed"]["end_to_end"]["interval"] is None  # of three questions
    assert "· (original)" in [row.label for row in figure_rows(found)]
    assert found["speed"]["decode_only"]["ratio"] is None and found["cost_model"]["tau_break_even"] is None
    assert found["speed"]["original"]["ratio"] == pytest.approx(speed_script(other, one))
    assert found["agreement"]["turns"] == 0 and found["agreement"]["identical_turn_share"] is None
    assert found["agreement"]["identical_text_share"] == 0.5 and found["exact_match"]["of"] == 0
    assert found["undefined"]["answers without tokens in the file, left out of the agreement"] == 6
    assert any("nobody wrote down" in note or "unknown" in note for note in found["notes"])


def reorganised(path: Path) -> list[dict]:
    """``reorg_answer_file`` of FastChat, which the original scripts call: the last line of each question, sorted."""
    answers = {}
    with open(path) as file:
        for text in file:
            answers[json.loads(text)["question_id"]] = text
    return [json.loads(answers[key]) for key in sorted(answers)]


def test_of_several_answers_of_the_original_scripts_the_last_counts(tmp_path: Path, caplog) -> None:
    """A second run appends to the file of the first; a third was stopped after one question."""
    one, other = original_files(tmp_path)
    lines = [json.loads(text) for text in other.read_text().splitlines()]
    later = json.loads(json.dumps(lines))
    for i, each in enumerate(later):
        each["choices"][0]["wall_time"] = [0.1 * (i + 1), 0.2]
        each["choices"][0]["accept_length"] = [4, 4, i]
    last = json.loads(json.dumps(later[1]))
    last["choices"][0]["wall_time"] = [9.0, 9.0]
    appended = write_lines_to(tmp_path / "appended.jsonl", [*lines, *later, last])
    clean = write_lines_to(tmp_path / "clean.jsonl", reorganised(appended))
    with caplog.at_level("WARNING", "lit_hass"):
        assert read_answers(appended) == reorganised(appended)
    said = "4 answers are superseded by a later one of the original scripts to the same question"
    assert said in caplog.text and str(appended) in caplog.text
    found, expected = (compare_runs(one, path, allow_differences=True) for path in (appended, clean))
    for key in ("speed", "acceptance", "joined"):
        assert to_json(found[key]) == to_json(expected[key])
    assert [note for note in found["notes"] if said in note] == [
        f"in the second run's file, {said}; the last one counts."
    ]
    assert not any("superseded" in note for note in expected["notes"])
    swapped = compare_runs(appended, one, allow_differences=True)
    assert any("in the baseline's file, 4 answers" in note for note in swapped["notes"])


def test_a_file_of_ours_with_a_question_twice_is_damaged(tmp_path: Path) -> None:
    one, other = original_files(tmp_path)
    ours = line(80, [turn([1, 2], 0.1)])
    theirs = [json.loads(text) for text in other.read_text().splitlines()]
    for lines in ([ours, ours], [theirs[0], ours], [ours, theirs[0]], [theirs[0], failed_answer(80, "no")]):
        with pytest.raises(UserError, match=":2: question 80 was already answered on line 1"):
            read_answers(write_lines_to(tmp_path / "twice.jsonl", lines))


def test_a_failed_question_is_no_step_and_no_time(tmp_path: Path) -> None:
    _, path = original_files(tmp_path)
    lines = read_answers(path)
    found = generation_statistics([failed_answer(99, "no"), *lines], nodes_per_step=6)
    expected = generation_statistics(lines, nodes_per_step=6)
    assert found["acceptance"] == expected["acceptance"] and found["unknown"] == expected["unknown"]
    assert found["questions"]["failed"] == 1


def test_acceptance_with_a_tree_and_reasons() -> None:
    lines = [line(1, [turn([1, 2, 3, 4, 5], 1.0, [3, 1])]), line(2, [turn([3], 1.0, [])])]
    lines[1]["choices"][0].update(steps=[0], idxs=[-1])  # its first token ended the answer
    found = generation_statistics(lines, nodes_per_step=10)["acceptance"]
    assert found["node_acceptance_rate"] == pytest.approx(4 / 20) and found["nodes_per_step"] == 10
    assert found["tokens_per_step"] == 3.0 and found["micro"] == 3.0 and found["histogram"] == [0, 1, 0, 1]
    assert found["reasons"] == {"questions without a step, left out of mean_of_questions": 1}
    assert found["mean_of_questions"] == 3.0 and found["original"] is None
    none = generation_statistics(lines, nodes_per_step=0)["acceptance"]
    assert math.isnan(none["node_acceptance_rate"]) and any("no nodes" in reason for reason in none["reasons"])
