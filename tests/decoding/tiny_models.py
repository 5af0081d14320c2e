"""Tiny random models of many families, with logits far enough apart that rounding never decides."""

from collections.abc import Callable

import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    FalconConfig,
    FalconForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 97
_IDS = {"vocab_size": VOCAB, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LLAMA = {
    **_IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64}
_DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
#: Layers with and without a sliding window in one model.
_MIXED = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
_FALCON = {
    **_IDS,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": 256,
}
_GEMMA = {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 8, "initializer_range": 0.3}

_BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA)),
    "llama3_rope": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA, rope_parameters=_LLAMA3_ROPE)),
    "llama_yarn": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA, rope_parameters=_YARN_ROPE)),
    "llama_dynamic_rope": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA, rope_parameters=_DYNAMIC_ROPE)),
    "llama_biases": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA, attention_bias=True, mlp_bias=True)),
    "llama_tied": lambda: LlamaForCausalLM(LlamaConfig(**_LLAMA, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**_LLAMA)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**_LLAMA, head_dim=16)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**_LLAMA, sliding_window=None)),
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(**_LLAMA, sliding_window=8)),
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**_LLAMA, num_local_experts=4, num_experts_per_tok=2, sliding_window=None)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**_IDS, n_embd=32, n_layer=3, n_head=4, n_positions=256, initializer_range=0.2)
    ),
    "gpt_neox": lambda: GPTNeoXForCausalLM(
        GPTNeoXConfig(**{k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"})
    ),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **_IDS,
            hidden_size=32,
            ffn_dim=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=256,
            word_embed_proj_dim=24,
            init_std=0.2,
        )
    ),
    "bloom": lambda: BloomForCausalLM(BloomConfig(**_IDS, hidden_size=32, n_layer=3, n_head=4, initializer_range=0.2)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**_GEMMA, attn_implementation="eager")),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**_GEMMA)),
    "phi3": lambda: Phi3ForCausalLM(Phi3Config(**_LLAMA)),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**_LLAMA, logits_scaling=4.0, residual_multiplier=0.7)),
}
_TREE_BUILDERS: dict[str, Callable[[], PreTrainedModel]] = {
    "olmo2": lambda: Olmo2ForCausalLM(Olmo2Config(**_LLAMA)),
    "qwen2_mixed": lambda: Qwen2ForCausalLM(Qwen2Config(**_LLAMA, **_MIXED)),
    "qwen3_mixed": lambda: Qwen3ForCausalLM(Qwen3Config(**_LLAMA, head_dim=16, **_MIXED)),
    "falcon": lambda: FalconForCausalLM(FalconConfig(**_FALCON, alibi=False)),
    "falcon_alibi": lambda: FalconForCausalLM(FalconConfig(**_FALCON, alibi=True)),
    "mamba": lambda: MambaForCausalLM(MambaConfig(**_IDS, hidden_size=32, num_hidden_layers=2, state_size=4)),
    "lfm2": lambda: Lfm2ForCausalLM(Lfm2Config(**_LLAMA, layer_types=["conv", "full_attention", "conv"])),
}

FAMILIES = tuple(_BUILDERS)
#: More families, whose trees are tested.
TREE_FAMILIES = tuple(_TREE_BUILDERS)
#: Families that must get the hand-written forward.
LEAN = ("llama", "llama3_rope", "llama_yarn", "llama_biases", "llama_tied", "qwen2", "qwen3", "mistral")


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """Build one, in eval mode, random but the same every time; norms and biases are perturbed, too."""
    torch.manual_seed(seed)
    model = (_BUILDERS | _TREE_BUILDERS)[family]().eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1 if "norm" in name or "ln" in name else 0.05)
    return model


def prompt(length: int, seed: int = 0) -> torch.Tensor:
    """Random ids, none of them special."""
    return torch.randint(3, VOCAB, (length,), generator=torch.Generator().manual_seed(1000 * length + seed))
