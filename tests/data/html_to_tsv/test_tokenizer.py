import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_hass.data.html_to_tsv import Difficulty, make_example
from lit_hass.data.html_to_tsv.tokenizer import ASSISTANT, END, PAD, USER, train_tokenizer


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("difficulty", ["2x2-plain", "6x5"])
def test_every_example_comes_back_exactly(tsv_tokenizer, difficulty: str) -> None:
    for i in range(150):
        example = make_example("test", 0, i, Difficulty.parse(difficulty))
        for text in (example.question, example.tsv):
            assert tsv_tokenizer.decode(ids(tsv_tokenizer, text), clean_up_tokenization_spaces=False) == text


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text() | st.text(alphabet=" \t\r\n<>/=\"'&;#0123456789abXYé€日"))
def test_any_text_comes_back_exactly(tsv_tokenizer, text: str) -> None:
    if not any(token in text for token in (PAD, USER, ASSISTANT, END)):
        assert tsv_tokenizer.decode(ids(tsv_tokenizer, text), clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize("word", ["copper", "Fouquaixwem", "Müller", "91,064", "2024-03-17", "x", "€12"])
def test_a_word_is_the_same_tokens_wherever_it_stands(tsv_tokenizer, word: str) -> None:
    alone = ids(tsv_tokenizer, word)
    for before, after in ((">", "<"), ("\t", "\t"), (" ", " "), ("\n", "\n"), ("<td>", "</td>"), ('">', "</a>")):
        whole = ids(tsv_tokenizer, before + word + after)
        start = len(ids(tsv_tokenizer, before))
        assert whole[start : start + len(alone)] == alone
        assert whole == ids(tsv_tokenizer, before) + alone + ids(tsv_tokenizer, after)


def test_common_tags_are_one_token(tsv_tokenizer) -> None:
    for piece in ("<table>", "</table>", "<tr>", "</tr>", "<td>", "</td>", "\t", "\n", "&amp;"):
        assert len(ids(tsv_tokenizer, piece)) == 1, piece


def test_two_trainings_give_the_same_tokenizer() -> None:
    first, second = (train_tokenizer(400, 200) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()
    other = train_tokenizer(400, 200, seed=1)
    assert other.backend_tokenizer.to_str() != first.backend_tokenizer.to_str()


@pytest.mark.parametrize("size", [300, 450])
def test_the_vocabulary_has_the_size_asked_for(size: int) -> None:
    assert len(train_tokenizer(size, 200)) == size


def test_special_tokens(tsv_tokenizer) -> None:
    assert tsv_tokenizer.eos_token == END and tsv_tokenizer.pad_token == PAD
    assert tsv_tokenizer.bos_token is None and tsv_tokenizer.unk_token is None
    for token in (PAD, USER, ASSISTANT, END):
        assert ids(tsv_tokenizer, token) == [tsv_tokenizer.convert_tokens_to_ids(token)]
    assert tsv_tokenizer("a")["input_ids"] == ids(tsv_tokenizer, "a")  # none is added by itself


def test_the_chat_template_says_this(tsv_tokenizer) -> None:
    talk = [
        {"role": "user", "content": " a\n"},
        {"role": "assistant", "content": "b\t"},
        {"role": "user", "content": "c"},
    ]
    text = tsv_tokenizer.apply_chat_template(talk, tokenize=False)
    assert text == "<|user|> a\n<|assistant|>b\t<|end|><|user|>c"
    text = tsv_tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
    assert text == "<|user|> a\n<|assistant|>b\t<|end|><|user|>c<|assistant|>"


def test_a_system_prompt_is_refused(tsv_tokenizer) -> None:
    with pytest.raises(jinja2.TemplateError, match="user and assistant only, not system"):
        tsv_tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)
