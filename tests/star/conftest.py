"""A tiny model that knows the format by heart: some questions right, some wrong, in seconds."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hass.data.batches import collate
from lit_hass.data.commonsense_qa_answers import strict_answer
from lit_hass.data.commonsense_qa_prompts import build_prompt
from lit_hass.data.commonsense_qa_questions import LABELS, to_row
from lit_hass.data.sums import make_sums
from lit_hass.data.sums.tokenizer import sums_tokenizer

#: Of the questions, these are learned with a wrong answer; the last without any end.
WRONG, ENDLESS = (2, 5, 8), 11
COUNT = 12


@pytest.fixture(scope="session")
def known(tmp_path_factory) -> SimpleNamespace:
    """``base``: a folder; ``train``, ``held_out``: question files; ``right``, ``wrong``: ids of the training file.

    Of the 12 training questions 8 are answered right, 3 wrong, and 1 right but without an end (so it is cut). With a
    hint, the wrong ones are answered right. Of the 6 held-out questions 4 are answered right.
    """
    folder = tmp_path_factory.mktemp("known")
    sums = make_sums(COUNT + 6, 5, (3, 4), "train")
    tokenizer = sums_tokenizer()
    rows, expected = [], {}
    for i, one in enumerate(sums):
        wrong = i in WRONG or i >= COUNT + 4
        text = f"; Therefore, the answer is 1 ({_other(one.question.answer) if wrong else one.question.answer})."
        if i == ENDLESS:
            text += "; " * 30
        expected[one.question.id] = text
        for hint, told in ((None, text), (one.question.answer, _right(text, one.question.answer))):
            if hint is not None and i not in WRONG:
                continue
            prompt = tokenizer(build_prompt(one.question, hint=hint))["input_ids"]
            rows.append((prompt + tokenizer(told)["input_ids"] + [tokenizer.eos_token_id], len(prompt)))
    _learn(rows, len(tokenizer), folder / "base")
    tokenizer.save_pretrained(folder / "base")
    files = {"train": sums[:COUNT], "held_out": sums[COUNT:]}
    for name, part in files.items():
        lines = [json.dumps(to_row(one.question)) + "\n" for one in part]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    ids = [one.question.id for one in sums[:COUNT]]
    return SimpleNamespace(
        base=folder / "base",
        train=folder / "train.jsonl",
        held_out=folder / "held_out.jsonl",
        ids=ids,
        wrong=[ids[i] for i in WRONG],
        endless=ids[ENDLESS],
        right=[key for i, key in enumerate(ids) if i not in WRONG and i != ENDLESS],
        expected=expected,
    )


def _other(label: str) -> str:
    return LABELS[(LABELS.index(label) + 1) % 5]


def _right(text: str, label: str) -> str:
    return text.replace(f"({strict_answer(text)})", f"({label})")


def _learn(rows: list, vocabulary: int, folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=160,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = collate(rows)
    for _ in range(300):
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 2e-3:
            break
    assert loss < 0.02, f"the fixture did not learn its rows: {loss}"
    model.save_pretrained(folder)
