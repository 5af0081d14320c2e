"""Context alignment written out: what the efficient form must equal, and is timed against.

In step s there are s whole sets of keys. Every query looks at all s * L of them through a boolean mask that shows it
one column per position; all projections are made anew in each step, and the logits of all rows go through the output
layer. Nothing is shared, chunked or fused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_hass.models import DraftModel


def sfold_mask(length: int, step: int) -> Tensor:
    """``[L, s L]`` bool: query t sees source 0 up to t - (s - 1), and source j >= 1 at t - (s - 1 - j) alone."""
    t, i = torch.arange(length)[:, None], torch.arange(length)[None]
    blocks = [i <= t - (step - 1)]
    blocks += [i == t - (step - 1 - j) for j in range(1, step)]
    return torch.cat(blocks, dim=1)


def sfold_passes(draft: DraftModel, token_ids: Tensor, features: Tensor, steps: int) -> list[Tensor]:
    """Return the outputs ``[B, L, H]`` of S alignment steps."""
    attention, length = draft.layer.self_attn, token_ids.shape[1]
    rotary = draft.rotary(torch.arange(length, device=token_ids.device)[None])
    sources, outputs = [features], []
    for step in range(1, steps + 1):
        inputs = [draft.inputs(token_ids, source) for source in sources]
        query = attention.project(inputs[-1], rotary)[0]
        keys = torch.cat([attention.project(x, rotary)[1] for x in inputs], dim=2)
        values = torch.cat([attention.project(x, rotary)[2] for x in inputs], dim=2)
        groups = query.shape[1] // keys.shape[1]
        keys, values = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1)
        scores = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5
        scores = scores.masked_fill(~sfold_mask(length, step).to(scores.device), -torch.inf)
        outputs.append(draft.layer.finish(inputs[-1], scores.softmax(-1) @ values))
        sources.append(torch.cat((features[:, :1], outputs[-1].detach()[:, :-1]), dim=1))
    return outputs


def plain_loss(
    outputs: list[Tensor],
    targets: Tensor,
    mask: Tensor,
    head: Callable[[Tensor], Tensor],
    weights: tuple[float, float, float] = (1.0, 0.1, 1.0),
    top_k: int = 10,
) -> Tensor:
    """Return the summed loss by the plain formulas, over all rows, multiplied by the mask."""
    count = mask.sum() + 1e-5
    total = targets.new_zeros(())
    for output in outputs:
        truth = head(targets).softmax(-1)
        log_draft = head(output).log_softmax(-1)
        best = truth.topk(top_k, dim=-1)
        feature = F.smooth_l1_loss(output, targets, reduction="none").mean(-1)
        soft = -(truth * log_draft).sum(-1)
        top = -(best.values * log_draft.gather(-1, best.indices)).sum(-1)
        row = weights[0] * feature + weights[1] * soft + weights[2] * top
        total = total + (mask * row).sum() / count
    return total
