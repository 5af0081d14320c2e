"""The memory formula: caches against real tensors, parameters against real models, peaks against what is allocated."""

import os

import pytest
import torch
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DynamicCache

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.lean_cache import LeanCache
from lit_hass.errors import UserError
from lit_hass.models.cache_sizes import cache_layers, kv_cache_bytes
from lit_hass.models.memory_estimate import ModelSizes, estimate_memory
from lit_hass.reports.lengths_verify import peak_bytes
from tests.decoding.tiny_models import build

#: Grouped queries; heads of their own width; windows; both kinds of layers; one key for all heads; no grouping at all.
FAMILIES = ("llama", "qwen3", "mistral_window", "gemma2", "gemma3", "qwen2_mixed", "falcon", "gpt2", "bloom", "opt")


def real_bytes(model, batch: int, prompt: int, more: int) -> int:
    cache = DynamicCache(config=model.config)
    ids = torch.ones(batch, prompt, dtype=torch.long)
    with torch.no_grad():
        model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
        for _ in range(more):
            model.base_model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("batch", "prompt", "more"), [(5, 7, 4), (2, 3, 2)])
def test_cache_bytes_are_those_of_the_tensors(family: str, batch: int, prompt: int, more: int) -> None:
    model = build(family)
    real = real_bytes(model, batch, prompt, more)
    assert kv_cache_bytes(model.config, batch, prompt + more, 4) == real > 0
    half = real_bytes(model.to(torch.bfloat16), batch, prompt, more)
    assert kv_cache_bytes(model.config, batch, prompt + more, 2) == half == real // 2


def test_the_published_figure() -> None:
    """A Llama of 3 layers, 2 key-value heads of width 8: 5 rows of 11 tokens in float32 are 21,120 bytes."""
    assert kv_cache_bytes(build("llama").config, 5, 11, 4) == 21120


def test_latent_attention_is_cached_compressed() -> None:
    torch.manual_seed(0)
    config = DeepseekV3Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=2, q_lora_rank=16, kv_lora_rank=12, qk_nope_head_dim=8, qk_rope_head_dim=4,
        v_head_dim=6, max_position_embeddings=64,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config).eval()
    assert kv_cache_bytes(config, 3, 9, 4) == real_bytes(model, 3, 6, 3)


def test_the_own_forwards_cache_has_the_same_width() -> None:
    forward = AutoregressiveDecoder(build("qwen3")).forward
    assert isinstance(forward, LeanForward)
    cache = forward.new_cache(3, 200)
    assert isinstance(cache, LeanCache)
    cache.reserve(200)
    assert cache.data.numel() * cache.data.element_size() == kv_cache_bytes(forward.model.config, 3, 200, 4)


@pytest.mark.parametrize(("family", "kind"), [("mamba", "linear_attention"), ("lfm2", "conv")])
def test_a_state_that_is_no_cache_is_refused(family: str, kind: str) -> None:
    with pytest.raises(UserError, match=kind):
        cache_layers(build(family).config)


def test_a_formula_that_is_wrong_is_refused() -> None:
    config = build("llama").config
    config.num_key_value_heads = 4
    assert ModelSizes.of(config, True).checked
    # A name that means nothing to the model and something to the formula.
    config.multi_query = True
    with pytest.raises(UserError, match="layer 0 of this llama caches 192 elements for three tokens and not the 48"):
        ModelSizes.of(config, True)


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gpt2", "gemma2", "mixtral", "llama_dynamic_rope"])
def test_parameters_are_counted_once(family: str) -> None:
    model = build(family)
    sizes = ModelSizes.of(model.config, True)
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.layer_parameters < sizes.parameters


def test_what_the_meta_device_cannot_run_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("WARNING", logger="lit_hass"):
        assert not ModelSizes.of(build("llama_dynamic_rope").config, False).checked
    assert "not compared" in caplog.text


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2", "mistral_window"])
@pytest.mark.parametrize(("batch", "prompt", "answer"), [(6, 60, 8), (3, 10, 150)])
def test_the_peak_by_formula_is_what_is_allocated(family: str, batch: int, prompt: int, answer: int) -> None:
    """Never less than 5 % below, which the reserve of 10 % covers, and not so far above that batches get small."""
    model = build(family)
    decoder = AutoregressiveDecoder(model)
    sizes = ModelSizes.of(model.config, isinstance(decoder.forward, LeanForward))
    estimate = estimate_memory(sizes, batch, prompt, answer, 4, on_cpu=True)
    ids = list(torch.randint(3, 90, (batch, prompt)))
    decoder.generate(ids, 2)
    measured = peak_bytes(lambda: decoder.generate(ids, answer), torch.device("cpu"))
    predicted = estimate.total - estimate.weights - estimate.copies
    assert 0.95 * measured < predicted < 2 * measured, (measured, predicted)


def test_the_peak_when_a_row_ends_early_and_tokens_are_sampled() -> None:
    model = build("llama")
    decoder = AutoregressiveDecoder(model)
    ids = list(torch.randint(3, 90, (8, 20)))
    answers = decoder.generate(ids, 120, SamplingConfig(1.0, 0.9))
    # Some row has a token late in its answer that no other row has had before: there it ends, and the cache is copied.
    stop = answers[0].output_ids[100].item()
    measured = peak_bytes(lambda: decoder.generate(ids, 120, SamplingConfig(1.0, 0.9), [stop]), torch.device("cpu"))
    sizes = ModelSizes.of(model.config, True)
    estimate = estimate_memory(sizes, 8, 20, 120, 4, on_cpu=True)
    assert measured < (estimate.total - estimate.weights - estimate.copies) / 0.95


def test_more_rows_never_take_less() -> None:
    sizes = ModelSizes.of(build("llama").config, True)
    totals = [estimate_memory(sizes, n, 100, 200, 2).total for n in range(1, 200)]
    assert totals == sorted(totals)


def test_the_profiler_is_silent_and_others_are_heard(capfd: pytest.CaptureFixture[str]) -> None:
    held = [torch.zeros(5000)]  # freed while the profiler runs, of which it warns

    def run() -> None:
        held.clear()
        os.write(2, b"a warning of somebody else\n")

    peak_bytes(run, torch.device("cpu"))
    assert capfd.readouterr().err == "a warning of somebody else\n"
