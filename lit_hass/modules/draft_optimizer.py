"""The optimiser of a draft and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from lit_hass.errors import UserError


def draft_optimizer(
    parameters: Iterable[nn.Parameter],
    total: float,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    warmup_steps: int,
    decay: Literal["cosine", "linear"],
    final_lr: float,
) -> dict[str, Any]:
    """AdamW with a linear warm-up and a decay, both by optimiser steps, as Lightning takes them.

    Args:
        parameters: those that need no gradient are left out.
        total: optimiser steps of the whole training.
        lr: the highest learning rate.
        betas: of AdamW.
        weight_decay: on matrices; vectors have none.
        warmup_steps: of the warm-up.
        decay: shape of what follows.
        final_lr: share of ``lr`` at the end.

    Raises:
        UserError: ``total`` is infinite.
    """
    if math.isinf(total):
        raise UserError("trainer.max_steps is needed: the data is endless, and the learning rate follows it")
    trained = [p for p in parameters if p.requires_grad]
    matrices, vectors = [p for p in trained if p.ndim >= 2], [p for p in trained if p.ndim < 2]
    # Not fused: Lightning refuses to clip the gradients of a fused optimiser in mixed precision.
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr,
        betas=betas,
    )

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
        left = 0.5 * (1 + math.cos(math.pi * done)) if decay == "cosine" else 1 - done
        return final_lr + (1 - final_lr) * left

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
