import pytest

from lit_hass.dialogues import implausible, user_opening
from lit_hass.dialogues.prompts import same_prompt
from lit_hass.errors import UserError


def test_the_opening_is_what_the_template_writes_in_front_of_the_user(tsv_tokenizer):
    opening = user_opening(tsv_tokenizer, [1])
    whole = tsv_tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 2"}], add_generation_prompt=True, tokenize=False
    )
    assert opening.ids and whole.startswith(tsv_tokenizer.decode(list(opening.ids)))
    assert whole.removeprefix(tsv_tokenizer.decode(list(opening.ids))).startswith("1 2")


def test_a_template_that_opens_no_turn_is_refused(tsv_tokenizer):
    import copy

    tokenizer = copy.deepcopy(tsv_tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="opens no user's turn"):
        user_opening(tokenizer, [1])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How do I bake bread?", None),
        ("Write Python code: `for i in range(3): print(i)`", None),
        ("Wie backt man ein gutes Brot?", None),
        ("Hello", "too short"),
        ("", "too short"),
        ("what is \ufffd in this text", "broken characters"),
        ("\u2603\u2603\u2603 \u2603\u2603\u2603\u2603 \u2603\u2603 ab", "odd characters"),
        ("so it is so it is so it is so it is so it is", "repeats itself"),
    ],
)
def test_what_passes_for_a_prompt(text, reason):
    assert implausible(text) == reason


def test_two_prompts_are_the_same_but_for_case_and_space():
    assert same_prompt("How  ARE\nyou?") == same_prompt("how are you?") != same_prompt("how are you")
