"""Which questions are asked, how they are batched, and what is refused before a model is loaded."""

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from lit_hass.data import CommonsenseQADataModule
from lit_hass.data.commonsense_qa_prompts import build_prompt, read_shots
from lit_hass.data.commonsense_qa_questions import read_commonsense_qa
from lit_hass.data.prompt_batches import padding_waste
from lit_hass.data.sums.tokenizer import sums_tokenizer
from lit_hass.errors import UserError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> str:
    """Letters as tokens: prompts are long and of many lengths."""
    folder = tmp_path_factory.mktemp("tokenizer")
    sums_tokenizer().save_pretrained(folder)
    return str(folder)


def asked(tokenizer: str, gen_length: int = 16, **settings) -> CommonsenseQADataModule:
    data = CommonsenseQADataModule(tokenizer=tokenizer, **settings)
    data.check(SimpleNamespace(base=None, max_new_tokens=gen_length))
    return data


def test_the_questions_of_the_shots_are_left_out(tokenizer, caplog) -> None:
    with caplog.at_level("INFO", "lit_hass"):
        data = asked(tokenizer)
    assert len(data.questions) == 40 and "left out 4 questions that the shots answer" in caplog.text
    stems = {question.stem for question in data.questions}
    assert not any(stem in shot for shot in read_shots("commonsense_qa") for stem in stems)
    assert len(asked(tokenizer, exclude_shots=False).questions) == 44
    assert len(asked(tokenizer, shots=None).questions) == 44


def test_prompts_are_shots_and_question_and_hints_name_the_answer(tokenizer) -> None:
    plain, hinted = asked(tokenizer), asked(tokenizer, hints=True)
    for data, hints in ((plain, False), (hinted, True)):
        for row in data.rows:
            hint = row.question.answer if hints else None
            assert row.prompt == build_prompt(row.question, read_shots("commonsense_qa", hints), hint)
            assert row.plain_prompt == build_prompt(row.question) and row.hinted == hints
            assert f"({row.question.answer})\nOptions" not in row.plain_prompt


def test_batches_are_padded_on_the_left_longest_first_and_waste_little(tokenizer) -> None:
    # Letters, and the pieces of the shipped base, which the shipped config begins with.
    for shots, name in product(("commonsense_qa", None), (tokenizer, "html_to_tsv")):
        data = asked(name, shots=shots)
        batches = data.batches(data.rows)
        assert sorted(i for batch in batches for i in batch.id) == sorted(q.id for q in data.questions)
        lengths = []
        for batch in batches:
            assert batch.input_ids.shape == batch.attention_mask.shape
            for row, ids, mask in zip(batch.rows, batch.input_ids, batch.attention_mask, strict=True):
                n = len(row.ids)
                assert ids[-n:].tolist() == list(row.ids) and mask[-n:].all() and not mask[:-n].any()
                lengths.append(n)
            assert [prompt.tolist() for prompt in batch.prompts] == [list(row.ids) for row in batch.rows]
            assert int(batch.attention_mask.sum(1).max()) == batch.input_ids.shape[1]
        assert lengths == sorted(lengths, reverse=True)
        cells = sum(batch.input_ids.numel() for batch in batches)
        waste = 1 - sum(lengths) / cells
        assert waste == pytest.approx(padding_waste(lengths, data.batch_size)) and waste < 0.05


def test_limit_and_parts_are_drawn_by_id_and_share_nothing(tokenizer) -> None:
    few, same, other = (asked(tokenizer, limit=10, seed=seed) for seed in (0, 0, 1))
    ids = [[question.id for question in data.questions] for data in (few, same, other)]
    assert len(ids[0]) == 10 and ids[0] == ids[1] != ids[2] and ids[0] == sorted(ids[0])
    parts = [{q.id for q in asked(tokenizer, part=part).questions} for part in ("train", "validation")]
    assert not parts[0] & parts[1] and len(parts[0] | parts[1]) == 40 and 2 <= len(parts[1]) <= 16


def test_prompts_over_the_budget(tokenizer) -> None:
    longest = max(len(row.ids) for row in asked(tokenizer).rows)
    assert len(asked(tokenizer, gen_length=16, max_length=longest + 16).rows) == 40
    with pytest.raises(UserError, match=rf"rows.jsonl:\d+: question .* {longest} tokens; the budget is {longest - 1}"):
        asked(tokenizer, gen_length=16, max_length=longest + 15)
    fewer = asked(tokenizer, gen_length=16, max_length=longest + 15, on_long="skip")
    assert 0 < len(fewer.rows) < 40 and len(fewer.rows) + len(fewer.skipped_long) == 40
    bare = asked(tokenizer, shots=None)
    room = max(len(row.ids) for row in bare.rows)
    dropped = asked(tokenizer, gen_length=16, max_length=room + 16, on_long="drop_shots")
    assert len(dropped.rows) == 40 and all(row.prompt.endswith(row.plain_prompt) for row in dropped.rows)
    assert all(len(row.ids) <= room for row in dropped.rows) and {row.shots for row in dropped.rows} <= {0, 1}
    with pytest.raises(UserError, match="without shots"):
        asked(tokenizer, gen_length=16, max_length=room + 15, on_long="drop_shots")


def test_settings_that_cannot_work(tokenizer, tiny_base) -> None:
    for settings in ({"batch_size": 0}, {"limit": 0}, {"max_length": 0}, {"validation_share": 1.0}):
        with pytest.raises(UserError, match=f"data.{next(iter(settings))}"):
            CommonsenseQADataModule(**settings)
    for gen_length in (64, 65):
        with pytest.raises(UserError, match=f"max_new_tokens {gen_length} leaves no room for a prompt"):
            asked(tokenizer, gen_length=gen_length, max_length=64)
    # The context of this base is 512.
    for settings, gen, cause in (({"max_length": 513}, 8, "context of 512"), ({}, 512, "no room"), ({}, 8, "budget")):
        with pytest.raises(UserError, match=cause):
            CommonsenseQADataModule(**settings).check(SimpleNamespace(base=str(tiny_base), max_new_tokens=gen))
    with pytest.raises(UserError, match="need a tokenizer"):
        CommonsenseQADataModule().check(SimpleNamespace(base=None, max_new_tokens=8))


def test_a_tokenizer_without_pad_and_end_is_refused_and_the_end_stands_in_for_pad(tokenizer, tmp_path) -> None:
    other = AutoTokenizer.from_pretrained(tokenizer)
    config = json.loads(Path(tokenizer, "tokenizer_config.json").read_text())
    for lost in (("pad_token",), ("pad_token", "eos_token")):
        other.save_pretrained(tmp_path)
        kept = {key: value for key, value in config.items() if key not in lost}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(kept))
        if len(lost) == 1:
            data = asked(str(tmp_path), shots=None)
            batch = data.batches(data.rows)[0]
            assert int(batch.input_ids[batch.attention_mask == 0].unique()) == other.eos_token_id
        else:
            with pytest.raises(UserError, match="neither a padding nor an end-of-sequence token"):
                asked(str(tmp_path))


def test_the_resume_key_knows_what_decides_the_answers(tokenizer) -> None:
    settings = [
        asked(tokenizer, **given).resume_settings()
        for given in ({}, {"batch_size": 3}, {"shots": None}, {"limit": 39}, {"hints": True})
    ]
    assert settings[0] == settings[1]
    assert all(settings[0] != other for other in settings[2:])
    assert torch.is_tensor(asked(tokenizer).batches(asked(tokenizer).rows)[0].input_ids)
    assert len(read_commonsense_qa("commonsense_qa")) == 44
