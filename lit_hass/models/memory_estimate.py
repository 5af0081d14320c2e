"""How much memory answering a batch takes, by arithmetic on a model's configuration.

What is counted are tensors: weights, keys and values, and the largest set of activations that live at one time. What a
device needs beside them (CUDA's context, kernels' workspaces, fragments) is not; keep a reserve.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig

from lit_hass.errors import UserError
from lit_hass.models.cache_sizes import LayerCache, cache_layers, head_dim, layer_config
from lit_hass.models.context import context_length
from lit_hass.models.decoder import find_decoder

log = logging.getLogger(__name__)

#: Activation functions that transformers writes out.
_MANY_STEPS = ("gelu_new", "gelu_fast", "gelu_accurate", "quick_gelu", "laplace")

#: Bytes per logit, beside the model's own dtype: float32, and with sampling the sorted copy with its order, its softmax
#: and sums, and the float64 noise with what it is added to.
SAMPLING_BYTES = 56

#: Slots beyond the prompt that the hand-written forward's cache has from the start.
SPARE_SLOTS = 64

#: Copies of weights are made for models whose layers take no more bytes than this.
COPY_LIMIT = 256 * 2**20


@dataclass(frozen=True)
class ModelSizes:
    """What of a model its memory depends on.

    Attributes:
        parameters: how many, tied ones once.
        layer_parameters: those of the decoder's layers.
        head_parameters: those of the output layer.
        caches: of each layer.
        hidden: width of the hidden states.
        queries: width of all query heads.
        feed_forward: width of the (widest) feed-forward layer.
        vocabulary: number of logits.
        context: greatest number of tokens, None where the configuration names none.
        own_forward: whether this project's hand-written forward decodes it, else the model's own.
        eager_heads: heads whose attention scores are written out; 0 where a fused kernel keeps them to itself.
        many_steps: whether the activation function is computed in several operations, each with a result of its own.
        checked: whether the caches were compared with the model's.
    """

    parameters: int
    layer_parameters: int
    head_parameters: int
    caches: tuple[LayerCache, ...]
    hidden: int
    queries: int
    feed_forward: int
    vocabulary: int
    context: int | None
    own_forward: bool
    eager_heads: int = 0
    many_steps: bool = False
    checked: bool = True

    @classmethod
    def of(cls, config: PreTrainedConfig, own_forward: bool) -> ModelSizes:
        """Read a configuration; parameters are counted on a model without memory (the device "meta").

        The formula for the cache is compared with what that model really caches for three tokens.

        Raises:
            UserError: a cache that no formula describes, or one that the formula gets wrong.
        """
        text: Any = config.get_text_config(decoder=True)
        caches = tuple(cache_layers(config))
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()
        head = model.get_output_embeddings()
        layers = max(
            (module for module in model.modules() if isinstance(module, torch.nn.ModuleList)),
            key=lambda module: sum(p.numel() for p in module.parameters()),
        )
        heads = int(text.num_attention_heads)
        return cls(
            parameters=sum(p.numel() for p in model.parameters()),
            layer_parameters=sum(p.numel() for p in layers.parameters()),
            head_parameters=0 if head is None else head.weight.numel(),
            caches=caches,
            hidden=int(text.hidden_size),
            queries=heads * max(head_dim(layer_config(text, index)) for index in range(len(caches))),
            feed_forward=_feed_forward(text),
            vocabulary=int(text.vocab_size),
            context=context_length(config),
            own_forward=own_forward,
            eager_heads=heads if _eager(model, text) else 0,
            many_steps=_activation(text) in _MANY_STEPS,
            checked=_checked(model, caches),
        )


def _checked(model: Any, caches: tuple[LayerCache, ...]) -> bool:
    """Compare the formula with what the model caches; False where it cannot run without memory."""
    cache = DynamicCache(config=model.config)
    try:
        with torch.no_grad():
            ids = torch.zeros(1, 3, dtype=torch.long, device="meta")
            find_decoder(model)[1](input_ids=ids, past_key_values=cache, use_cache=True)
    except RuntimeError as error:  # an operation that asks for a value, or has no kernel for tensors without memory
        log.warning("the formula of the cache was not compared with the model: %s", str(error).splitlines()[0])
        return False
    for index, expected in enumerate(caches):
        layer: Any = cache.layers[index] if index < len(cache.layers) else None
        parts = [part for name in ("keys", "values") if (part := getattr(layer, name, None)) is not None]
        real = sum(part.numel() for part in parts)
        if real != expected.elements(3):
            raise UserError(
                f"layer {index} of this {model.config.model_type} caches {real} elements for three tokens and not the "
                f"{expected.elements(3)} of the formula; its memory is not known by formula"
            )
    return True


def _feed_forward(text: Any) -> int:
    """The widest of a layer; experts work on their share of the tokens, all chosen ones of a token count."""
    for name in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        if isinstance(value := getattr(text, name, None), list | tuple):
            value = max(value)
        if value:
            width = int(value)
            break
    else:
        width = 4 * int(text.hidden_size)
    chosen = int(getattr(text, "num_experts_per_tok", 0) or 0)
    return max(width, chosen * int(getattr(text, "moe_intermediate_size", None) or width))


def _eager(model: Any, text: Any) -> bool:
    """Whether `load_base` gives it attention without a fused kernel."""
    return not getattr(model, "_supports_sdpa", False) or getattr(text, "attn_logit_softcapping", None) is not None


def _activation(text: Any) -> str:
    names = ("hidden_act", "activation_function", "hidden_activation", "activation")
    return str(next((value for name in names if (value := getattr(text, name, None))), "gelu_new"))


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that answering one batch takes, by what they are for.

    A batch has two moments: its prompts are read (``prefill`` beside the cache of the prompts), and its answers grow
    (``decode`` beside the whole cache). The larger one decides.

    Attributes:
        weights: of the model.
        copies: of weights, arranged for the hand-written forward (small models only).
        prompt_cache: keys and values while the prompts are read.
        prefill: activations of that.
        cache: keys and values of whole sequences.
        cache_copy: of keys and values, when the cache grows or a row has ended.
        logits: of one token of each row, and what choosing it takes.
    """

    weights: int
    copies: int
    prompt_cache: int
    prefill: int
    cache: int
    cache_copy: int
    logits: int

    @property
    def total(self) -> int:
        """The larger of both moments, weights included."""
        decode = self.cache + max(self.cache_copy, self.logits)
        return self.weights + self.copies + max(self.prompt_cache + max(self.prefill, self.logits), decode)


def estimate_memory(
    sizes: ModelSizes, batch: int, prompt: int, answer: int, bytes_per_element: int, on_cpu: bool = False
) -> MemoryEstimate:
    """Predict the memory of answering ``batch`` prompts with `AutoregressiveDecoder`, at worst.

    The worst is: all prompts have ``prompt`` tokens, all answers ``answer``, but for one that ends just before. The
    coefficients of activations are what lives at once in the widest moment of a layer, read off the forwards.

    Args:
        sizes: of the model.
        batch: rows.
        prompt: tokens of the longest prompt.
        answer: most new tokens.
        bytes_per_element: of weights, activations and cache.
        on_cpu: whether it runs on a CPU.
    """
    b, tokens = bytes_per_element, batch * prompt
    whole = batch * b * sum(layer.elements(prompt + answer) for layer in sizes.caches)
    widest, pairs = max(layer.width for layer in sizes.caches), 0
    if sizes.own_forward:
        slots = min(prompt + answer, prompt + SPARE_SLOTS)
        per_token = sum(layer.width for layer in sizes.caches)
        prompt_cache = batch * b * per_token * slots
        # The cache is copied whole: to a larger one, or without a row that has ended.
        grown = _last_growth(slots, prompt + answer)
        cache_copy = max(batch * b * per_token * grown, whole * (batch - 1) // batch)
        qkv = sizes.queries + widest
        attention = 2 * sizes.hidden + qkv + max(qkv, 3 * sizes.queries)
        feed_forward = 3 * sizes.hidden + qkv + sizes.queries + 4 * sizes.feed_forward
    else:
        # A windowed layer keeps the whole prompt's keys until the next token replaces them.
        prompt_cache = tokens * b * sum(layer.width for layer in sizes.caches)
        # One layer's, to a larger one; and keys and values of a group repeated for each of its heads.
        held = max(layer.elements(prompt + answer) for layer in sizes.caches)
        repeated = 0 if widest >= 2 * sizes.queries else 2 * sizes.queries * held // widest
        cache_copy = batch * b * (held + repeated)
        attention = 3 * sizes.hidden + 5 * sizes.queries + 3 * widest
        feed_forward = 3 * sizes.hidden + (5 if sizes.many_steps else 4) * sizes.feed_forward
        # What each token sees, as a mask; and the scores themselves, in two copies or in float32 and in half precision.
        pairs = tokens * prompt * (b + 1 + 8 * sizes.eager_heads)
    return MemoryEstimate(
        weights=sizes.parameters * b,
        copies=_copies(sizes, b, on_cpu),
        prompt_cache=prompt_cache,
        prefill=max(tokens * b * attention + pairs, tokens * b * feed_forward),
        cache=whole,
        cache_copy=cache_copy,
        logits=batch * sizes.vocabulary * (b + SAMPLING_BYTES),
    )


def _last_growth(slots: int, end: int) -> int:
    """Slots of the cache that the last one is copied from; 0 where the first is large enough."""
    before = 0
    while slots < end:
        # As LeanCache.reserve does when the first token beyond them comes.
        before, slots = slots, min(end, max(slots + 1 + SPARE_SLOTS, slots + slots // 2))
    return before


def _copies(sizes: ModelSizes, b: int, on_cpu: bool) -> int:
    if not sizes.own_forward or sizes.layer_parameters * b > COPY_LIMIT:
        return 0
    head = sizes.head_parameters * b
    return sizes.layer_parameters * b + (head if on_cpu and b == 4 and head <= COPY_LIMIT else 0)
