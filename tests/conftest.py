"""Fixtures for all tests: no network, one thread, and a tiny model with its tokenizer."""

import os
from pathlib import Path

# Read when the hub's client is imported: a test that would ask a hub fails at once instead of waiting for it.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: E402

from lit_hass.data.html_to_tsv.tokenizer import train_tokenizer  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Tiny matrices are slower on several threads, and sums on one thread are the same every time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tsv_tokenizer() -> PreTrainedTokenizerFast:
    """The project's tokenizer with 600 pieces; do not change it."""
    return train_tokenizer(vocab_size=600, examples=1500)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory, tsv_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A folder with a random Llama of 2 layers and width 32, context 512, and `tsv_tokenizer`; do not change it."""
    folder = tmp_path_factory.mktemp("tiny_base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tsv_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=tsv_tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tsv_tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tsv_tokenizer.save_pretrained(folder)
    return folder
