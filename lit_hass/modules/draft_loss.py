"""What a draft is trained on: features that resemble the base's, and the base's distribution of the token behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_hass.errors import UserError

#: From features ``[N, H]`` to logits ``[N, V]``, without gradients of its own weights.
Head = Callable[[Tensor], Tensor]

#: Logits of one chunk of rows have at most this many entries (64 MiB in float32).
_CHUNK = 2**24
#: Keeps the mean over no rows finite; the published value.
_EPSILON = 1e-5


@dataclass(frozen=True)
class DraftLossConfig:
    """Weights of the three losses, which are summed.

    Args:
        feature_weight: of SmoothL1 (beta 1) between predicted and true features, averaged over the channels.
        soft_weight: of the cross-entropy between the base's distribution and the draft's.
        top_k_weight: of the same over the ``top_k`` likeliest tokens of the base, not renormalised.
        top_k: how many tokens that are.
    """

    feature_weight: float = 1.0
    soft_weight: float = 0.1
    top_k_weight: float = 1.0
    top_k: int = 10

    def __post_init__(self) -> None:
        """Check the weights.

        Raises:
            UserError: One is negative, or there is none.
        """
        weights = (self.feature_weight, self.soft_weight, self.top_k_weight)
        if min(weights) < 0 or max(weights) == 0 or self.top_k < 1:
            raise UserError(
                f"model.loss: weights must not be negative nor all 0, and top_k at least 1; found {weights} "
                f"and {self.top_k}"
            )


@dataclass
class DraftLoss:
    """Sums over the S alignment steps, and what is worth watching of each.

    Attributes:
        total: 0-dim, to be minimised: the sum over the steps of the weighted losses.
        feature: ``[S]`` SmoothL1 of each step, unweighted.
        soft: ``[S]`` soft cross-entropy of each step, in nats.
        top_k: ``[S]`` cross-entropy of the likeliest tokens of each step, in nats.
        agreement: ``[S, N]`` bool: the draft's likeliest token is the base's.
    """

    total: Tensor
    feature: Tensor
    soft: Tensor
    top_k: Tensor
    agreement: Tensor


def draft_loss(
    predicted: Sequence[Tensor],
    targets: Tensor,
    mask: Tensor,
    head: Head,
    config: DraftLossConfig,
    chunk: int = 1024,
    best: Tensor | None = None,
) -> DraftLoss:
    """Compare the draft's passes with the base.

    The output layer is applied to rows with ``mask`` only, in chunks; the base's distribution and its likeliest tokens
    are computed once for all passes, and of a chunk's logits nothing is kept but the gradient of the rows.

    Source: HASS, arXiv 2408.15766, equations 3 to 6; SmoothL1 and soft cross-entropy from EAGLE.

    Args:
        predicted: S tensors ``[B, L, H]`` of `aligned_passes`.
        targets: ``[B, L, H]``, the base's features that they should be.
        mask: ``[B, L]`` bool with N rows set; the others cost and count nothing.
        head: The base's output layer, ``[N, H] -> [N, V]``; of a draft that scores some tokens only, their logits: then
            the base's distribution is the one over these.
        config: Weights.
        chunk: Rows whose logits are computed at once; see `chunk_rows`.
        best: ``[N]`` int64, the column of the token that is the base's own choice, -1 where it has none; None takes the
            largest logit of ``head``.

    Returns:
        The losses, each divided by N + 1e-5.
    """
    wanted = targets[mask]  # [N, H]
    rows = torch.stack([output[mask] for output in predicted])  # [S, N, H]
    share = 1.0 / (wanted.shape[0] + _EPSILON)
    distance = F.smooth_l1_loss(_wide(rows), _wide(wanted).expand(rows.shape), reduction="none")
    feature = distance.mean(-1).sum(-1) * share  # [S]
    distilled, soft, top_k, agreement = _Distillation.apply(rows, wanted, head, config, chunk, best)
    total = config.feature_weight * feature.sum() + share * distilled
    return DraftLoss(total, feature.detach(), soft * share, top_k * share, agreement)


def chunk_rows(vocab_size: int) -> int:
    """How many rows' logits may be held at once."""
    return max(16, _CHUNK // vocab_size)


def _wide(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that."""
    return x if x.dtype == torch.float64 else x.float()


class _Distillation(torch.autograd.Function):
    """Both cross-entropies, summed over rows and passes, with their gradient computed chunk by chunk on the way."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        wanted: Tensor,
        head: Head,
        config: DraftLossConfig,
        chunk: int,
        choices: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        steps, count = rows.shape[:2]
        training = ctx.needs_input_grad[0]
        grads = torch.zeros_like(rows) if training else None
        soft, top = (_wide(rows.new_zeros(steps)) for _ in range(2))
        agreement = torch.zeros(steps, count, dtype=torch.bool, device=rows.device)
        for start in range(0, count, chunk):
            span = slice(start, min(start + chunk, count))
            scores = _wide(head(wanted[span]))  # [n, V]
            best = scores.argmax(-1) if choices is None else choices[span]
            at = scores.topk(min(config.top_k, scores.shape[-1]), dim=-1).indices
            truth = scores.softmax(-1)  # P
            likeliest = truth.gather(-1, at)
            # The cross-entropy of weights w is sum(w) * logsumexp - sum(w * logits), whatever w is.
            weights = (config.soft_weight * truth).scatter_add_(-1, at, config.top_k_weight * likeliest)
            mass = config.soft_weight + config.top_k_weight * likeliest.sum(-1)
            for step in range(steps):
                with torch.set_grad_enabled(training):
                    inputs = rows[step, span].detach().requires_grad_(training)
                    logits = _wide(head(inputs))
                values = logits.detach()
                log = values.logsumexp(-1)
                soft[step] += (log - (truth * values).sum(-1)).sum()
                top[step] += (likeliest * (log[:, None] - values.gather(-1, at))).sum()
                agreement[step, span] = values.argmax(-1) == best
                if grads is not None:
                    slope = (values - log[:, None]).exp_().mul_(mass[:, None]).sub_(weights)
                    grads[step, span] = torch.autograd.grad(logits, inputs, slope)[0]
        ctx.grads = grads
        ctx.mark_non_differentiable(soft, top, agreement)
        return (config.soft_weight * soft + config.top_k_weight * top).sum(), soft, top, agreement

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.grads * grad_outputs[0], None, None, None, None, None
