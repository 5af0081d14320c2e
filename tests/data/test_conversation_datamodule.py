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
    ids, spoken = encode_conversation(Prompting(tsv_tokenizer), question(["a table", "more"], ["first", "second one"]))
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
    assert texts == ["first<|end|>", "second one<|end|>"]


def test_plain_text(tsv_tokenizer):
    prompting = Prompting(tsv_tokenizer, "plain", plain_template="Q: {turn} A:", separator="\n")
    ids, spoken = encode_conversation(prompting, question(["one", "two"], [" first", " second"]))
    assert ids == tsv_tokenizer("Q: one A: first\nQ: two A: second")["input_ids"]
    own = tsv_tokenizer.decode([token for token, flag in zip(ids, spoken, strict=True) if flag])
    assert own == " first second"


def test_a_template_that_rewrites_what_was_said_is_refused(tsv_tokenizer):
    import copy

    changed = copy.deepcopy(tsv_tokenizer)
    changed.chat_template = "{{ messages | length }}" + tsv_tokenizer.chat_template
    with pytest.raises(UserError, match="question 'x', turn 1: the chat template or the tokenizer writes earlier"):
        encode_conversation(Prompting(changed), question(["a"], ["b"], "x"))


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
