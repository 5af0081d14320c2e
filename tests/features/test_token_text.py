"""Tokens are named by what they read like, not by the vocabulary's spelling."""

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from lit_hass.features import CollapseConfig, CollapseMeasurement
from lit_hass.features.token_text import token_names, token_text


def test_byte_level_pieces(tsv_tokenizer):
    pieces = {tsv_tokenizer.convert_ids_to_tokens(i): i for i in range(len(tsv_tokenizer))}
    spaced = [piece for piece in pieces if piece.startswith("Ġ") and piece.strip("Ġ").isalnum()]
    assert spaced
    for piece in spaced:
        assert token_text(tsv_tokenizer, pieces[piece]) == piece.replace("Ġ", " ")
    assert token_text(tsv_tokenizer, pieces["Ċ"]) == "\n"
    assert token_text(tsv_tokenizer, pieces["ĺ"]) == "ĺ"  # half of a character
    end = tsv_tokenizer.eos_token
    assert token_text(tsv_tokenizer, tsv_tokenizer.eos_token_id) == end
    assert token_text(tsv_tokenizer, len(tsv_tokenizer) + 3) is None


@pytest.mark.parametrize(
    ("piece", "text"), [("▁the", " the"), ("the", "the"), ("▁▁", "  "), ("<0x0A>", "\n"), ("<0xE4>", "<0xE4>")]
)
def test_sentence_pieces(piece, text):
    inner = Tokenizer(WordLevel({piece: 0, "<unk>": 1}, "<unk>"))
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    assert token_text(PreTrainedTokenizerFast(tokenizer_object=inner), 0) == text


def test_a_measurement_names_its_tokens_so(tiny_base):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    spaced = next(i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i).startswith("Ġ"))
    with CollapseMeasurement.for_model(model, tokenizer, CollapseConfig(chunks=0)) as measurement:
        rows = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
        measurement.add_batch_features(rows, torch.tensor([spaced, spaced, 9, 9]))
        tokens = measurement.get_collapse_metrics()["token_metrics"]
    assert tokens[str(spaced)]["token"] == tokenizer.decode([spaced])
    assert tokens[str(spaced)]["token"].startswith(" ")
    assert token_names(None) is None
