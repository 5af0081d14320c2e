"""Tokens per second, over any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Throughput(Metric):
    """Tokens per second as the ratio of sums: ``sum(tokens) / sum(seconds)``.

    The sums are added over ranks, so that the result is the mean speed of one process, not the speed of all together.
    It is NaN while no time has passed.

    Attributes:
        tokens: int64 scalar.
        seconds: float64 scalar; stays float64 whatever precision the module around it has.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    tokens: Tensor
    seconds: Tensor

    def __init__(self, **kwargs: Any) -> None:
        """Take the options of ``torchmetrics.Metric``."""
        super().__init__(**kwargs)
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("seconds", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, tokens: int, seconds: float) -> None:
        """Add the tokens of some generations and the seconds they took.

        Raises:
            ValueError: one of them is negative or no number.
        """
        if not tokens >= 0 or not 0 <= seconds < float("inf"):
            raise ValueError(f"tokens and seconds must be finite and not negative, found {tokens} and {seconds}")
        self.tokens = self.tokens + int(tokens)
        self.seconds = self.seconds + float(seconds)

    def compute(self) -> Tensor:
        """Float64 scalar, tokens per second; NaN without seconds."""
        return torch.where(self.seconds > 0, self.tokens / self.seconds, torch.nan)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Throughput:
        # A module cast to half precision casts its metrics too; sums of seconds would lose their digits.
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, exclude_state)  # type: ignore[return-value]
