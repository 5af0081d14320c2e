"""Mean, spread and range of many values that come in blocks, such as one value per pair of classes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lit_hass.errors import UserError

Reduction = Literal["mean", "var", "std", "cov", "cov_abs", "min", "max"]
REDUCTIONS: tuple[str, ...] = get_args(Reduction)

# A mean this close to zero has no sensible spread relative to it.
_NO_MEAN = 1e-12


@dataclass(frozen=True)
class Moments:
    """What is known of a set of numbers without keeping them; two of them merge exactly (Chan et al. 1979).

    Attributes:
        count: how many numbers.
        mean: their mean; NaN without any.
        m2: sum of squared deviations from the mean.
        minimum: the smallest; NaN without any.
        maximum: the largest; NaN without any.
    """

    count: int = 0
    mean: float = math.nan
    m2: float = 0.0
    minimum: float = math.nan
    maximum: float = math.nan

    @classmethod
    def of(cls, values: Tensor) -> Moments:
        """Describe the numbers of a tensor of any shape, in float64."""
        if values.numel() == 0:
            return cls()
        values = values.to(torch.float64)
        mean = values.mean()
        low, high = values.aminmax()
        numbers = torch.stack((mean, (values - mean).square().sum(), low, high)).tolist()
        return cls(values.numel(), *numbers)

    def merged(self, other: Moments) -> Moments:
        """Describe the numbers of both."""
        if not self.count or not other.count:
            return self if self.count else other
        count = self.count + other.count
        if not math.isfinite(self.mean + other.mean):
            low, high = min(self.minimum, other.minimum), max(self.maximum, other.maximum)
            return Moments(count, self.mean + other.mean, math.nan, low, high)
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + delta * other.count / count,
            self.m2 + other.m2 + delta * delta * self.count * other.count / count,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
        )

    def reduced(self, reduction: str, correction: int = 1) -> float:
        """Return one number.

        Args:
            reduction: ``"mean"``, ``"var"``, ``"std"``, ``"cov"`` (std / mean), ``"cov_abs"`` (std / abs(mean)),
                ``"min"`` or ``"max"``.
            correction: the variance divides by ``max(count - correction, 1)``: 1 is the unbiased one, 0 the
                population's.

        Returns:
            NaN without numbers, and for the relative spreads when the mean is smaller than 1e-12 in size.

        Raises:
            UserError: no such reduction.
        """
        check_reduction(reduction)
        if reduction == "mean" or not self.count:
            return self.mean
        if reduction in ("min", "max"):
            return self.minimum if reduction == "min" else self.maximum
        variance = self.m2 / max(self.count - correction, 1)
        if reduction == "var":
            return variance
        std = math.sqrt(variance)
        if reduction == "std":
            return std
        if not abs(self.mean) >= _NO_MEAN:
            return math.nan
        return std / (self.mean if reduction == "cov" else abs(self.mean))

    def as_dict(self, correction: int = 1) -> dict[str, float]:
        """Return every reduction by name."""
        return {name: self.reduced(name, correction) for name in REDUCTIONS}

    def reason_undefined(self, reduction: str) -> str | None:
        """Say why a reduction is NaN, or None where it is a number."""
        if not math.isnan(self.reduced(reduction)):
            return None
        if not self.count:
            return "there are no values"
        if not math.isfinite(self.mean):
            return "a value is not finite"
        return f"the mean is smaller than {_NO_MEAN} in size"


def check_reduction(reduction: str, correction: int = 1) -> None:
    """Refuse a reduction or a correction of the variance that does not exist.

    Raises:
        UserError: with the names that do.
    """
    if correction not in (0, 1):
        raise UserError(f"correction must be 1 (unbiased) or 0 (of the population), got {correction!r}")
    if reduction not in REDUCTIONS:
        raise UserError(f"reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}")
