"""Causal attention over one set of keys, plus single keys on diagonals: the attention of context alignment.

Training the draft for its s-th step of decoding, row t attends to the base's features up to ``t - (s - 1)`` and to one
own prediction on each of the s - 1 diagonals behind. Written as keys, that is s matrices of L x L of which all but the
first hold one number a row. Here the diagonals are row-wise products, the one matrix is made in blocks of rows, and
nothing of it is kept for the backward pass: memory grows with L and with s, not with s x L x L.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

#: Rows per block of the L x L matrix.
BLOCK = 128


def diagonal_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    diagonal_keys: Sequence[Tensor] = (),
    diagonal_values: Sequence[Tensor] = (),
    extra: Tensor | None = None,
) -> Tensor:
    """Attend to shifted causal keys and to diagonals, in one softmax.

    With n pairs of diagonals, query t sees ``keys[i]`` for all ``i <= t - n``, and of the j-th diagonal pair
    (j = 0 .. n-1) row ``t - (n - 1 - j)``, where that exists.

    Args:
        query: ``[B, heads, L, D]`` floating point.
        keys: ``[B, kv_heads, L, D]``.
        values: ``[B, kv_heads, L, D]``.
        diagonal_keys: n tensors ``[B, kv_heads, L, D]``.
        diagonal_values: n tensors ``[B, kv_heads, L, D]``.
        extra: ``[L]``, added to the softmax's denominators in units of ``exp(0)``; None adds nothing.

    Returns:
        ``[B, heads, L, D]`` in the query's dtype. Sums are in float32 (float64 for float64 input).
    """
    return _DiagonalAttention.apply(query, keys, values, extra, *diagonal_keys, *diagonal_values)


class _DiagonalAttention(torch.autograd.Function):
    """The forward keeps its output and the logarithm of each denominator; the backward makes the weights anew."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, keys: Tensor, values: Tensor, extra: Tensor | None, *pairs: Tensor) -> Tensor:
        with torch.autocast(query.device.type, enabled=False):
            heads = _Heads(query, keys, values, pairs)
            diagonals = heads.diagonal_logits()
            floor = None if extra is None else extra.to(heads.kind).log()
            outputs, logs = [], []
            for start, end in heads.blocks():
                own = diagonals[..., start:end, :]  # [B, K, G, T, n]
                if floor is not None:
                    own = torch.cat((own, floor[start:end, None].expand(*own.shape[:-1], 1)), dim=-1)
                logits = heads.logits(start, end)  # [B, K, G, T, J], J may be 0
                top = torch.cat((logits.amax(-1, keepdim=True), own), -1) if logits.shape[-1] else own
                top = top.amax(-1)
                logits = logits.sub_(top[..., None]).exp_()
                weights = (own - top[..., None]).exp()
                total = logits.sum(-1) + weights.sum(-1)
                output = heads.times(logits, heads.values, end) + heads.gathered(weights, start, end)
                outputs.append(output / total[..., None])
                logs.append(top + total.log())
            output, log = torch.cat(outputs, 3), torch.cat(logs, 3)
        ctx.save_for_backward(query, keys, values, output, log, *pairs)
        return heads.ungroup(output).to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, output, log, *pairs = ctx.saved_tensors
        with torch.autocast(query.device.type, enabled=False):
            heads = _Heads(query, keys, values, tuple(pairs))
            grad = heads.group(grads[0]).to(heads.kind)
            # Of softmax and product together: d logit = weight * (d weight - sum over all of weight * d weight).
            mean = (grad * output).sum(-1)  # [B, K, G, L]
            d_query = torch.zeros_like(heads.query, dtype=heads.kind)
            d_keys, d_values = (torch.zeros_like(x, dtype=heads.kind) for x in (heads.keys, heads.values))
            for start, end in heads.blocks():
                seen = heads.seen(end)
                if seen == 0:
                    continue
                weights = heads.logits(start, end).sub_(log[..., start:end, None]).exp_()
                rows = grad[..., start:end, :]
                d_logits = heads.products(rows, heads.values, end).sub_(mean[..., start:end, None]).mul_(weights)
                d_logits = d_logits.mul_(heads.scale)
                d_query[..., start:end, :] = heads.times(d_logits, heads.keys, end)
                d_keys[:, :, :seen] += heads.transposed(d_logits, heads.query[..., start:end, :])
                d_values[:, :, :seen] += heads.transposed(weights, rows)
            d_pairs = heads.diagonal_grads(d_query, grad, log, mean)
            found = [heads.ungroup(d_query).to(query.dtype), d_keys.to(keys.dtype), d_values.to(values.dtype), None]
        return (*found, *(pair.to(kind.dtype) for pair, kind in zip(d_pairs, pairs, strict=True)))


class _Heads:
    """The tensors of one call, query heads grouped by the key head they share: ``[B, K, G, L, D]``."""

    def __init__(self, query: Tensor, keys: Tensor, values: Tensor, pairs: tuple[Tensor, ...]) -> None:
        self.kind = torch.float64 if query.dtype == torch.float64 else torch.float32
        self.group_size = query.shape[1] // keys.shape[1]
        self.query, self.keys, self.values = self.group(query), keys, values
        count = len(pairs) // 2
        self.diagonal_keys, self.diagonal_values = pairs[:count], pairs[count:]
        self.shift = count
        self.length, self.scale = query.shape[2], query.shape[3] ** -0.5

    def group(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (-1, self.group_size))

    @staticmethod
    def ungroup(x: Tensor) -> Tensor:
        return x.flatten(1, 2)

    def blocks(self) -> list[tuple[int, int]]:
        return [(start, min(start + BLOCK, self.length)) for start in range(0, self.length, BLOCK)]

    def seen(self, end: int) -> int:
        """How many of the shifted keys any row before ``end`` sees."""
        return max(0, end - self.shift)

    def products(self, rows: Tensor, other: Tensor, end: int) -> Tensor:
        """``[B, K, G, T, J]`` products of rows ``[B, K, G, T, D]`` with the first J keys or values."""
        flat = rows.to(other.dtype).flatten(2, 3) @ other[:, :, : self.seen(end)].transpose(2, 3)
        return flat.to(self.kind).unflatten(2, rows.shape[2:4])

    def logits(self, start: int, end: int) -> Tensor:
        """Scaled products with the shifted keys, -inf where a row may not look."""
        logits = self.products(self.query[..., start:end, :] * self.scale, self.keys, end)
        first = max(0, start + 1 - self.shift)  # keys before it are seen by all rows of the block
        seen = torch.arange(first, logits.shape[-1], device=logits.device) + self.shift
        later = seen > torch.arange(start, end, device=logits.device)[:, None]
        logits[..., first:].masked_fill_(later, -torch.inf)
        return logits

    def times(self, weights: Tensor, other: Tensor, end: int) -> Tensor:
        """Sum of the first J keys or values ``[B, K, G, T, D]`` by weights ``[B, K, G, T, J]``."""
        flat = weights.to(other.dtype).flatten(2, 3) @ other[:, :, : self.seen(end)]
        return flat.to(self.kind).unflatten(2, weights.shape[2:4])

    def transposed(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Gradient ``[B, K, J, D]`` of the keys or values that `times` or `products` read."""
        return (weights.flatten(2, 3).transpose(2, 3) @ rows.flatten(2, 3).to(self.kind)).to(self.kind)

    def offset(self, j: int) -> int:
        """How far behind the query the j-th diagonal is."""
        return self.shift - 1 - j

    def diagonal_logits(self) -> Tensor:
        """``[B, K, G, L, n]``, -inf before the beginning."""
        logits = self.query.new_full((*self.query.shape[:-1], self.shift), -torch.inf, dtype=self.kind)
        for j, keys in enumerate(self.diagonal_keys):
            ahead = self.offset(j)
            rows = self.query[..., ahead:, :].to(self.kind) * keys[:, :, None, : self.length - ahead].to(self.kind)
            logits[..., ahead:, j] = rows.sum(-1) * self.scale
        return logits

    def gathered(self, weights: Tensor, start: int, end: int) -> Tensor | float:
        """What rows ``start .. end`` take from the diagonals, by weights ``[B, K, G, T, >= n]``."""
        taken = self.query.new_zeros((*weights.shape[:-1], self.values.shape[-1]), dtype=self.kind)
        for j, values in enumerate(self.diagonal_values):
            first = max(start, self.offset(j))  # earlier rows have no such key
            rows = values[:, :, None, first - self.offset(j) : end - self.offset(j)].to(self.kind)
            if first < end:
                taken[..., first - start :, :] += weights[..., first - start :, j, None] * rows
        return taken

    def diagonal_grads(self, d_query: Tensor, grad: Tensor, log: Tensor, mean: Tensor) -> list[Tensor]:
        """Gradients of the diagonal keys and values; the query's share is added to ``d_query``."""
        weights = (self.diagonal_logits() - log[..., None]).exp()
        d_keys: list[Tensor] = []
        d_values: list[Tensor] = []
        for j, (keys, values) in enumerate(zip(self.diagonal_keys, self.diagonal_values, strict=True)):
            ahead, last = self.offset(j), self.length - self.offset(j)
            weight, rows = weights[..., ahead:, j, None], grad[..., ahead:, :]
            products = (rows * values[:, :, None, :last].to(self.kind)).sum(-1, keepdim=True)
            d_logit = weight * (products - mean[..., ahead:, None]) * self.scale
            d_query[..., ahead:, :] += d_logit * keys[:, :, None, :last].to(self.kind)
            for into, part in ((d_keys, d_logit * self.query[..., ahead:, :].to(self.kind)), (d_values, weight * rows)):
                whole = torch.zeros_like(keys, dtype=self.kind)
                whole[:, :, :last] = part.sum(2)
                into.append(whole)
        return d_keys + d_values
