"""Lengths of texts in tokens as a metric."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_hass.errors import UserError
from lit_hass.metrics.functional.token_lengths import CAP, LengthHistogram, check_lengths


class TokenLengths(Metric):
    """The exact distribution of lengths, in memory that does not grow with their number.

    States are whole numbers of fixed shape, added (the longest: compared) over ranks, updates and epochs, so that every
    way of sharing out the same texts gives the same figures, a rank without any included. One metric for one kind of
    length: of prompts, of answers, of both together.

    >>> metric = TokenLengths(cap=100)
    >>> metric.update([5, 7, 7], cut=[False, False, True], padded_to=8)
    >>> metric.compute()["p50"], metric.histogram().truncation_rate(5)
    (tensor(7., dtype=torch.float64), 0.6666666666666666)

    Args:
        cap: the greatest length that is told from others; percentiles beyond it are infinite.
        kwargs: options of ``torchmetrics.Metric``.

    Attributes:
        ended: ``[cap + 2]`` int64, texts of each length that ended by themselves; the last bin is for longer ones.
        cut: ``[cap + 2]`` int64, those that hit their limit.
        total: int64 scalar, sum of the lengths.
        longest: int64 scalar.
        batched: int64 scalar, sum of the lengths whose padding is known.
        cells: int64 scalar, tokens and padding of their batches.

    Raises:
        UserError: the cap is less than 1.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    ended: Tensor
    cut: Tensor
    total: Tensor
    longest: Tensor
    batched: Tensor
    cells: Tensor

    def __init__(self, cap: int = CAP, **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        if cap < 1:
            raise UserError(f"TokenLengths.cap must be at least 1, found {cap}")
        self.cap = cap
        for name in ("ended", "cut"):
            self.add_state(name, torch.zeros(cap + 2, dtype=torch.int64), dist_reduce_fx="sum")
        for name in ("total", "batched", "cells"):
            self.add_state(name, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("longest", torch.zeros((), dtype=torch.int64), dist_reduce_fx="max")

    def update(
        self, lengths: Sequence[int] | Tensor, cut: Sequence[bool] | Tensor | None = None, padded_to: int | None = None
    ) -> None:
        """Add the texts of a batch.

        Args:
            lengths: ``[n]`` whole numbers, 0 or more.
            cut: ``[n]``, whether each hit its limit; None is none.
            padded_to: the length that all of them were padded to together; None where that is not known.

        Raises:
            ValueError: a length is negative or not whole, longer than ``padded_to``, or ``cut`` does not fit.
        """
        values, is_cut = check_lengths(*(x.cpu().numpy() if isinstance(x, Tensor) else x for x in (lengths, cut)))
        if not len(values):
            return
        if padded_to is not None and values.max() > padded_to:
            raise ValueError(f"a length of {values.max()} cannot have been padded to {padded_to}")
        self._add(LengthHistogram.of(values, is_cut, self.cap))
        if padded_to is not None:
            self.batched = self.batched + int(values.sum())
            self.cells = self.cells + len(values) * padded_to

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by name, see `LengthHistogram.summary`; NaN where nothing was counted."""
        found = self._read()
        return {k: torch.tensor(v, dtype=torch.float64, device=self.ended.device) for k, v in found.summary().items()}

    def histogram(self) -> LengthHistogram:
        """Everything that was counted, by all ranks; a collective call where there are several."""
        if self._is_synced:
            return self._read()
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync):
            return self._read()

    def add(self, counted: LengthHistogram) -> None:
        """Add what was counted elsewhere.

        Raises:
            ValueError: it has another cap.
        """
        if counted.cap != self.cap:
            raise ValueError(f"a histogram with cap {counted.cap} cannot be added to one with cap {self.cap}")
        # What torchmetrics does around update().
        self._computed, self._update_count = None, self._update_count + 1
        self._add(counted)

    def _add(self, counted: LengthHistogram) -> None:
        device = self.ended.device
        # Not in place: Lightning evaluates in inference mode, whose tensors refuse changes outside it.
        self.ended = self.ended + torch.from_numpy(counted.ended).to(device)
        self.cut = self.cut + torch.from_numpy(counted.cut).to(device)
        for name in ("total", "batched", "cells"):
            setattr(self, name, getattr(self, name) + getattr(counted, name))
        self.longest = self.longest.clamp(min=counted.longest)

    def _read(self) -> LengthHistogram:
        return LengthHistogram(
            ended=self.ended.cpu().numpy(),
            cut=self.cut.cpu().numpy(),
            total=int(self.total),
            longest=int(self.longest),
            batched=int(self.batched),
            cells=int(self.cells),
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> TokenLengths:
        # A cast of the module around it must not turn counts into floats, which end at 2^24.
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, exclude_state)  # type: ignore[return-value]
