"""Prompts to the character, shots from text and JSON, and which choice a text names."""

import json

import pytest

from lit_hass.data.commonsense_qa_answers import completion_of, loose_answer, strict_answer
from lit_hass.data.commonsense_qa_prompts import build_prompt, read_shots, shot_stems
from lit_hass.data.commonsense_qa_questions import MultipleChoiceQuestion, read_commonsense_qa
from lit_hass.errors import UserError

QUESTION = MultipleChoiceQuestion("q", "Where is it?", ("here", "there", "up", "down", "away"), "E")
PLAIN = "Q: Where is it?\nOptions:\n(A) here\n(B) there\n(C) up\n(D) down\n(E) away\nA:"
SHOT = "Q: Why?\nOptions:\n(A) a\n(B) b\n(C) c\n(D) d\n(E) e\nA: Because. Therefore, the answer is b (B)."


def test_a_prompt_to_the_character() -> None:
    assert build_prompt(QUESTION) == PLAIN
    assert build_prompt(QUESTION, [SHOT, SHOT]) == f"{SHOT}\n\n{SHOT}\n\n{PLAIN}"
    assert build_prompt(QUESTION, hint="E") == PLAIN.replace("Where is it?", "Where is it? (E)")
    with pytest.raises(ValueError):
        build_prompt(QUESTION, hint="F")


def test_shots_from_text_and_from_the_originals_json(tmp_path) -> None:
    text, other = tmp_path / "shots.txt", tmp_path / "shots.json"
    text.write_text(f"{SHOT}\r\n\r\n\r\n{SHOT}\n", encoding="utf-8-sig")
    other.write_text(json.dumps({"n_shot_prompts": [{"prompt": SHOT, "prompt_num": 1}] * 2}), encoding="utf-8")
    assert read_shots(text) == read_shots(other) == (SHOT, SHOT)
    assert shot_stems(read_shots(text)) == {"Why?"}


def test_the_shipped_shots_answer_the_first_questions() -> None:
    first = read_commonsense_qa("commonsense_qa")[:4]
    for hinted in (False, True):
        shots = read_shots("commonsense_qa", hinted)
        assert shot_stems(shots) == {question.stem for question in first}
        for question, shot in zip(first, shots, strict=True):
            assert shot.startswith(build_prompt(question, hint=question.answer if hinted else None))
            assert strict_answer(shot) == question.answer


@pytest.mark.parametrize(
    ("content", "hinted", "cause"),
    [
        ("", False, "holds no example"),
        ("hello\n", False, "does not begin with 'Q: ...'"),
        (SHOT.replace("answer is", "choice is"), False, "example 1 has no"),
        (SHOT, True, "no hint"),
        (SHOT.replace("Why?", "Why? (B)"), False, "has a hint"),
        (SHOT.replace("Why?", "Why? (C)"), True, "hint (C) and the answer (B)"),
        ('{"shots": []}', False, "n_shot_prompts"),
    ],
)
def test_bad_shots_are_refused_by_name(tmp_path, content: str, hinted: bool, cause: str) -> None:
    path = tmp_path / "shots.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as refused:
        read_shots(path, hinted)
    assert str(path) in str(refused.value) and cause in str(refused.value)


@pytest.mark.parametrize(
    ("text", "strict", "loose"),
    [
        (" Therefore, the answer is mailbox (A).", "A", "A"),
        ("the answer is (B). No, the answer is (C)", "C", "C"),
        ("A dog is an A student", None, "A"),
        ("the answer is\n(D)", None, "D"),
        ("the answer is E", None, "E"),
        ("the answer is paper (C). But television (A)", "C", "A"),
        ("nothing", None, None),
        ("the answer is x (B)\nso (D) was wrong", "B", "D"),
        ("the answer is vitamin (C) (D).", "D", "D"),
        ("the answer is vitamin (C), of course (D)! Not (A).", "D", "A"),
        ("the answer is St. Louis (B). No. 5 (E)", "B", "E"),
        ("the answer is (B) and then the answer is 3.5 (C) (A)", "A", "A"),
    ],
)
def test_strict_and_loose_reading(text: str, strict: str | None, loose: str | None) -> None:
    assert (strict_answer(text), loose_answer(text)) == (strict, loose)


def test_a_shot_whose_choice_has_a_letter_in_parentheses(tmp_path) -> None:
    path = tmp_path / "shots.txt"
    path.write_text(SHOT.replace("answer is b (B)", "answer is vitamin (C) (B)"), encoding="utf-8")
    assert len(read_shots(path)) == 1
    path.write_text(SHOT.replace("Why?", "Why? (B)").replace("answer is b (B)", "answer is vitamin (C) (B)"))
    assert len(read_shots(path, hinted=True)) == 1


def test_a_completion_ends_where_the_next_question_begins() -> None:
    assert completion_of(" yes (A). \n\nQ: next") == (" yes (A).", True)
    assert completion_of(" yes (A). ") == (" yes (A).", False)
