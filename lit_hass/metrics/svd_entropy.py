"""SVD entropy of features as a metric that merges over devices."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.metrics.functional.spectrum import (
    ENTROPY_EPS,
    Base,
    entropy_bound,
    spectrum_summary,
)
from lit_hass.metrics.row_statistics import RowStatistics
from lit_hass.metrics.triangular_factor import TriangularFactor

_FACTOR_STATES = ("factor", "factor_mean", "factor_rows")


class SVDEntropy(RowStatistics):
    """Entropy of the normalised singular values of all feature rows, or its mean over token classes.

    -sum p log(p + eps), p = s / sum s (``power=1``) or s^2 / sum s^2 (``power=2``). The defaults are the first
    definition of the original scripts (with eps = 0 it is the logarithm of Roy and Vetterli's effective rank);
    ``power=2, center=True, base=2`` is the second. Their values are not comparable.

    Args:
        num_features: d.
        power: 1 or 2.
        center: subtract the mean row first.
        base: ``"e"`` for nats, 2 for bits.
        eps: added inside the logarithm.
        method: ``"gram"`` takes singular values from the float64 Gram matrix of shifted rows, right to about 1e-8 of
            the largest; ``"tsqr"`` keeps a triangular factor, about three times as dear, right to 1e-15. It knows no
            states.
        scope: ``"overall"`` takes all rows of the text, those of rare classes included; ``"class"`` takes the
            unweighted mean over the classes with ``min_samples`` rows or more, and keeps the rows.
        settings: see :class:`~lit_hass.metrics.accumulator.Accumulator`: ``ignore_ids``, ``min_samples`` (for
            ``scope="class"``), ``num_classes``, ``nan_strategy``, ``state_names``, ``exclude_states``, and those of
            torchmetrics.

    Raises:
        UserError: a setting that does not exist.

    Example:
        >>> import torch
        >>> from lit_hass.metrics import SVDEntropy
        >>> metric = SVDEntropy(num_features=3)
        >>> metric.update(torch.eye(3), torch.tensor([4, 5, 6]))
        >>> metric.compute()  # ln 3: three equal singular values
        tensor(1.0986, dtype=torch.float64)
        >>> round(metric.compute_details()["effective_rank"], 6)
        3.0
        >>> figure, axes = metric.plot()
    """

    plot_lower_bound = 0.0

    def __init__(
        self,
        num_features: int,
        power: int = 1,
        center: bool = False,
        base: Base = "e",
        eps: float = ENTROPY_EPS,
        method: Literal["gram", "tsqr"] = "gram",
        scope: Literal["overall", "class"] = "overall",
        **settings: Any,
    ) -> None:
        if method not in ("gram", "tsqr") or scope not in ("overall", "class"):
            raise UserError(f"no such method or scope: {method!r}, {scope!r}")
        by_class, tsqr = scope == "class", method == "tsqr"
        if by_class and tsqr:
            raise UserError('scope="class" takes the Gram matrices of its rows: there is no method "tsqr" for it')
        super().__init__(
            num_features,
            power=power,
            center=center,
            base=base,
            eps=eps,
            keep_rows=by_class,
            class_table=by_class,
            gram=not by_class and not tsqr,
            parts=[TriangularFactor(num_features)] if tsqr and not by_class else [],
            **settings,
        )
        self.method, self.scope = method, scope

    def compute(self) -> Tensor:
        """Return the entropy of all rows on all ranks, a float64 scalar; NaN where undefined.

        ``compute_details()`` adds: for all rows everything of
        :func:`~lit_hass.metrics.functional.spectrum.spectrum_summary`, ``max_entropy`` (its bound),
        ``normalized_entropy``, ``eigenvalues`` and ``states`` (name -> entropy); for classes the summary, ``ids``,
        ``counts``, ``entropies`` and ``normalized``.
        """
        return self._of_classes() if self.scope == "class" else self._of_all()

    def _of_all(self) -> Tensor:
        states: dict[str, float] = {}
        if self.method == "tsqr":
            state = self._get(_FACTOR_STATES)
            values, rows = TriangularFactor.eigenvalues(state, self.center), int(state["factor_rows"])
        else:
            values, rows = self.eigenvalues(self.center)
            found = self.state_eigenvalues(self.center)
            states = {name: float(self._entropies_of(*each)[0]) for name, each in found.items()}
        value, normalized = self._entropies_of(values, rows)
        details = {
            "value": float(value),
            "max_entropy": float(entropy_bound(rows, self.num_features, self.center, self.base)),
            "normalized_entropy": float(normalized),
            **spectrum_summary(values, rows, self.center),
            "eigenvalues": values.clone(),
            "states": states,
        }
        undefined = {}
        if value.isnan():
            undefined["value"] = why_no_entropy(rows, self.center)
        self._finish(details, undefined)
        return value

    def _of_classes(self) -> Tensor:
        found = self.row_results().entropies
        summary = found.summary()
        undefined = {}
        if not summary["n_defined"]:
            seen = len(self.classes().ids)
            undefined["value"] = f"no class of {seen} seen has {self.min_samples} rows or more and a defined entropy"
        details = {"value": summary["mean"], **summary, "ids": found.ids, "counts": found.counts}
        self._finish({**details, "entropies": found.entropies, "normalized": found.normalized}, undefined)
        return self._number(summary["mean"])


def why_no_entropy(rows: int, center: bool) -> str:
    """Say why the entropy of so many rows is undefined."""
    if not rows:
        return "there are no rows"
    if rows == 1:
        return "there is one row, which has no spread"
    return "all rows are equal up to rounding" if center else "all rows are zero"


def why_no_share(rows: int, features: int, center: bool) -> str:
    """Say why the entropy of so many rows cannot be taken over its bound."""
    if rows > 1 and entropy_bound(rows, features, center).isnan():
        return f"{rows} {'centred ' if center else ''}rows of {features} numbers can have one direction only"
    return why_no_entropy(rows, center)
