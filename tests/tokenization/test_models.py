"""The transformers tokenizer made by `to_hf`: padding, tensors, a model, and a DataModule."""

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from lit_hass.data import TextDataModule
from lit_hass.tokenization import WordPieceTokenizer, train_wordpiece
from tests.tokenization.texts import corpora


def test_batches_for_a_model():
    own = WordPieceTokenizer(train_wordpiece(corpora()["english"], 400))
    texts = corpora()["english"][:3]
    batch = own.to_hf()(texts, padding=True, return_tensors="pt")
    assert [row[mask == 1].tolist() for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)] == (
        own.encode_batch(texts)
    )
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {own.pad_id}
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(own), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    model = BertModel(config).eval()
    with torch.no_grad():
        together = model(**batch).last_hidden_state
        for i, text in enumerate(texts):
            ids = torch.tensor([own.encode(text)])
            alone = model(input_ids=ids).last_hidden_state[0]
            torch.testing.assert_close(together[i, : ids.shape[1]], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("settings", [{}, {"max_chars": 7}, {"max_chars": 300}], ids=str)
def test_saved_and_loaded_it_gives_the_same_ids(settings, tmp_path):
    own = WordPieceTokenizer(train_wordpiece(corpora()["english"], 400, **settings), **settings)
    made = own.to_hf(eos_token="[SEP]")
    assert isinstance(made, BertTokenizerFast) is not bool(settings)
    made.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [*corpora()["english"], "eeeeeeee", "e" * 101, "e" * 301, "a [MASK]"]
    assert [loaded(text)["input_ids"] for text in texts] == own.encode_batch(texts)
    assert own.stats(texts).overlong > 0
    assert (loaded.eos_token_id, loaded.pad_token_id, loaded.mask_token_id) == (own.sep_id, own.pad_id, own.mask_id)
    assert loaded.decode(own.encode("The tree."), skip_special_tokens=True) == "the tree."


def test_blocks_of_a_data_module(tmp_path):
    text = "\n".join(corpora()["english"][:-1])
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    own = WordPieceTokenizer(train_wordpiece([text], 400, lowercase=False), lowercase=False)
    own.to_hf(eos_token="[SEP]").save_pretrained(tmp_path / "tokenizer")
    files, folder = [str(tmp_path / "text.txt")], str(tmp_path / "tokenizer")
    data = TextDataModule(files, folder, validation_files=files, block_size=16, batch_size=2)
    data.setup("fit")
    ids = [i for batch in data.val_dataloader() for i in batch.input_ids.flatten().tolist()]
    assert ids == [*own.encode(text, False), own.sep_id]
