"""Sums: right by plain arithmetic, the same every time, no sum in two splits, and the verb that writes them."""

import json
import re

import pytest

from lit_hass.__main__ import main
from lit_hass.data.commonsense_qa_answers import strict_answer
from lit_hass.data.commonsense_qa_prompts import build_prompt
from lit_hass.data.commonsense_qa_questions import LABELS, read_commonsense_qa
from lit_hass.data.sums import PLACES, make_sum, make_sums, split_of
from lit_hass.data.sums.tokenizer import sums_tokenizer


def number(text: str) -> int:
    return sum(int(digit) * 10 ** PLACES.index(place) for place, digit in re.findall(r"([okht])(\d)", text))


@pytest.mark.parametrize("digits", [(2, 4), (6, 8)])
def test_every_sum_is_right_by_plain_arithmetic(digits: tuple[int, int]) -> None:
    for i in range(300):
        one = make_sum("train", 3, i, digits)
        first, second = map(number, one.question.stem.split("+"))
        total = first + second
        assert digits[0] <= len(re.findall(r"\d", one.question.stem)) <= digits[1]
        assert "0" not in one.question.stem and split_of(first, second) == split_of(second, first) == "train"
        columns = re.findall(r"(\w)(\d)\+(\w)(\d)\+(\d)=(\d)(\d) (\d);", one.completion)
        assert len(columns) == len(str(total)) == max(len(str(first)), len(str(second)))
        carry, digits_so_far = 0, ""
        for place, (p, a, q, b, c, tens, units, check) in enumerate(columns):
            assert p == q == PLACES[place] and int(c) == carry
            assert int(a) == first // 10**place % 10 and int(b) == second // 10**place % 10
            assert int(a) + int(b) + int(c) == int(tens + units)
            digits_so_far = units + digits_so_far
            assert int(check) == sum(map(int, digits_so_far)) % 10
            carry = int(tens)
        assert int(digits_so_far) == total and carry == 0
        check = sum(map(int, str(total))) % 10
        named = one.question.choices[LABELS.index(one.question.answer)]
        assert str(check) in named.split(" or ") and strict_answer(one.completion) == one.question.answer


def test_sums_are_the_same_every_time_and_splits_share_none() -> None:
    assert make_sum("test", 1, 7, (5, 8)) == make_sum("test", 1, 7, (5, 8)) != make_sum("test", 2, 7, (5, 8))
    # Fixed, so that a change of the generator is seen.
    assert make_sum("test", 1, 0, (5, 8)).question.stem == FIRST
    kept = {
        split: {frozenset(one.question.stem.split("+")) for one in make_sums(300, 1, (3, 3), split)}
        for split in ("train", "validation", "test")
    }
    assert not kept["train"] & kept["test"] and not kept["train"] & kept["validation"]
    assert len({one.question.stem for one in make_sums(300, 1, (3, 3), "test")}) == 300
    answers = [make_sum("train", 0, i, (5, 8)).question.answer for i in range(1000)]
    assert all(150 < answers.count(label) < 250 for label in LABELS)


FIRST = "k6h1o8+h7t3o2"


@pytest.mark.parametrize("digits", [(1, 3), (4, 3), (6, 9)])
def test_impossible_digits_are_refused(digits: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="2-8"):
        make_sum("train", 0, 0, digits)


def test_too_few_different_sums() -> None:
    with pytest.raises(ValueError, match="fewer than"):
        make_sums(1_000, 0, (2, 2), "test")


def test_the_tokenizer_gives_every_sum_back() -> None:
    tokenizer = sums_tokenizer()
    for i in range(50):
        one = make_sum("train", 0, i, (2, 8))
        text = build_prompt(one.question) + one.completion
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.unk_token_id not in ids
        # Joined from two parts as from one, so that training and predicting see the same tokens.
        parts = tokenizer(build_prompt(one.question))["input_ids"] + tokenizer(one.completion)["input_ids"]
        assert parts == ids and len(ids) < 90
    assert tokenizer.unk_token_id in tokenizer("ü")["input_ids"]


def test_the_verb_writes_questions_solutions_and_tokenizer(tmp_path, capsys) -> None:
    questions, solved = tmp_path / "q.jsonl", tmp_path / "s.jsonl"
    common = ["make-data", "sums", "--n", "20", "--seed", "4", "--digits", "5-8"]
    assert main([*common, "--out", str(questions)]) == 0
    assert main([*common, "--out", str(solved), "--solved", "--tokenizer", str(tmp_path / "tok")]) == 0
    read = read_commonsense_qa(questions)
    rows = [json.loads(line) for line in solved.read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == [build_prompt(question) for question in read]
    assert all(strict_answer(row["completion"]) == q.answer for row, q in zip(rows, read, strict=True))
    assert (tmp_path / "tok" / "tokenizer.json").is_file()
    assert main([*common]) == 0 and len(capsys.readouterr().out.splitlines()) == 20
    for bad in (["--digits", "x"], ["--digits", "3-9"], ["--n", "0"]):
        assert main(["make-data", "sums", *bad]) == 2
