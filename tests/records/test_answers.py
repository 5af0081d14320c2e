import copy
import json
import time

import pytest

from lit_hass.errors import UserError
from lit_hass.records import (
    AnswerRecord,
    ChoiceRecord,
    TurnRecord,
    failed_answer,
    is_failed,
    iter_intact,
    parse_answer,
    read_answers,
    to_json,
    write_lines,
)

TURNS = [
    TurnRecord("ab", [5, 6, 7, 2], 0.5, steps=2, accept_lengths=[2, 0], prefill_time=0.1, decode_time=0.4, seed=9),
    TurnRecord(
        "c",
        [8],
        0.25,
        steps=1,
        accept_lengths=[0],
        stop_reason="length",
        prompt_tokens=12,
        batch_rows=2,
        time_share=0.125,
        exact_match=True,
    ),  # fmt: skip
]
ORIGINAL = {
    "question_id": 81,
    "answer_id": "NbYzT6",
    "model_id": "ess-llama-2-temperature-0.0",
    "tstamp": 1700000000.5,
    "choices": [{"index": 0, "turns": ["x"], "idxs": [3], "new_tokens": [9], "wall_time": [1.5], "accept_length": [1]}],
}


def test_choice_from_turns_has_the_original_keys_and_ours():
    choice = ChoiceRecord.from_turns(0, TURNS).to_dict()
    assert choice == {
        "index": 0,
        "turns": ["ab", "c"],
        "idxs": [1, 0],
        "new_tokens": [4, 1],
        "wall_time": [0.5, 0.25],
        "accept_length": [2, 0, 0],
        "accept_lengths": [[2, 0], [0]],
        "output_ids": [[5, 6, 7, 2], [8]],
        "prefill_time": [0.1, None],
        "decode_time": [0.4, None],
        "steps": [2, 1],
        "stop_reason": [None, "length"],
        "seed": [9, None],
        "prompt_tokens": [None, 12],
        "batch_rows": [None, 2],
        "time_share": [None, 0.125],
        "exact_match": [None, True],
    }
    assert list(choice)[:6] == ["index", "turns", "idxs", "new_tokens", "wall_time", "accept_length"]


def test_line_keys_and_fresh_ids():
    before = time.time()
    one, two = (AnswerRecord(7, "m", [ChoiceRecord.from_turns(0, TURNS)]) for _ in range(2))
    assert list(one.to_dict()) == ["question_id", "answer_id", "model_id", "tstamp", "choices", "peak_memory"]
    assert before <= one.tstamp <= time.time()
    assert one.answer_id != two.answer_id and len(one.answer_id) == 32


def test_record_survives_the_round_trip_through_json():
    record = AnswerRecord("q\u2028", "m", [ChoiceRecord.from_turns(i, TURNS) for i in range(2)])
    assert parse_answer(json.loads(to_json(record.to_dict()))) == record


def test_failed_line():
    line = failed_answer("q", "OutOfMemoryError: ...\nat step 3")
    assert line == {"question_id": "q", "error": "OutOfMemoryError: ...\nat step 3", "choices": []}
    record = parse_answer(line)
    assert record.failed and is_failed(line)
    assert record.to_dict() == line
    assert not is_failed(ORIGINAL) and not parse_answer(ORIGINAL).failed
    assert is_failed(failed_answer(1, ""))


def test_lines_of_the_original_scripts_load_and_their_formulas_apply():
    record = parse_answer(ORIGINAL)
    assert record.choices[0].output_ids == []
    assert parse_answer(record.to_dict()) == record
    baseline = copy.deepcopy(ORIGINAL)
    del baseline["choices"][0]["accept_length"]
    assert parse_answer(baseline).choices[0].accept_length == []
    # The formula of the original acceptance_length.py and speed.py, on a line of ours.
    ours = AnswerRecord(1, "m", [ChoiceRecord.from_turns(0, TURNS)]).to_dict()["choices"][0]
    assert sum(ours["accept_length"]) / len(ours["accept_length"]) + 1 == pytest.approx(5 / 3)
    assert sum(ours["new_tokens"]) / sum(ours["wall_time"]) == pytest.approx(5 / 0.75)


def changed(path, value):
    line = AnswerRecord(1, "m", [ChoiceRecord.from_turns(0, TURNS)]).to_dict()
    line = json.loads(json.dumps(line))
    *parents, last = path
    target = line
    for key in parents:
        target = target[key]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return line


C = ("choices", 0)


@pytest.mark.parametrize(
    ("obj", "cause"),
    [
        ([], "an answer must be an object, found list"),
        (changed(("question_id",), KeyError), "question_id is missing"),
        (changed(("question_id",), True), "neither an integer nor a string"),
        (changed(("answer_id",), 3), "answer_id must be a string"),
        (changed(("model_id",), KeyError), "model_id must be a string"),
        (changed(("tstamp",), "now"), "tstamp must be a number of seconds"),
        (changed(("error",), 3), "error must be a string"),
        (changed(("error",), "failed"), "a failed answer must have no choices"),
        (changed(("choices",), KeyError), "choices must be a list"),
        (changed(("choices",), []), "choices is empty though no error"),
        (changed(C, "text"), "choice 0: must be an object"),
        (changed((*C, "index"), None), "choice 0: index must be an integer"),
        (changed((*C, "turns"), []), "turns is empty"),
        (changed((*C, "turns"), ["a", 1]), "turns is missing or has an entry of the wrong type"),
        (changed((*C, "turns"), ["a"]), "2 entries for 1 turns"),
        (changed((*C, "idxs"), KeyError), "idxs is missing"),
        (changed((*C, "wall_time"), ["1", 2]), "wall_time is missing or has an entry of the wrong type"),
        (changed((*C, "wall_time"), []), "wall_time has 0 entries for 2 turns"),
        (changed((*C, "new_tokens"), [4.0, 1]), "new_tokens is missing or has an entry of the wrong type"),
        (changed((*C, "new_tokens"), [4, 2]), "new_tokens is not the number of output_ids"),
        (changed((*C, "accept_length"), [2, 0, 1]), "accept_length is not accept_lengths laid flat"),
        (
            changed((*C, "accept_length"), [2, 0, False]),
            "accept_length must be a list of integers that are not negative",
        ),
        (changed((*C, "accept_lengths"), [[2, 0]]), "accept_lengths has 1 entries for 2 turns"),
        (changed((*C, "output_ids"), [[5, 6, 7, "2"], [8]]), "output_ids is missing or has an entry of the wrong type"),
        (changed((*C, "wall_time"), [-1.0, 2]), "wall_time is missing or has an entry of the wrong type or size"),
        (changed((*C, "wall_time"), [float("inf"), 2]), "finite number of seconds that is not negative"),
        (changed((*C, "prefill_time"), [-0.1, 0.1]), "prefill_time is missing or has an entry"),
        (changed((*C, "wall_times"), [[0.1, -0.1], [1.0]]), "wall_times is missing or has an entry"),
        (changed((*C, "new_tokens"), [-4, 1]), "new_tokens is missing or has an entry"),
        (changed((*C, "idxs"), [-2, 0]), "an integer from -1 on"),
        (changed((*C, "batch_rows"), [0, 1]), "a positive integer or null"),
        (changed((*C, "prompt_tokens"), [10**400, 1]), "prompt_tokens is missing or has an entry"),
        (changed((*C, "exact_match"), [7.0, None]), "true, false or null"),
        (changed(("tstamp",), 1e999), "tstamp must be a number of seconds"),
        (changed(("question_id",), "a\x1b[2J"), r"question_id holds \\x1b"),
        (changed(("question_id",), "m" * 2000), "question_id has 2000 characters, and may have 1000"),
        (changed(("category",), "a\nb"), r"category holds \\n"),
        (changed((*C, "seed"), [1.5, None]), "seed is missing or has an entry of the wrong type"),
        (changed((*C, "stop_reason"), [1, None]), "stop_reason is missing or has"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_cause(obj, cause):
    with pytest.raises(ValueError, match=cause):
        parse_answer(obj)


def test_times_that_were_not_finite_are_null():
    assert parse_answer(changed((*C, "wall_time"), [None, 1])).choices[0].wall_time == [None, 1]


def test_read_answers_keeps_order_and_foreign_keys(tmp_path, answer):
    path = tmp_path / "answers.jsonl"
    lines = [answer(2, "a\u2028b") | {"extra": {"k": 1}}, failed_answer(1, "e"), answer("2")]
    write_lines(path, map(to_json, lines))
    assert read_answers(path) == lines
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert read_answers(path) == lines


@pytest.mark.parametrize(
    ("bad", "cause"),
    [
        ('{"question_id": 3, "cho', "not valid JSON"),
        ('{"question_id": 3}', "choices must be a list"),
        (json.dumps(failed_answer(1, "again")), "question 1 was already answered on line 1"),
    ],
)
def test_read_answers_names_file_and_line(tmp_path, answer, bad, cause):
    path = tmp_path / "answers.jsonl"
    write_lines(path, [to_json(answer(1)), to_json(answer(2)), bad])
    with pytest.raises(UserError, match=cause) as caught:
        read_answers(path)
    assert str(caught.value).startswith(f"{path}:3: ")


def test_read_answers_refuses_missing_and_empty(tmp_path):
    with pytest.raises(UserError, match="no such answer file"):
        read_answers(tmp_path / "answers.jsonl")
    (tmp_path / "answers.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no answers"):
        read_answers(tmp_path / "answers.jsonl")


def test_iter_intact_passes_over_what_is_not_whole(tmp_path, answer, caplog):
    path = tmp_path / "answers.rank0.jsonl"
    good = [answer(1), answer(2, "a\u2028b")]
    torn = to_json(answer(3))
    content = [to_json(good[0]), torn[:30], "\0\0\0", '{"question_id": 4}', to_json(good[1])]
    path.write_bytes("\n".join(content).encode() + b"\n" + torn[:40].encode())
    assert list(iter_intact(path)) == good
    assert [r.getMessage().split(": ")[0] for r in caplog.records] == [f"{path}:{n}" for n in (2, 3, 4)]


def test_iter_intact_counts_no_line_without_its_end(tmp_path, answer):
    path = tmp_path / "answers.rank0.jsonl"
    path.write_text(to_json(answer(1)) + "\n" + to_json(answer(2)))
    assert [a["question_id"] for a in iter_intact(path)] == [1]


def test_iter_intact_of_a_file_that_is_gone(tmp_path):
    assert list(iter_intact(tmp_path / "gone")) == []
    with pytest.raises(UserError, match="is a directory"):
        list(iter_intact(tmp_path))


@pytest.mark.parametrize("turns", [[[500, 1]], [[20, 6, 1]], None])
def test_more_accepted_tokens_than_the_answer_has(answer, turns):
    obj = answer(1)
    [choice] = obj["choices"]
    choice |= {"new_tokens": [26], "output_ids": [[5] * 26], "accept_length": [500, 1], "accept_lengths": turns or []}
    if turns:
        choice["accept_length"] = turns[0]
    with pytest.raises(ValueError, match="tokens accepted of 26 new ones"):
        parse_answer(obj)
    # The last step of a turn is not cut where the answer ends.
    choice |= {"accept_length": [3, 20, 27], "accept_lengths": [[3, 20, 27]]}
    parse_answer(obj)
