import pytest
import torch

from callbacks.answer_writer import answer_line
from lit_hass.decoding import Generation
from lit_hass.modules.conversation import Conversation, QuestionOutcome, TurnOutcome
from lit_hass.records import Question

QUESTION = Question(1, None, ("a", "b"))


def turn(text: str) -> TurnOutcome:
    return TurnOutcome(text.strip(), text, Generation(torch.tensor([1]), "stop"), 3, None, 1, 0.1)


@pytest.mark.parametrize(
    ("said", "reference", "same"),
    [
        ("a\tb", "a\tb", True),
        ("a\r\nb", "a\nb", True),
        ("a\nb", "a\r\nb", True),
        ("a ", "a", False),
        (" a", "a", False),
        ("\ta", "\ta", True),
        ("A", "a", False),
        ("a\n", "a", False),
        ("a\rb", "a\nb", False),
        ("", "", True),
    ],
)
def test_an_answer_matches_to_the_character(said: str, reference: str, same: bool) -> None:
    assert turn(said).matches(reference) is same


def test_any_accepted_answer_is_an_exact_match() -> None:
    question = Question(1, None, ("a", "b", "c"), ("x", "z"), (("x", "y"), ("z",)))
    for said, expected in (("xzx", [True, True, None]), ("yxy", [True, False, None]), ("zzz", [False, True, None])):
        line = answer_line(QuestionOutcome(question, [[turn(text) for text in said]]), "m")
        assert line["choices"][0]["exact_match"] == expected


def test_a_question_fails_with_any_of_its_conversations() -> None:
    good = Conversation(QUESTION, 0, ["x"], [turn("x")])
    bad = Conversation(QUESTION, 1, error="too long")
    assert QuestionOutcome.of([good]).choices == [good.turns] and QuestionOutcome.of([good]).error is None
    outcome = QuestionOutcome.of([good, bad])
    assert outcome.choices == [] and outcome.error == "choice 1: too long" and outcome.question is QUESTION
