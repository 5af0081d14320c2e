"""The layers of a Llama-like model, hand-written: few operations per layer, no module calls."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_hass.decoding.lean_cache import Place
from lit_hass.decoding.lean_weights import LeanLayer, LeanWeights

#: Up to this many new tokens of a single row, attention is two plain products.
_FEW = 32


class LeanLayers:
    """A stack of decoder layers over preallocated keys and values."""

    def __init__(self, weights: LeanWeights) -> None:
        """Take arranged weights."""
        self.weights = weights

    def run(self, x: Tensor, batch: int, layers: list[Tensor], place: Place) -> Tensor:
        """Run all layers over new tokens, and write their keys and values where ``place`` says.

        Args:
            x: ``[B * T, H]``, may be overwritten.
            batch: B.
            layers: Per layer the cache ``[B, 2K, capacity, D]``.
            place: See `Place`.

        Returns:
            ``[B * T, H]``, before the final norm.
        """
        turn = self._alone(x.shape[0], batch, place)
        for layer, kv in zip(self.weights.layers, layers, strict=True):
            qkv = lean_product(self.norm(x, layer.input_norm), layer.qkv, layer.qkv_bias)
            x = self._behind(x, qkv, batch, layer, kv, place, turn)
        return x

    def run_one(self, x: Tensor, qkv: Tensor, batch: int, kv: Tensor, place: Place) -> Tensor:
        """Run the only layer, where its projections ``[B * T, heads * D]`` are made already; else like `run`."""
        turn = self._alone(x.shape[0], batch, place)
        return self._behind(x, qkv, batch, self.weights.layers[0], kv, place, turn)

    def run_last(
        self, x: Tensor, qkv: Tensor, batch: int, kv: Tensor, place: Place, rows: Tensor, after: Place
    ) -> Tensor:
        """Run the only layer over new tokens of which only one per row of the batch shall go on.

        Args:
            x: ``[B * T, H]``.
            qkv: ``[B * T, heads * D]``, its projections.
            batch: B.
            kv: The layer's cache ``[B, 2K, capacity, D]``; takes all tokens.
            place: Of all tokens.
            rows: ``[B]`` int64, which row of ``x`` goes on.
            after: What these see: a `Place` of one token per row, whose slots and rotary factors are not used.

        Returns:
            ``[B, H]``, before the final norm.
        """
        w, layer = self.weights, self.weights.layers[0]
        qkv = qkv.view(batch, x.shape[0] // batch, -1, w.head_dim)
        self._turn(qkv, layer, place)
        self._write(qkv, kv, place)
        queries = qkv[:, :, : w.heads].reshape(x.shape[0], w.heads, -1).index_select(0, rows)
        attended = self._sdpa(queries[:, :, None], kv[:, :, : after.end], after)
        return self._finish(x.index_select(0, rows), attended.reshape(batch, -1), layer)

    def _alone(self, count: int, batch: int, place: Place) -> Tensor | None:
        """Rotary factors of few tokens of a single row, which `_attend_alone` takes; None for all others."""
        if self.weights.folded and batch == 1 and place.end > count and count <= _FEW:
            return place.turn[0].view(count, 1, -1)
        return None

    def _behind(
        self, x: Tensor, qkv: Tensor, batch: int, layer: LeanLayer, kv: Tensor, place: Place, turn: Tensor | None
    ) -> Tensor:
        """Everything of a layer behind its projections."""
        if turn is not None:
            attended = self._attend_alone(qkv.view(x.shape[0], -1, self.weights.head_dim), layer, kv[0], place, turn)
        else:
            shape = (batch, x.shape[0] // batch, -1, self.weights.head_dim)
            attended = self._attend(qkv.view(shape), layer, kv, place)
        return self._finish(x, attended, layer)

    def _finish(self, x: Tensor, attended: Tensor, layer: LeanLayer) -> Tensor:
        """Everything behind the attention."""
        x = self._add(x, attended, layer.o, layer.o_bias)
        gate_up = lean_product(self.norm(x, layer.post_norm), layer.gate_up, layer.gate_up_bias)
        gate, up = gate_up.view(x.shape[0], 2, -1).unbind(1)
        return self._add(x, self.weights.activation(gate).mul_(up), layer.down, layer.down_bias)

    def _attend(self, qkv: Tensor, layer: LeanLayer, kv: Tensor, place: Place) -> Tensor:
        """Attention of ``[B, T, heads, D]`` projections over the cache; returns ``[B T, heads * D]``."""
        batch, count = qkv.shape[:2]
        self._turn(qkv, layer, place)
        self._write(qkv, kv, place)
        queries = qkv[:, :, : self.weights.heads].transpose(1, 2)
        return self._sdpa(queries, kv[:, :, : place.end], place).transpose(1, 2).reshape(batch * count, -1)

    def _turn(self, qkv: Tensor, layer: LeanLayer, place: Place) -> None:
        """Norm (of the kinds that have one) and rotary embedding of queries and keys, in place."""
        w, turn = self.weights, place.turn
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

    def _write(self, qkv: Tensor, kv: Tensor, place: Place) -> None:
        new = qkv[:, :, self.weights.heads :]
        if place.slots is None:
            kv[:, :, place.start : place.start + qkv.shape[1]] = new.transpose(1, 2)
        else:
            kv[torch.arange(kv.shape[0], device=kv.device)[:, None], :, place.slots] = new

    def _sdpa(self, queries: Tensor, seen: Tensor, place: Place) -> Tensor:
        """``[B, heads, T, D]`` of queries of that shape over ``[B, 2K, end, D]``."""
        w, mask = self.weights, place.mask
        return F.scaled_dot_product_attention(
            queries,
            seen[:, : w.kv_heads],
            seen[:, w.kv_heads :],
            attn_mask=mask,
            is_causal=queries.shape[2] > 1 and mask is None,
            scale=w.scaling,
            enable_gqa=w.heads != w.kv_heads,
        )

    def _attend_alone(self, qkv: Tensor, layer: LeanLayer, kv: Tensor, place: Place, turn: Tensor) -> Tensor:
        """The same for few tokens of a single row, ``[T, heads, D]`` and a cache ``[2K, capacity, D]``.

        Two small products cost less than one call of the fused kernel, and need fewer views.
        """
        w, start, end = self.weights, place.start, place.end
        count, all_heads, width = qkv.shape
        turned = w.heads + w.kv_heads
        if layer.qk_norm is not None:
            qk = qkv.narrow(1, 0, turned)
            qk.copy_(F.rms_norm(qk, (width,), None, layer.qk_eps) * layer.qk_norm)
        torch.view_as_complex(qkv.view(count, all_heads, width // 2, 2)).narrow(1, 0, turned).mul_(turn)
        kv.narrow(1, start, count).copy_(qkv.narrow(1, w.heads, 2 * w.kv_heads).transpose(0, 1))
        keys, values = kv.narrow(1, 0, end).chunk(2)
        queries = qkv.narrow(1, 0, w.heads).transpose(0, 1).reshape(w.kv_heads, -1, width)
        scores = torch.bmm(queries, keys.transpose(1, 2))
        if place.tail is not None:
            scores.view(w.kv_heads, -1, count, end)[..., place.tail_start :].add_(place.tail)
        attended = torch.bmm(torch.softmax(scores, dim=-1), values)
        return attended.view(w.heads, count, width).transpose(0, 1).reshape(count, -1)

    def norm(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """RMS norm of ``[N, H]`` by ``weight``, or by what is folded into the matrices behind it."""
        w = self.weights
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
        if x.dtype == torch.float32 and bias is None:
            return torch.addmm(x, rows, matrix)
        return x + (torch.mm(rows, matrix) if bias is None else torch.addmm(bias, rows, matrix))


def lean_product(x: Tensor, matrices: list[Tensor], bias: Tensor | None) -> Tensor:
    """``[N, in]`` times one fused matrix, or times several side by side."""
    if len(matrices) == 1:
        return torch.mm(x, matrices[0]) if bias is None else torch.addmm(bias, x, matrices[0])
    joined = torch.cat([torch.mm(x, matrix) for matrix in matrices], dim=-1)
    return joined if bias is None else joined + bias
