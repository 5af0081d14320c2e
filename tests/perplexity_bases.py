"""Random models small enough for tests of perplexity, with a tokenizer that puts BOS in front, or not."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from lit_hass.pretrained import text_file

TEXT = text_file("invented_pages")
assert TEXT is not None


def make_tokenizer(bos: bool = True, eos: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 400 pieces, trained on the shipped text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=names, initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    tokenizer.train_from_iterator([TEXT.read_text(encoding="utf-8")], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    special = {"bos_token": "<s>"} if bos else {}
    if eos:
        special["eos_token"] = "</s>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def make_base(folder: Path, bos: bool = True, eos: bool = True, model_type: str = "llama", **settings) -> Path:
    """Save a random model of 2 layers and width 32 with such a tokenizer; context 64 unless told."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8, "initializer_range": 0.3,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
    }  # fmt: skip
    config = AutoConfig.for_model(model_type, **{**sizes, **settings})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    make_tokenizer(bos, eos).save_pretrained(folder)
    return folder


def write_text(path: Path, pages: int = 3) -> Path:
    """Write the first pages of the shipped text as a file."""
    from lit_hass.data.perplexity_text import split_pages

    found = split_pages(TEXT.read_text(encoding="utf-8"))[0][:pages]
    path.write_text(" \n" + "\n".join(found), encoding="utf-8", newline="")
    return path
