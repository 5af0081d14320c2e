import copy
import json
import shutil

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lit_hass.data import ConversationDataModule
from lit_hass.data.batches import IGNORE
from lit_hass.data.conversation_datamodule import encode_conversation
from lit_hass.data.prompting import Prompting
from lit_hass.errors import UserError
from lit_hass.models import load_tokenizer
from lit_hass.records import Question


def question(turns, answers, number=1):
    return Question(number, None, tuple(turns), tuple(answers))


@pytest.fixture
def talks(tmp_path):
    """Write a file of conversations, and return its path."""

    def write(count=40, name="talks.jsonl", **more):
        lines = [
            {"question_id": i, "turns": [f"question {i}", "and"], "reference": [f"answer {i}", "no"], **more}
            for i in range(count)
        ]
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return str(path)

    return write


def test_exactly_the_answers_are_the_assistants(tsv_tokenizer):
    ids, spoken, taught = encode_conversation(
        Prompting(tsv_tokenizer), question(["a table", "more"], ["first", "second one"])
    )
    whole = "<|user|>a table<|assistant|>first<|end|><|user|>more<|assistant|>second one<|end|>"
    assert ids == tsv_tokenizer(whole, add_special_tokens=False)["input_ids"]
    runs = []
    for token, own in zip(ids, spoken, strict=True):
        if own and (not runs or runs[-1][-1] is None):
            runs.append([])
        if own:
            runs[-1].append(token)
        elif runs:
            runs[-1].append(None)
    texts = [tsv_tokenizer.decode([token for token in run if token is not None]) for run in runs]
    assert texts == ["first<|end|>", "second one<|end|>"] and taught == 2


def test_plain_text(tsv_tokenizer):
    prompting = Prompting(tsv_tokenizer, "plain", plain_template="Q: {turn} A:", separator="\n")
    ids, spoken, _ = encode_conversation(prompting, question(["one", "two"], [" first", " second"]))
    assert ids == tsv_tokenizer("Q: one A: first\nQ: two A: second")["input_ids"]
    own = tsv_tokenizer.decode([token for token, flag in zip(ids, spoken, strict=True) if flag])
    assert own == " first second"


QWEN3 = (
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 "
    "%}{% endif %}{% endfor %}{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' and loop.index0 "
    "> ns.last and '</think>' not in m['content'] %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
R1 = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] "
    "}}<|end|>{% else %}{{ m['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n"
    "{% endif %}"
)
KEPT = R1.replace(".split('</think>')[-1]", "")
COUNTED = "{{ messages | length }}" + R1.replace("<think>\n", "").replace(".split('</think>')[-1]", "")


@pytest.mark.parametrize(
    ("template", "turns", "answers", "heard", "said", "taught"),
    [
        # an empty thought is written into the last answer alone
        (QWEN3, "a", "x", "<|user|>a<|end|><|assistant|>", "<think>\n\n</think>\n\nx<|end|>", 1),
        (QWEN3, "ab", "xy", "<|user|>a<|end|><|assistant|>x<|end|><|user|>b<|end|><|assistant|>",
            "<think>\n\n</think>\n\ny<|end|>", 1),
        # the prompt opens a thought, which is taken out of what was said
        (R1, "a", ["hm</think>x"], "<|user|>a<|assistant|><think>\n", "hm</think>x<|end|>", 1),
        (R1, "ab", ["hm</think>x", "so</think>y"], "<|user|>a<|assistant|>x<|end|><|user|>b<|assistant|><think>\n",
            "so</think>y<|end|>", 1),
        (R1, "a", ["<think>\nhm</think>x"], "<|user|>a<|assistant|><think>\n", "hm</think>x<|end|>", 1),
        (R1, "a", [" <think>hm</think>x"], "<|user|>a<|assistant|><think>\n", "hm</think>x<|end|>", 1),
        # the same, and thoughts stay
        (KEPT, "a", ["hm</think>x"], "<|user|>a<|assistant|><think>\n", "hm</think>x<|end|>", 1),
        (KEPT, "ab", ["<think>\nhm</think>x", "<think>\nso</think>y"], "<|user|>a<|assistant|><think>\nhm</think>x"
            "<|end|><|user|>b<|assistant|><think>\n", "so</think>y<|end|>", 2),
        # answers without a thought stand as they are told later, all of them
        (R1, "a", "x", "<|user|>a<|assistant|>", "x<|end|>", 1),
        (COUNTED, "a", "x", "1<|user|>a<|assistant|>", "x<|end|>", 1),
        (COUNTED, "ab", "xy", "3<|user|>a<|assistant|>x<|end|><|user|>b<|assistant|>", "y<|end|>", 1),
    ],
)  # fmt: skip
def test_where_a_template_rewrites_the_last_turn_is_taught(
    tsv_tokenizer, template, turns, answers, heard, said, taught
):
    changed = copy.deepcopy(tsv_tokenizer)
    changed.chat_template = template
    ids, spoken, count = encode_conversation(Prompting(changed), question(list(turns), list(answers)))
    assert count == taught and (spoken == sorted(spoken)) is (taught == 1)
    last = len(spoken) - spoken[::-1].index(False)
    own = ids[last:]
    plain = tsv_tokenizer(heard, add_special_tokens=False)["input_ids"]
    assert ids[: len(ids) - len(own)] == plain
    assert own == tsv_tokenizer(said, add_special_tokens=False)["input_ids"]


def test_conversations_of_their_last_turn_alone_are_counted(talks, tiny_base, tmp_path, caplog):
    folder = tmp_path / "rewriting"
    tokenizer = load_tokenizer(str(tiny_base))
    tokenizer.chat_template = QWEN3
    tokenizer.save_pretrained(folder)
    data = ConversationDataModule(talks(), str(folder), validation_share=0.3)
    with caplog.at_level("WARNING", "lit_hass"):
        data.setup("fit")
    assert data.last_turn_only == 40 == len(data._train) + len(data._validation)
    assert "40 of 40 conversations are used in their last turn alone" in caplog.text
    for ids, spoken in data._train:
        assert tokenizer.decode([t for t, own in zip(ids, spoken, strict=True) if own]).endswith("no<|end|>")
    # cut before their last turn begins, they teach nothing
    whole = max(len(ids) for ids, _ in data._train)
    with pytest.raises(UserError, match="no token to train on"):
        ConversationDataModule(talks(), str(folder), max_length=whole // 2, validation_share=0.3).setup("fit")


def test_a_template_without_answers_is_refused(tsv_tokenizer):
    changed = copy.deepcopy(tsv_tokenizer)
    changed.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}{% endfor %}x"
    )
    with pytest.raises(UserError, match="does not write an answer down"):
        encode_conversation(Prompting(changed, plain_template="{turn}"), question(["a", "b"], ["c", "d"]))


def test_labels_and_padding(talks, tiny_base):
    data = ConversationDataModule(talks(), str(tiny_base), batch_size=3, validation_share=0.3)
    data.setup("fit")
    for batch in data.val_dataloader():
        own = batch.labels != IGNORE
        assert bool((batch.labels[own] == batch.input_ids[own]).all()) and bool(own.any(1).all())
        assert not bool((own & (batch.attention_mask == 0)).any())
        for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
            assert data.tokenizer.decode(ids[: mask.sum()]).endswith("<|end|>")


def test_the_split_stays_when_lines_are_added(talks, tiny_base):
    def sides(count):
        data = ConversationDataModule(talks(count, f"{count}.jsonl"), str(tiny_base), validation_share=0.3)
        data.setup("fit")
        return ({tuple(ids) for ids, _ in side} for side in (data._train, data._validation))

    few_train, few_validation = sides(20)
    many_train, many_validation = sides(60)
    assert few_train < many_train and few_validation < many_validation and not many_train & many_validation


def test_training_goes_on_where_it_was(talks, tiny_base):
    def first_batches(step, count):
        data = ConversationDataModule(talks(), str(tiny_base), batch_size=2, validation_share=0.3)
        data.setup("fit")
        data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, max_steps=99)
        data.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = step
        assert data.trainer.global_step == step
        stream = iter(data.train_dataloader())
        return [next(stream).input_ids for _ in range(count)]

    whole, rest = first_batches(0, 14), first_batches(6, 8)
    assert all(torch.equal(a, b) for a, b in zip(whole[6:], rest, strict=True))
    assert len({tuple(map(tuple, batch.tolist())) for batch in whole}) == 14


def test_long_conversations_are_cut(talks, tiny_base):
    data = ConversationDataModule(talks(), str(tiny_base), max_length=12, validation_share=0.3)
    data.setup("fit")
    assert max(len(ids) for ids, _ in data._train) == 12


class _Other(LightningModule):
    """A module that names no tokenizer."""


def test_refusals(talks, tiny_base):
    def setup(path=None, tokenizer=str(tiny_base), **more):
        ConversationDataModule(path or talks(), tokenizer, **more).setup("fit")

    with pytest.raises(UserError, match=r"question 0 has 2 turns and 1 references; each turn needs its answer"):
        setup(talks(reference=["only one"]))
    with pytest.raises(UserError, match="has 2 turns and 0 references"):
        ConversationDataModule(talks(reference=None), str(tiny_base)).check(_Other())
    with pytest.raises(UserError, match="no conversation falls to the share to validate on"):
        setup(talks(1), validation_share=0.001)
    with pytest.raises(UserError, match="no token to train on"):
        setup(max_length=3, validation_share=0.3)
    with pytest.raises(UserError, match="data.tokenizer is needed"):
        setup(tokenizer=None)
    with pytest.raises(UserError, match="no such question file"):
        setup("nothing.jsonl")
    for more in ({"validation_share": 0.0}, {"validation_share": 1.0}, {"max_length": 2}, {"batch_size": 0}):
        with pytest.raises(UserError, match="data."):
            setup(**more)


def test_a_template_that_writes_the_date_is_said(talks, tiny_base, tmp_path, caplog):
    base = shutil.copytree(tiny_base, tmp_path / "dated")
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + template)
    for tokenizer, said in ((tiny_base, False), (base, True)):
        caplog.clear()
        ConversationDataModule(talks(), str(tokenizer), validation_share=0.3).setup("fit")
        assert ("writes the date into every conversation" in caplog.text) == said


def test_the_date_of_a_template_can_be_set(talks, tiny_base, tmp_path, caplog):
    base = shutil.copytree(tiny_base, tmp_path / "dated")
    template = (base / "chat_template.jinja").read_text()
    (base / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}" + template)
    data = ConversationDataModule(talks(), str(base), validation_share=0.3, date="2024-07-26")
    data.setup("fit")
    assert "here 2024-07-26 (data.date sets it)" in caplog.text
    assert all(data.tokenizer.decode(ids).startswith("26 Jul 2024") for ids, _ in data._train + data._validation)
