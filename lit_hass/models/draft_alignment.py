"""Harmonised context alignment: the draft's passes over a sequence, each in the context that decoding will give it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_hass.models.diagonal_attention import diagonal_attention
from lit_hass.models.draft import DraftModel


def aligned_passes(
    draft: DraftModel, token_ids: Tensor, features: Tensor, steps: int, reference_softmax_leak: bool = False
) -> Iterator[Tensor]:
    """Predict each row's next feature at depth 1, 2, ... of decoding.

    In pass s row t stands where decoding is after s - 1 own steps: its input is the feature that pass s - 1 predicted
    for it (row t - 1's output, without gradient), and it attends to the base's features up to row ``t - (s - 1)`` and
    to the inputs of passes 2 .. s at rows ``t - (s - 2) .. t``. So ``out_s[R - 2 + s]`` (rows counted from 0) is what
    cached decoding from R rows of base features predicts at depth s, as long as the drafted tokens are the sequence's
    own.

    Source: HASS, arXiv 2408.15766, section 3.2, with a causal mask that is applied. In the published code the logits of
    forbidden columns are multiplied by zero instead, so that each adds ``exp(0)`` to the softmax's denominator.

    Args:
        draft: In training or eval mode; gradients flow if they are on.
        token_ids: ``[B, L]`` int64, the token behind each feature; pads on the right.
        features: ``[B, L, H]`` of the base.
        steps: Number of passes S, at least 1.
        reference_softmax_leak: Reproduce the published code's denominators (they depend on the padded length L).

    Yields:
        S tensors ``[B, L, H]`` in the draft's dtype: predicted features t + 1.
    """
    attention, length = draft.layer.self_attn, token_ids.shape[1]
    rotary = draft.rotary(torch.arange(length, device=token_ids.device)[None])
    extra = None
    if reference_softmax_leak:
        # Row t sees t + 1 columns in all (each holds one of the sources); the others count exp(0) each.
        extra = torch.arange(length - 1, -1, -1, device=token_ids.device)
    # The embedding's half of fc is the same in every pass.
    half = draft.fc.weight.shape[0]
    embedded = F.linear(draft.embed_tokens(token_ids), draft.fc.weight[:, :half], draft.fc.bias)
    source = features.to(draft.dtype)
    keys: list[Tensor] = []
    values: list[Tensor] = []
    for step in range(1, steps + 1):
        x = embedded + F.linear(source, draft.fc.weight[:, half:])
        query, key, value = attention.project(x, rotary)
        keys.append(key)
        values.append(value)
        if step == 1 and extra is None:
            heads = F.scaled_dot_product_attention(
                query, key, value, is_causal=True, enable_gqa=query.shape[1] != key.shape[1]
            )
        else:
            heads = diagonal_attention(query, keys[0], values[0], keys[1:], values[1:], extra)
        predicted = draft.layer.finish(x, heads)
        yield predicted
        if step < steps:
            source = torch.cat((features[:, :1].to(draft.dtype), predicted.detach()[:, :-1]), dim=1)
