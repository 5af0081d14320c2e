"""How many bytes of keys and values a model keeps, by arithmetic on its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from lit_hass.errors import UserError

#: Layers whose keys and values are described by heads, widths and a window.
_FULL = ("full_attention",)
_WINDOWED = ("sliding_attention", "chunked_attention")
_NOTHING = ("dummy", "moe", "mlp")


@dataclass(frozen=True)
class LayerCache:
    """Keys and values of one layer.

    Attributes:
        width: elements per token and sequence, keys and values together.
        window: how many tokens the attention sees, itself included; None for all. One fewer is kept.
    """

    width: int
    window: int | None = None

    def elements(self, tokens: int) -> int:
        """Elements held for a sequence of so many tokens."""
        return self.width * (tokens if self.window is None else min(tokens, self.window - 1))


def cache_layers(config: PreTrainedConfig) -> list[LayerCache]:
    """The cache of each layer, read off a configuration.

    Grouped-query and multi-query attention, widths of heads of their own (``head_dim``), sliding and chunked windows,
    multi-head latent attention (compressed, with one rotary key for all heads) and layers that reuse another's cache
    are known.

    Raises:
        UserError: a layer keeps a state of another kind (linear attention, convolutions, compressed attention).
    """
    text = config.get_text_config(decoder=True)
    count = int(text.num_hidden_layers)
    kinds = getattr(text, "layer_types", None)
    window = getattr(text, "sliding_window", None)
    if kinds is None:
        chunk = getattr(text, "attention_chunk_size", None)
        kinds = [_kind(window, chunk)] * count
    shared = int(getattr(text, "num_kv_shared_layers", 0) or 0)
    found = []
    for index, kind in enumerate(kinds):
        own = layer_config(text, index)
        if kind in _NOTHING or index >= count - shared:
            found.append(LayerCache(0))
        elif kind in _FULL:
            found.append(LayerCache(_width(own)))
        elif kind in _WINDOWED:
            seen: Any = window if kind == "sliding_attention" else text.attention_chunk_size
            found.append(LayerCache(_width(own), int(seen)))
        else:
            raise UserError(
                f"layer {index} of this {text.model_type} is of kind {kind}, whose state is no cache of keys and "
                "values; its memory is not known by formula"
            )
    return found


def layer_config(text: Any, index: int) -> Any:
    """The configuration of one layer, where a family's layers differ in widths (Gemma-4), else of the whole model."""
    return text.per_layer_config[index] if getattr(text, "is_heterogeneous", False) else text


def _kind(window: int | None, chunk: int | None) -> str:
    if window is not None:
        return "sliding_attention"
    return "full_attention" if chunk is None else "chunked_attention"


def _width(text: Any) -> int:
    if getattr(text, "kv_lora_rank", None):
        return int(text.kv_lora_rank) + int(text.qk_rope_head_dim)
    return 2 * _kv_heads(text) * head_dim(text)


def _kv_heads(text: Any) -> int:
    heads = int(text.num_attention_heads)
    if getattr(text, "new_decoder_architecture", False):  # Falcon's second kind
        return int(text.num_kv_heads or heads)
    if getattr(text, "multi_query", False):
        return 1
    return int(getattr(text, "num_key_value_heads", None) or heads)


def head_dim(text: Any) -> int:
    """Width of one head, by a text model's configuration."""
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def kv_cache_bytes(config: PreTrainedConfig, batch: int, tokens: int, bytes_per_element: int) -> int:
    """Bytes of keys and values of all layers for ``batch`` sequences of ``tokens`` tokens.

    After generating, a cache holds one token less than prompt and answer have: nothing was computed from the last.

    Raises:
        UserError: see `cache_layers`.
    """
    return batch * bytes_per_element * sum(layer.elements(tokens) for layer in cache_layers(config))
