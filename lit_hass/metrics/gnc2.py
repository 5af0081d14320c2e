"""Generalised NC2 as a metric that merges over devices."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.metrics.class_sums import ClassSums
from lit_hass.metrics.class_table import Classes, check_max_classes
from lit_hass.metrics.functional.moments import Moments, check_reduction
from lit_hass.metrics.functional.pair_statistics import Duplicates, Kernel, centre, gnc2_statistics

GlobalMean = Literal["unweighted", "weighted"]


class GNC2(ClassSums):
    """Hyperspherical uniformity of class means: ln(1 / norm(u - u')) over pairs of classes (Wu and Papyan 2024).

    u are the centred and normalised class means. The mean is the default: it is negative for ordinary features (-0.3466
    for directions at random in many dimensions), so that a signed std / mean flips and diverges.

    Args:
        num_features: d.
        reduction: ``"mean"``, ``"var"``, ``"std"``, ``"cov"``, ``"cov_abs"``, ``"min"`` or ``"max"``; the details
            have all of them.
        kernel: ``"log"``, or ``"riesz"`` for norm(u - u') ** -exponent.
        exponent: of the Riesz kernel.
        duplicates: pairs closer than 1e-6 are left out (``"skip"``), infinite (``"inf"``) or taken at 1e-6
            (``"clamp"``); they are counted. Leaving them out hides total collapse.
        global_mean: the mean of the class means, or of all rows of the eligible classes (``"weighted"``).
        correction: of the variance; 1 is unbiased, 0 the population's.
        norm_eps: added to the lengths; 1e-8 is the original scripts'.
        ordered_pairs: count every pair twice, as the original scripts do; changes the unbiased spread a little.
        max_classes: use the most frequent eligible classes only.
        settings: see :class:`~lit_hass.metrics.accumulator.Accumulator`: ``ignore_ids``, ``min_samples``,
            ``num_classes``, ``nan_strategy``, ``state_names``, ``exclude_states``, and those of torchmetrics.

    Raises:
        UserError: a setting that does not exist.

    Example:
        >>> import torch
        >>> from lit_hass.metrics import GNC2
        >>> metric = GNC2(num_features=3, min_samples=1)
        >>> metric.update(torch.eye(3), torch.tensor([4, 5, 6]))
        >>> metric.compute()  # a simplex: -ln(3) / 2
        tensor(-0.5493, dtype=torch.float64)
        >>> metric.compute_details()["pairs"]
        3
        >>> figure, axes = metric.plot()
    """

    def __init__(
        self,
        num_features: int,
        reduction: str = "mean",
        kernel: Kernel = "log",
        exponent: float = 1.0,
        duplicates: Duplicates = "skip",
        global_mean: GlobalMean = "unweighted",
        correction: int = 1,
        norm_eps: float = 0.0,
        ordered_pairs: bool = False,
        max_classes: int | None = None,
        **settings: Any,
    ) -> None:
        check_reduction(reduction, correction)
        check_global_mean(global_mean)
        check_max_classes(max_classes)
        # Refuses what does not exist now, not at the end of a run.
        gnc2_statistics(torch.zeros(0, 1), kernel=kernel, duplicates=duplicates)
        super().__init__(num_features, gram=False, **settings)
        self.reduction, self.kernel, self.exponent, self.duplicates = reduction, kernel, exponent, duplicates
        self.global_mean, self.correction, self.norm_eps = global_mean, correction, norm_eps
        self.ordered_pairs, self.max_classes = ordered_pairs, max_classes

    def compute(self) -> Tensor:
        """Return the reduction over pairs of eligible classes of all ranks, a float64 scalar; NaN where undefined."""
        classes = self.classes()
        eligible = classes.eligible(self.min_samples, self.max_classes)
        centred = centred_means(eligible, self.global_mean)
        found = gnc2_statistics(
            centred,
            centred.new_zeros(self.num_features),
            kernel=self.kernel,
            exponent=self.exponent,
            duplicates=self.duplicates,
            norm_eps=self.norm_eps,
        )
        moments = found.moments
        if self.ordered_pairs:
            m = moments
            moments = Moments(2 * m.count, m.mean, 2 * m.m2, m.minimum, m.maximum)
        value = moments.reduced(self.reduction, self.correction)
        undefined = {}
        if reason := moments.reason_undefined(self.reduction):
            undefined["value"] = why_no_pairs(len(eligible.ids), len(classes.ids), reason)
        details = {
            "value": value,
            **moments.as_dict(self.correction),
            "pairs": found.moments.count,
            "classes_seen": len(classes.ids),
            "classes_eligible": len(eligible.ids),
            "n_duplicate_pairs": found.duplicates,
            "n_zero_mean": found.zero_rows,
        }
        self._finish(details, undefined)
        return self._number(value)


def check_global_mean(name: str) -> None:
    """Refuse a global mean that does not exist.

    Raises:
        UserError: with the names that do.
    """
    if name not in ("unweighted", "weighted"):
        raise UserError(f'global_mean must be "unweighted" or "weighted", got {name!r}')


def centred_means(classes: Classes, name: str) -> Tensor:
    """Return the class means less a global mean, ``[K, d]``; those at the global mean up to rounding are exactly 0."""
    mean = None
    if name == "weighted" and len(classes.ids):
        weights = classes.counts.to(torch.float64)
        mean = weights @ classes.offsets / weights.sum()
    return centre(classes.offsets, mean, classes.variances)


def why_no_pairs(eligible: int, seen: int, otherwise: str) -> str:
    """Say why a statistic over pairs of classes is undefined."""
    if eligible < 2:
        return f"fewer than 2 eligible classes ({eligible} of {seen} seen)"
    return otherwise
