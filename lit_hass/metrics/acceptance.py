"""Acceptance length of speculative decoding as a metric."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_hass.errors import UserError

Definition = Literal["micro", "original", "tokens_per_step"]


class AcceptanceLength(Metric):
    """How many tokens a step of speculative decoding gives, in one of three definitions that are often confused.

    * ``"micro"``: ``sum(a + 1) / steps`` over all steps, ``a`` the accepted draft tokens of a step (ours).
    * ``"original"``: the mean over questions of (the question's mean ``a``) plus 1: ``acceptance_length.py`` of the
      EAGLE family. Hand over choice 0 only, as that script does. A question without a step has no mean and is left out;
      ``left_out`` counts them.
    * ``"tokens_per_step"``: new tokens (cut at stop tokens and limits) over steps.

    States are sums and are added over ranks. Without steps the result is NaN.

    Args:
        definition: which one.
        kwargs: options of ``torchmetrics.Metric``.

    Attributes:
        total: float64 scalar: accepted draft tokens, means of questions, or new tokens.
        count: int64 scalar: steps, or questions with steps.
        left_out: int64 scalar: questions without a step (``"original"`` only).

    Raises:
        UserError: there is no such definition.
    """

    full_state_update = False
    higher_is_better = True
    is_differentiable = False
    total: Tensor
    count: Tensor
    left_out: Tensor

    def __init__(self, definition: Definition = "micro", **kwargs: Any) -> None:
        """See the class."""
        super().__init__(**kwargs)
        if definition not in get_args(Definition):
            raise UserError(f"AcceptanceLength.definition must be one of {get_args(Definition)}, found {definition!r}")
        self.definition = definition
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("left_out", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(
        self,
        accept_lengths: Sequence[Sequence[int]],
        groups: Sequence[Hashable] | None = None,
        new_tokens: Sequence[int] | None = None,
    ) -> None:
        """Add some turns.

        Args:
            accept_lengths: for each turn, the accepted draft tokens of its steps.
            groups: for each turn, which question it belongs to; needed by ``"original"``, for which all turns of a
                question must come in one call. Ids need not differ between calls.
            new_tokens: for each turn, its number of new tokens; needed by ``"tokens_per_step"``.

        Raises:
            ValueError: what the definition needs is missing, or the lists do not fit each other.
        """
        for name, values in (("groups", groups), ("new_tokens", new_tokens)):
            if values is not None and len(values) != len(accept_lengths):
                raise ValueError(f"{name} has {len(values)} entries for {len(accept_lengths)} turns")
        if any(a < 0 for turn in accept_lengths for a in turn):
            raise ValueError("accepted draft tokens must not be negative")
        if self.definition == "original":
            if groups is None:
                raise ValueError("the original definition needs the question of each turn (groups)")
            self._add_questions(accept_lengths, groups)
        elif self.definition == "tokens_per_step":
            if new_tokens is None:
                raise ValueError("tokens_per_step needs the number of new tokens of each turn (new_tokens)")
            self._add(float(sum(new_tokens)), sum(map(len, accept_lengths)))
        else:
            self._add(float(sum(map(sum, accept_lengths))), sum(map(len, accept_lengths)))

    def _add_questions(self, accept_lengths: Sequence[Sequence[int]], groups: Sequence[Hashable]) -> None:
        questions: dict[Hashable, list[int]] = {}
        for group, turn in zip(groups, accept_lengths, strict=True):
            questions.setdefault(group, []).extend(turn)
        means = [sum(steps) / len(steps) for steps in questions.values() if steps]
        self._add(sum(means), len(means))
        self.left_out = self.left_out + (len(questions) - len(means))

    def _add(self, total: float, count: int) -> None:
        # Not in place: Lightning evaluates in inference mode, whose tensors refuse changes outside it.
        self.total = self.total + total
        self.count = self.count + count

    def compute(self) -> Tensor:
        """Float64 scalar, tokens per step (the root counted); NaN without steps."""
        root = 0.0 if self.definition == "tokens_per_step" else 1.0
        return torch.where(self.count > 0, self.total / self.count + root, torch.nan)

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> AcceptanceLength:
        # A module cast to half precision casts its metrics too; sums would lose their digits.
        def keep_dtype(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(keep_dtype, exclude_state)  # type: ignore[return-value]
