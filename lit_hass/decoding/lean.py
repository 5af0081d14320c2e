"""A hand-written forward for Llama-like models: the same numbers, without the overhead per token.

Preallocated keys and values sized to the job, few operations per layer, no module calls. Row b's token at position p
lies in slot p, so prompts are padded on the right, where the causal mask hides the padding without any mask tensor,
and later tokens overwrite it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lit_hass.decoding.forward import BaseForward, KVCache
from lit_hass.decoding.lean_weights import LeanLayer, arrange, stamp

#: Up to this many new tokens of a single row, attention is two plain products.
_FEW = 32


class LeanCache(KVCache):
    """Keys and values of all layers in one tensor, and the rotary table of the job.

    Attributes:
        data: ``[L, B, 2K, capacity, D]``, keys in the first K heads, values in the others.
        starts: ``[B]`` int64 on the device, equal to ``lengths``.
        rotary: Cosine and sine ``[capacity, D]``, or for folded weights one complex ``[capacity, D / 2]``.
    """

    def __init__(self, data: Tensor, rotary: tuple[Tensor, ...]) -> None:
        """Start empty."""
        self.data = data
        self.layers = list(data.unbind(0))
        self.rotary = rotary
        self.lengths = [0] * data.shape[1]
        self.starts = torch.zeros(data.shape[1], dtype=torch.long, device=data.device)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        index = torch.tensor(list(rows), device=self.data.device)
        self.data = self.data.index_select(1, index)
        self.layers = list(self.data.unbind(0))
        self.starts = self.starts[index]
        self.lengths = [self.lengths[row] for row in rows]


class LeanForward(BaseForward):
    """Llama, Mistral, Qwen2 and Qwen3 without their sliding windows; see ``lean_weights.unsupported``."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Arrange the model's weights (copies of at most 256 MiB)."""
        super().__init__(model)
        self._weights = arrange(model)
        self._head: Any = model.get_output_embeddings()

    def new_cache(self, batch: int, capacity: int) -> LeanCache:
        """Allocate keys and values for ``capacity`` tokens per row."""
        if self._weights.stamp != stamp(self.model):  # trained or loaded into since
            self._weights = arrange(self.model)
        w = self._weights
        shape = (len(w.layers), batch, 2 * w.kv_heads, capacity, w.head_dim)
        # Zeros: a masked slot has weight 0, and 0 times what happens to lie in fresh memory may be NaN.
        data = torch.zeros(shape, dtype=self.dtype, device=self.device)
        return LeanCache(data, self._rotary(capacity))

    def prefill(self, prompts: Sequence[Tensor], cache: KVCache) -> list[Tensor]:
        """Feed the prompts, padded on the right."""
        assert isinstance(cache, LeanCache)
        lengths = [len(prompt) for prompt in prompts]
        ids = pad_sequence([p.cpu() for p in prompts], batch_first=True).to(self.device)
        hidden = self._run(ids, cache, start=0, mask=None, slots=None, turn=self._turn(cache, slice(0, ids.shape[1])))
        cache.lengths = lengths
        cache.starts = torch.tensor(lengths, device=self.device)
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]

    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append T tokens to every row."""
        assert isinstance(cache, LeanCache)
        count = ids.shape[1]
        first, total = cache.lengths[0], max(cache.lengths) + count
        if min(cache.lengths) + count == total:
            mask = self._mask(cache, count, total) if count > 1 else None
            hidden = self._run(ids, cache, first, mask, None, self._turn(cache, slice(first, total)))
        else:
            slots = cache.starts[:, None] + torch.arange(count, device=ids.device)  # [B, T]
            hidden = self._run(
                ids, cache, total - count, self._mask(cache, count, total), slots, self._turn(cache, slots)
            )
        cache.lengths = [length + count for length in cache.lengths]
        cache.starts = cache.starts + count
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the output layer's logits in float32."""
        return F.linear(hidden, self._head.weight, self._head.bias).float()

    def _rotary(self, capacity: int) -> tuple[Tensor, ...]:
        """Tables by transformers' own frequencies and scaling, rounded to the model's dtype as there."""
        rotary: Any = self.model.base_model.rotary_emb
        angles = torch.arange(capacity, device=self.device).float()[:, None] * rotary.inv_freq.float()
        cos, sin = angles.cos() * rotary.attention_scaling, angles.sin() * rotary.attention_scaling
        if self._weights.folded:
            return (torch.complex(cos, sin),)
        # The sign belongs to rotate_half; putting it here is exact and makes that one roll.
        return torch.cat((cos, cos), -1).to(self.dtype), torch.cat((-sin, sin), -1).to(self.dtype)

    @staticmethod
    def _turn(cache: LeanCache, positions: slice | Tensor) -> tuple[Tensor, ...]:
        """Rows of the rotary table as ``[T, 1, D]`` or ``[B, T, 1, D]``."""
        return tuple(table[positions].unsqueeze(-2) for table in cache.rotary)

    def _mask(self, cache: LeanCache, count: int, total: int) -> Tensor:
        """``[B, 1, T, total]`` additive: 0 for committed slots and for new ones up to the query's own, else -inf."""
        relative = torch.arange(total, device=self.device) - cache.starts[:, None]  # [B, total]
        hidden = relative[:, None, :] > torch.arange(count, device=self.device)[:, None]  # [B, T, total]
        mask = torch.zeros(hidden.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(hidden, -math.inf)[:, None]

    def _run(
        self,
        ids: Tensor,
        cache: LeanCache,
        start: int,
        mask: Tensor | None,
        slots: Tensor | None,
        turn: tuple[Tensor, ...],
    ) -> Tensor:
        """Run all layers over ``[B, T]`` new tokens, writing to ``slots`` or to ``start ..`` in every row."""
        w = self._weights
        batch, count = ids.shape
        alone = w.folded and batch == 1 and start > 0 and count <= _FEW
        x = F.embedding(ids.reshape(-1), w.embedding)  # [B T, H]
        for layer, kv in zip(w.layers, cache.layers, strict=True):
            qkv = _product(self._norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
            if alone:
                attended = self._attend_alone(qkv.view(count, -1, w.head_dim), layer, kv[0], start, mask, turn[0])
            else:
                attended = self._attend(qkv.view(batch, count, -1, w.head_dim), layer, kv, start, mask, slots, turn)
            x = self._add(x, attended, layer.o, layer.o_bias)
            gate_up = _product(self._norm(x, layer.post_norm), layer.gate_up, layer.gate_up_bias)
            gate, up = gate_up.view(batch * count, 2, -1).unbind(1)
            x = self._add(x, w.activation(gate).mul_(up), layer.down, layer.down_bias)
        return self._norm(x, w.norm).view(batch, count, -1)

    def _attend(
        self,
        qkv: Tensor,
        layer: LeanLayer,
        kv: Tensor,
        start: int,
        mask: Tensor | None,
        slots: Tensor | None,
        turn: tuple[Tensor, ...],
    ) -> Tensor:
        """Attention of ``[B, T, heads, D]`` projections over the cache; returns ``[B T, heads * D]``."""
        w = self._weights
        batch, count = qkv.shape[:2]
        turned = w.heads + w.kv_heads
        qk = qkv[:, :, :turned]
        if layer.qk_norm is not None:
            qk.copy_(F.rms_norm(qk, (w.head_dim,), None, layer.qk_eps) * layer.qk_norm)
        if w.folded:
            torch.view_as_complex(qkv.view(batch, count, -1, w.head_dim // 2, 2))[:, :, :turned].mul_(turn[0])
        else:
            half = torch.roll(qk, w.head_dim // 2, -1)
            qk.mul_(turn[0]).add_(half.mul_(turn[1]))
        new = qkv[:, :, w.heads :]
        if slots is None:
            kv[:, :, start : start + count] = new.transpose(1, 2)
        else:
            kv[torch.arange(batch, device=kv.device)[:, None], :, slots] = new
        seen = kv[:, :, : start + count]
        attended = F.scaled_dot_product_attention(
            qkv[:, :, : w.heads].transpose(1, 2),
            seen[:, : w.kv_heads],
            seen[:, w.kv_heads :],
            attn_mask=mask,
            is_causal=count > 1 and mask is None,
            scale=w.scaling,
            enable_gqa=w.heads != w.kv_heads,
        )
        return attended.transpose(1, 2).reshape(batch * count, -1)

    def _attend_alone(
        self, qkv: Tensor, layer: LeanLayer, kv: Tensor, start: int, mask: Tensor | None, turn: Tensor
    ) -> Tensor:
        """The same for few tokens of a single row, ``[T, heads, D]`` and a cache ``[2K, capacity, D]``.

        Two small products cost less than one call of the fused kernel, and need fewer views.
        """
        w = self._weights
        count, all_heads, width = qkv.shape
        turned, end = w.heads + w.kv_heads, start + count
        if layer.qk_norm is not None:
            qk = qkv.narrow(1, 0, turned)
            qk.copy_(F.rms_norm(qk, (width,), None, layer.qk_eps) * layer.qk_norm)
        torch.view_as_complex(qkv.view(count, all_heads, width // 2, 2)).narrow(1, 0, turned).mul_(turn)
        kv.narrow(1, start, count).copy_(qkv.narrow(1, w.heads, 2 * w.kv_heads).transpose(0, 1))
        keys, values = kv.narrow(1, 0, end).chunk(2)
        queries = qkv.narrow(1, 0, w.heads).transpose(0, 1).reshape(w.kv_heads, -1, width)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if mask is not None:
            scores.view(w.kv_heads, -1, count, end).add_(mask[0])
        attended = torch.bmm(torch.softmax(scores, dim=-1), values)
        return attended.view(w.heads, count, width).transpose(0, 1).reshape(count, -1)

    def _norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        w = self._weights
        if w.folded:
            # x / sqrt(mean(x^2) + eps) in three small operations; CPUs have no fused RMS norm. The square root of
            # the width, by which this is too small, is part of the weights.
            x = x / torch.hypot(torch.linalg.vector_norm(x, dim=-1, keepdim=True), w.floor)
            return x if weight is None else x * weight
        # Rounded to the model's dtype before the weight is applied, as in transformers.
        x = F.rms_norm(x, (x.shape[-1],), None, w.eps)
        return x if weight is None else x * weight

    def _add(self, x: Tensor, rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """``x + rows @ matrix + bias``: in one operation in float32, else rounded as in transformers."""
        if self.dtype == torch.float32 and bias is None:
            return torch.addmm(x, rows, matrix)
        return x + (torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix))


def _product(x: Tensor, matrices: list[Tensor], bias: Tensor | None) -> Tensor:
    """``x`` times one fused matrix, or times several side by side."""
    if len(matrices) == 1:
        return torch.mm(x, matrices[0]) if bias is None else torch.addmm(bias, x, matrices[0])
    joined = torch.cat([torch.mm(x, matrix) for matrix in matrices], dim=-1)
    return joined if bias is None else joined + bias
