"""Completions are scored, prompts and padding are not; nothing is cut; bad lines are named."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from lit_hass.data import CompletionDataModule
from lit_hass.data.batches import IGNORE, collate
from lit_hass.errors import UserError

ROWS = [
    {"prompt": "Q: one\nA:", "completion": " the answer is x (A).", "id": 1},
    {"prompt": "Q: a longer question\nA:", "completion": " y", "iter": 0},
]


def write(folder: Path, *rows: object) -> str:
    path = folder / "completions.jsonl"
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return str(path)


def read(path: str, tokenizer: Path, **settings) -> CompletionDataModule:
    data = CompletionDataModule(path, str(tokenizer), validation_file=path, **settings)
    data.setup("fit")
    return data


def test_completion_and_end_are_scored_and_nothing_else(tmp_path, tiny_base, tsv_tokenizer) -> None:
    data = read(write(tmp_path, *ROWS), tiny_base)
    [batch] = data.val_dataloader()
    by_length = sorted(ROWS, key=lambda row: len(tsv_tokenizer(row["prompt"] + row["completion"])["input_ids"]))
    for row, ids, mask, labels in zip(by_length, batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        before = tsv_tokenizer(row["prompt"])["input_ids"]
        after = [*tsv_tokenizer(row["completion"])["input_ids"], tsv_tokenizer.eos_token_id]
        n = len(before) + len(after)
        assert ids[:n].tolist() == before + after and int(mask.sum()) == n
        assert labels[: len(before)].tolist() == [IGNORE] * len(before)
        assert labels[len(before) : n].tolist() == after and (labels[n:] == IGNORE).all()


def test_the_loss_is_that_of_the_completions_alone(tmp_path, tiny_base) -> None:
    from lit_hass.modules import LanguageModelingModule

    data = read(write(tmp_path, *ROWS), tiny_base)
    [batch] = data.val_dataloader()
    module = LanguageModelingModule(base=str(tiny_base))
    module.configure_model()
    logits, targets = module(batch)
    plain = AutoModelForCausalLM.from_pretrained(tiny_base).double()
    terms = []
    for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
        n = int(mask.sum())
        scores = plain(input_ids=ids[None, :n]).logits[0].log_softmax(-1)
        terms += [-scores[t - 1, ids[t]] for t in range(n) if labels[t] != IGNORE]
    assert F.cross_entropy(logits, targets).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_what_is_too_long_is_left_out_and_counted(tmp_path, tiny_base, caplog) -> None:
    path = write(tmp_path, *ROWS)
    lengths = sorted(int(n) for n in read(path, tiny_base).val_dataloader().dataset[0].attention_mask.sum(1))
    with caplog.at_level("WARNING", "lit_hass"):
        data = read(path, tiny_base, max_length=lengths[0])
    assert data.skipped_long == 1 and "left out 1 of 2 rows" in caplog.text
    with pytest.raises(UserError, match="all 2 rows are longer"):
        read(path, tiny_base, max_length=lengths[0] - 1)


@pytest.mark.parametrize(
    ("rows", "cause"),
    [
        ((), "holds no completions"),
        ((ROWS[0], "{"), ":2: not valid JSON"),
        ((ROWS[0], {"prompt": "x"}), ":2: prompt and completion"),
        (({"prompt": "x", "completion": ""},), ":1: prompt and completion"),
    ],
)
def test_bad_files(tmp_path, tiny_base, rows, cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        read(write(tmp_path, *rows), tiny_base)


def test_batches_are_of_all_rows(tmp_path, tiny_base) -> None:
    many = [{"prompt": f"Q{i}:", "completion": f" {i}"} for i in range(23)]
    data = read(write(tmp_path, *many), tiny_base, batch_size=2)
    seen = sum(batch.size for batch in data.val_dataloader())
    assert seen == 23 and collate(data._train[:2]).size == 2
