"""The draft of HASS and EAGLE-1/2: one decoder layer that predicts the base's next feature.

Row t takes the base's feature ``f_t`` (after its final norm) and token ``t + 1``, has position ``t``, and predicts
feature ``t + 1``; the base's own output layer turns that into the logits of token ``t + 2``. So a prompt of n tokens
whose next token (the root) is known makes n rows, with the tokens 1 .. n.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import (
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
    apply_rotary_pos_emb,
)

from lit_hass.models.decoder import output_device
from lit_hass.models.draft_cache import DraftCache
from lit_hass.models.draft_checkpoint import save_draft
from lit_hass.models.draft_config import DraftConfig
from lit_hass.models.draft_vocabulary import DraftVocabulary

#: Rotary embeddings whose frequencies do not depend on the length of the sequence.
_STATIC_ROPE = ("default", "linear", "llama3", "yarn")


class DraftAttention(nn.Module):
    """The projections of the layer's attention; the attention itself is its callers' (full, cached or aligned)."""

    def __init__(self, config: DraftConfig) -> None:
        """Make the four projections."""
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def project(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[B, heads, T, D]``, keys and values ``[B, kv_heads, T, D]`` of ``[B, T, H]``."""
        shape = (*x.shape[:2], -1, self.head_dim)
        query, key, value = (layer(x).view(shape).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        query, key = apply_rotary_pos_emb(query, key, *(table.to(query.dtype) for table in rotary))
        return query, key, value

    def merge(self, heads: Tensor) -> Tensor:
        """``[B, T, H]`` of the heads' outputs ``[B, heads, T, D]``."""
        return self.o_proj(heads.transpose(1, 2).flatten(2))


class DraftLayer(nn.Module):
    """A Llama layer without its first norm: ``h = x + Attn(x)``, ``out = h + MLP(RMSNorm(h))``."""

    def __init__(self, config: DraftConfig, llama: LlamaConfig) -> None:
        """Make the parts, the feed-forward and the norm being those of ``transformers``."""
        super().__init__()
        self.self_attn = DraftAttention(config)
        self.mlp = LlamaMLP(llama)
        self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def finish(self, x: Tensor, heads: Tensor) -> Tensor:
        """Everything behind the attention: ``[B, T, H]`` of the input and the heads' outputs."""
        hidden = x + self.self_attn.merge(heads)
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class DraftModel(nn.Module):
    """The draft, with the parameter names and shapes of EAGLE checkpoints.

    The embedding is a frozen copy of the base's; there is no output layer (the base's is used) and no final norm
    (features are behind the base's).

    Source: HASS (arXiv 2408.15766), EAGLE (arXiv 2401.15077) and EAGLE-2 (arXiv 2406.16858).

    Args:
        config: Sizes and constants.

    Attributes:
        config: The same.
        vocabulary: The tokens that it scores; None are all of the base's.
    """

    def __init__(self, config: DraftConfig, vocabulary: DraftVocabulary | None = None) -> None:
        """Make a draft with random weights, its embedding left to be filled in."""
        super().__init__()
        llama = config.llama()
        self.config, self.vocabulary = config, vocabulary
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size).requires_grad_(False)
        self.fc = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=config.fc_bias)
        self.layers = nn.ModuleList([DraftLayer(config, llama)])
        # Not a submodule: a cast of the weights must not round the frequencies.
        self._rotary = [LlamaRotaryEmbedding(llama)]

    @classmethod
    def from_base(cls, base: PreTrainedModel, **overrides: Any) -> DraftModel:
        """Make a fresh draft for a base, with its embedding, on its device, in its dtype.

        The new weights are torch's defaults, drawn from its global generator.

        Args:
            base: A ``transformers`` model.
            **overrides: Fields of `DraftConfig` that shall differ from the base's.

        Raises:
            UserError: See `DraftConfig.from_base`.
        """
        draft = cls(DraftConfig.from_base(base, **overrides))
        draft.adopt_embedding(base)
        head: Any = base.get_output_embeddings()
        return draft.to(device=output_device(base), dtype=head.weight.dtype)

    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Take tensors as they are for the weights, none copied; for a draft that was made on the device "meta"."""
        self.load_state_dict(tensors, strict=True, assign=True)
        self.embed_tokens.requires_grad_(False)
        self._rotary = [LlamaRotaryEmbedding(self.config.llama())]

    def adopt_embedding(self, base: PreTrainedModel) -> None:
        """Copy the base's embedding (the rows that have logits; some models pad it)."""
        embedding: Any = base.get_input_embeddings()
        with torch.no_grad():
            self.embed_tokens.weight.copy_(embedding.weight[: self.config.vocab_size])

    @property
    def layer(self) -> DraftLayer:
        """The one layer."""
        return self.layers[0]  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.fc.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.fc.weight.device

    def rotary(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine ``[..., T, head_dim]`` in float32 for positions ``[..., T]``, by transformers' own code."""
        rotary = self._rotary[0]
        if rotary.inv_freq.device != position_ids.device:
            rotary.to(position_ids.device)
        dummy = torch.empty(0, dtype=torch.float32, device=position_ids.device)
        cos, sin = rotary(dummy, position_ids if position_ids.dim() > 1 else position_ids[None])
        return (cos, sin) if position_ids.dim() > 1 else (cos[0], sin[0])

    def rotary_frequencies(self) -> tuple[Tensor, float]:
        """``[head_dim / 2]`` float32 frequencies and the factor of cosine and sine, where both are constants."""
        return self._rotary[0].inv_freq, float(self._rotary[0].attention_scaling)

    def inputs(self, token_ids: Tensor, features: Tensor) -> Tensor:
        """The layer's input ``[B, T, H]``: ``fc`` of the embedding (first) and the feature."""
        return self.fc(torch.cat((self.embed_tokens(token_ids), features.to(self.dtype)), dim=-1))

    def new_cache(self, batch: int, capacity: int) -> DraftCache:
        """Return an empty cache for ``batch`` rows of up to ``capacity`` slots, draft rows included."""
        shape = (batch, self.config.num_key_value_heads, capacity, self.config.head_dim)
        # Zeros: a masked slot has weight 0, and 0 times what happens to lie in fresh memory may be NaN.
        keys, values = (torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        rotary = None
        if self.config.rope_parameters["rope_type"] in _STATIC_ROPE:
            cos, sin = self.rotary(torch.arange(capacity, device=self.device))
            rotary = cos.to(self.dtype), sin.to(self.dtype)
        return DraftCache(keys, values, rotary)

    def forward(
        self,
        token_ids: Tensor,
        features: Tensor,
        position_ids: Tensor | None = None,
        cache: DraftCache | None = None,
        offset: int = 0,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Predict the features that follow.

        Without a cache: whole sequences, each row seeing those before it and itself (pads belong on the right). With
        one (under ``torch.no_grad``): T more rows, written ``offset`` slots behind the committed ones, all of which
        they see; ``visible`` tells which of the slots behind those. Nothing is committed: call ``cache.commit`` for
        rows that were made from the base's features, and leave the others to be overwritten.

        Args:
            token_ids: ``[B, T]`` int64, for row t the token *behind* its feature.
            features: ``[B, T, H]``, the base's, or predicted ones.
            position_ids: ``[T]`` or ``[B, T]`` int64, the index of each row's feature; by default the rows' own slots.
            cache: Of `new_cache`.
            offset: Slots behind the committed rows that an earlier pass of this step has filled.
            visible: ``[T, offset + T]`` or ``[B, T, offset + T]`` bool; by default each row sees the slots before it
                and its own. A tree gives its ancestors here.

        Returns:
            ``[B, T, H]`` predicted features, in the draft's dtype.

        Raises:
            ValueError: The cache has too few slots.
        """
        attention, count = self.layer.self_attn, token_ids.shape[1]
        x = self.inputs(token_ids, features)
        if cache is None:
            steps = torch.arange(count, device=x.device) if position_ids is None else position_ids
            query, key, value = attention.project(x, self.rotary(steps if steps.dim() > 1 else steps[None]))
            mask = None
        else:
            cache.check_room(offset + count)
            if position_ids is None:
                steps = torch.arange(offset, offset + count, device=x.device)
                level = min(cache.lengths) == max(cache.lengths)
                position_ids = steps + cache.lengths[0] if level else cache.starts[:, None] + steps
            if position_ids.dim() == 1:
                position_ids = position_ids[None]
            tables = cache.rotary
            turn = self.rotary(position_ids) if tables is None else (tables[0][position_ids], tables[1][position_ids])
            query, key, value = attention.project(x, turn)
            end = cache.write(key, value, offset)
            key, value = cache.keys[:, :, :end], cache.values[:, :, :end]
            mask = cache.mask(count, offset, end, visible)
        heads = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=cache is None, enable_gqa=query.shape[1] != key.shape[1]
        )
        return self.layer.finish(x, heads)

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write ``config.json`` and ``model.safetensors``; see `save_draft`."""
        save_draft(self, folder, dtype)
