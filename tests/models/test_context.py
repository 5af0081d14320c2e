"""How many tokens a model takes, by the kind of its rotary embedding."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, Gemma3TextConfig, GPT2Config, LlamaConfig, LlamaForCausalLM

from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.errors import UserError
from lit_hass.models import check_context, context_length, context_of_run, load_config

SIZES = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONG = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
#: Settings as published files have them, and what those models are said to take.
PUBLISHED = {
    "vicuna-7b-v1.5-16k": ("llama", 4096, {"factor": 4.0, "type": "linear"}, 16384),
    "longchat-7b-v1.5-32k": ("llama", 4096, {"factor": 8.0, "type": "linear"}, 32768),
    "dynamic x2": ("llama", 2048, {"factor": 2.0, "type": "dynamic"}, 2048),
    "Qwen2.5-7B-Instruct with YaRN": (
        "qwen2", 32768, {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}, 131072,
    ),
    "Qwen3-8B with YaRN": (
        "qwen3", 40960, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072,
    ),
    "Yarn-Llama-2-7b-64k": (
        "llama", 65536, {"factor": 16.0, "original_max_position_embeddings": 4096, "type": "yarn"}, 65536,
    ),
    "Llama-3.1-8B": ("llama", 131072, {**LLAMA3, "original_max_position_embeddings": 8192}, 131072),
    "Phi-3-mini-128k": ("llama", 131072, {**LONG, "original_max_position_embeddings": 4096}, 131072),
    "none": ("llama", 4096, None, 4096),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name, tmp_path):
    kind, stated, scaling, expected = PUBLISHED[name]
    content = {**SIZES, "model_type": kind, "max_position_embeddings": stated, "rope_theta": 1e4}
    (tmp_path / "config.json").write_text(json.dumps({**content, "rope_scaling": scaling} if scaling else content))
    assert context_length(load_config(tmp_path)) == expected


def test_rotary_embeddings_of_each_kind_of_layer():
    """Gemma 3 states the scaled figure; its scaling is that of the layers with full attention."""
    rope = {"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}}
    rope["sliding_attention"] = {"rope_type": "default", "rope_theta": 1e4}
    config = Gemma3TextConfig(**SIZES, max_position_embeddings=131072, rope_parameters=rope)
    assert context_length(config) == 131072


def test_other_names_and_none():
    assert context_length(GPT2Config(n_positions=77)) == 77
    assert context_length(AutoConfig.for_model("mamba")) is None


@pytest.fixture(scope="module")
def stretched():
    torch.manual_seed(0)
    rope = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
    return LlamaForCausalLM(LlamaConfig(**SIZES, max_position_embeddings=16, rope_parameters=rope)).eval()


def test_answers_go_on_as_generate_does(stretched):
    """Up to the scaled figure; what ends there says so."""
    ids = torch.arange(12) + 3
    (answer, short) = AutoregressiveDecoder(stretched).generate([ids, ids[:4]], 52)
    expected = stretched.generate(ids[None], max_new_tokens=52, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert answer.output_ids.tolist() == expected[0, 12:].tolist()
    assert (answer.stop_reason, len(short.output_ids), short.stop_reason) == ("length", 52, "length")
    (answer,) = AutoregressiveDecoder(stretched).generate([ids], 100)
    assert (len(answer.output_ids), answer.stop_reason) == (52, "context")
    stop = [int(answer.output_ids[-1])]
    (answer,) = AutoregressiveDecoder(stretched).generate([ids], 100, stop_ids=stop)
    assert answer.stop_reason == "stop"


def test_the_option(stretched, tmp_path):
    stretched.save_pretrained(tmp_path / "base")
    GPT2Config(n_positions=64).save_pretrained(tmp_path / "gpt2")

    def run(base, context):
        return context_of_run(SimpleNamespace(base=str(tmp_path / base), context=context))

    assert (run("base", None), run("base", 32), run("base", 128)) == (64, 32, 128)
    assert (run("gpt2", None), run("gpt2", 32)) == (64, 32)
    assert context_of_run(SimpleNamespace(base=None)) is None
    with pytest.raises(UserError, match="a table of 64 positions only"):
        run("gpt2", 65)
    with pytest.raises(UserError, match=r"model.context must be at least 2, found 0"):
        check_context(stretched.config, 0)


def test_dynamic_frequencies_are_not_cached_beyond_the_stated_length():
    """There a whole forward turns all keys anew, which cached ones do not; so no option goes beyond."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    config = LlamaConfig(**SIZES, max_position_embeddings=16, rope_parameters=rope)
    assert (context_length(config), check_context(config, 12)) == (16, 12)
    with pytest.raises(UserError, match="from 16 tokens on the frequencies"):
        check_context(config, 32)
