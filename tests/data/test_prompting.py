import datetime

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from lit_hass.data.prompting import Prompting
from lit_hass.errors import UserError

BOS_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture
def with_bos(tsv_tokenizer, tmp_path):
    """A tokenizer that adds a BOS by itself and has one in its chat template too, as Llama's do."""
    tsv_tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = BOS_TEMPLATE
    assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    return tokenizer


def test_chat_uses_the_template_of_the_tokenizer(tsv_tokenizer) -> None:
    prompting = Prompting(tsv_tokenizer)
    assert prompting.text(["a"], []) == "<|user|>a<|assistant|>"
    text = prompting.text(["a", "b", "c"], ["x", " y"])
    assert text == "<|user|>a<|assistant|>x<|end|><|user|>b<|assistant|> y<|end|><|user|>c<|assistant|>"
    assert prompting.encode(["a"], []).tolist() == tsv_tokenizer("<|user|>a<|assistant|>")["input_ids"]


def test_plain_continues_text(tsv_tokenizer) -> None:
    prompting = Prompting(tsv_tokenizer, "plain", None, "Q: {turn}\nA:", "\n---\n")
    assert prompting.text(["one"], []) == "Q: one\nA:"
    assert prompting.text(["one", "two"], [" 1"]) == "Q: one\nA: 1\n---\nQ: two\nA:"
    system = Prompting(tsv_tokenizer, "plain", "Be short.")
    assert system.text(["{turn} {0}"], []) == "Be short.\n\n{turn} {0}"


def test_special_tokens_stand_once(with_bos) -> None:
    bos = with_bos.bos_token_id
    chat = Prompting(with_bos).encode(["a", "b"], ["x"]).tolist()
    assert chat.count(bos) == 1 and chat[0] == bos
    plain = Prompting(with_bos, "plain").encode(["a", "b"], ["x"]).tolist()
    assert plain.count(bos) == 1 and plain[0] == bos
    assert with_bos.decode(plain[1:]) == "ax\n\nb"


def test_a_system_prompt_goes_first(with_bos) -> None:
    prompting = Prompting(with_bos, system_prompt="S")
    assert prompting.text(["a"], []) == "<s>[system]S[user]a[assistant]"


def test_a_template_that_refuses_a_system_prompt_is_a_user_error(tsv_tokenizer) -> None:
    with pytest.raises(UserError, match="chat template refuses the conversation: .*not system"):
        Prompting(tsv_tokenizer, system_prompt="S").text(["a"], [])


def test_no_chat_template_is_refused_and_plain_is_proposed(with_bos) -> None:
    with_bos.chat_template = None
    with pytest.raises(UserError, match="no chat template; use --data.template plain"):
        Prompting(with_bos)
    Prompting(with_bos, "plain")


def test_a_plain_template_without_the_turn_is_refused(tsv_tokenizer) -> None:
    with pytest.raises(UserError, match="lacks {turn}"):
        Prompting(tsv_tokenizer, "plain", plain_template="Q: {question}")


def test_answers_must_fit_the_turns(tsv_tokenizer) -> None:
    with pytest.raises(ValueError, match="2 turns go with 1 earlier answers, not 0"):
        Prompting(tsv_tokenizer).text(["a", "b"], [])


def test_decoding_keeps_white_space_and_drops_special_tokens(tsv_tokenizer) -> None:
    ids = tsv_tokenizer(" a , b .\t\n<|end|>")["input_ids"]
    assert Prompting(tsv_tokenizer).decode(ids) == " a , b .\t\n"


def test_settings_tell_what_decides_a_prompt(tsv_tokenizer) -> None:
    chat = Prompting(tsv_tokenizer, separator="x").settings()
    assert chat == Prompting(tsv_tokenizer, separator="y").settings()  # of no effect in chats
    assert chat["chat_template"] == tsv_tokenizer.chat_template
    plain = Prompting(tsv_tokenizer, "plain", separator="x").settings()
    assert plain != Prompting(tsv_tokenizer, "plain", separator="y").settings()
    assert plain["chat_template"] is None


DATED = BOS_TEMPLATE.replace("{{ bos_token }}", "Today: {{ strftime_now('%d %b %Y') }}")


def test_a_template_is_told_one_day(with_bos) -> None:
    with_bos.chat_template = DATED
    assert Prompting(with_bos, date="2024-07-26").text(["a"], []) == "Today: 26 Jul 2024[user]a[assistant]"
    today = Prompting(with_bos)
    assert today.settings()["date"] is None  # nobody has asked yet
    expected = with_bos.apply_chat_template(
        [{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False
    )
    assert today.text(["a"], []) == expected
    assert today.settings()["date"] == today.day == datetime.date.today().isoformat()
    # What transformers gives to the template afterwards is its own clock again.
    Prompting(with_bos, date="2024-07-26").text(["a"], [])
    messages = [{"role": "user", "content": "a"}]
    assert with_bos.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == expected


def test_a_template_that_asks_for_no_date_has_none(with_bos) -> None:
    prompting = Prompting(with_bos, date="2024-07-26")
    prompting.text(["a"], [])
    assert prompting.settings()["date"] is None


def test_what_is_no_date_is_refused(with_bos) -> None:
    with pytest.raises(UserError, match="data.date '26 July' is no date; write it as 20"):
        Prompting(with_bos, date="26 July")
