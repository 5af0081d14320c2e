"""The whole family of collapse metrics over one accumulator and one sync."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.metrics.class_table import Classes
from lit_hass.metrics.classifier_rows import Classifier, ClassifierRows
from lit_hass.metrics.collapse_family import (
    Findings,
    add_agreement,
    add_class_geometry,
    add_duality,
    add_scatter,
)
from lit_hass.metrics.functional.classifier_agreement import nc4_counts
from lit_hass.metrics.functional.moments import check_reduction
from lit_hass.metrics.functional.pair_statistics import Duplicates
from lit_hass.metrics.functional.similarity import mean_cosine_from_sum
from lit_hass.metrics.functional.spectrum import ENTROPY_EPS, Base, bounded_entropy, spectrum_summary
from lit_hass.metrics.gnc2 import GlobalMean, check_global_mean
from lit_hass.metrics.paired_streams import PairedStreams
from lit_hass.metrics.parts import UnitSums
from lit_hass.metrics.plots import plot_values
from lit_hass.metrics.row_statistics import RowStatistics
from lit_hass.metrics.svd_entropy import why_no_entropy, why_no_share

_PAIR_STATES = ("pair_shift", "pair_rows", "pair_xy", "pair_xx", "pair_yy")
# Value -> (centred, name in spectrum_summary); the value's name says which.
_RANKS = {
    f"rank/{'centred' if center else 'raw'}/{name}": (center, name)
    for center, names in (
        (False, ("effective_rank", "rankme")),
        (True, ("effective_dimensions", "participation_ratio", "stable_rank")),
        (True, ("matrix_entropy_1", "matrix_entropy_2", "matrix_entropy_inf")),
        (True, ("alpha_req", "alpha_req_r2", "alpha_req_first", "alpha_req_last")),
    )
    for name in names
}


class CollapseMetrics(RowStatistics):
    """NC1 to NC4, GNC2, UNC3, SVD entropies, effective ranks, anisotropy and CKA from one pass over the rows.

    Args:
        num_features: d.
        classifier: the output layer's weight ``[V, d]`` or a function that returns it, read at :meth:`compute`; without
            it there is no NC3, UNC3 and linear side of NC4.
        keep_rows: keep copies of the rows in their own dtype, for the entropies per class and NC4. Without it memory
            does not grow with the rows.
        num_paired_features: e, the width of a second stream (``paired_features`` of :meth:`update`), for CKA.
        power: of the SVD entropies ``svd_entropy/*``; see :class:`~lit_hass.metrics.svd_entropy.SVDEntropy`.
        center: likewise.
        base: likewise.
        eps: likewise.
        cdnv_exponent: of the squared distance in CDNV.
        duplicates: pairs of classes with the same direction in GNC2: ``"skip"``, ``"inf"`` or ``"clamp"``.
        global_mean: the mean of the class means, or of all rows of the eligible classes (``"weighted"``).
        correction: of the variances; 1 is unbiased, 0 the population's.
        nc4_vocabulary: let the linear classifier choose among all V tokens too (``nc4/*_vocab``): N x V x d products.
        max_classes: class metrics use the most frequent eligible classes only.
        settings: see :class:`~lit_hass.metrics.accumulator.Accumulator`: ``ignore_ids``, ``min_samples``,
            ``num_classes``, ``nan_strategy``, ``state_names``, ``exclude_states``, and those of torchmetrics.

    Raises:
        UserError: a setting that does not exist.

    Example:
        >>> import torch
        >>> from lit_hass.metrics import CollapseMetrics
        >>> corners = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> metrics = CollapseMetrics(num_features=2, classifier=corners, keep_rows=True)
        >>> metrics.update(corners.repeat(3, 1), torch.arange(4).repeat(3))
        >>> values = metrics.compute()
        >>> [round(float(values[name]), 4) for name in ("gnc2/mean", "unc3/cov_abs", "nc1/cdnv", "nc4/agreement")]
        [-0.4621, 0.0, 0.0, 1.0]
        >>> round(float(values["svd_entropy/overall"]), 4), round(float(values["rank/raw/effective_rank"]), 4)
        (0.6931, 2.0)
        >>> metrics.compute_details()["classes_eligible"]
        4
        >>> figure, axes = metrics.plot()
    """

    unit_sum: Tensor
    unit_rows: Tensor

    def __init__(
        self,
        num_features: int,
        classifier: Classifier | None = None,
        keep_rows: bool = False,
        num_paired_features: int | None = None,
        power: int = 1,
        center: bool = False,
        base: Base = "e",
        eps: float = ENTROPY_EPS,
        cdnv_exponent: float = 1.0,
        duplicates: Duplicates = "skip",
        global_mean: GlobalMean = "unweighted",
        correction: int = 1,
        nc4_vocabulary: bool = False,
        max_classes: int | None = None,
        **settings: Any,
    ) -> None:
        check_reduction("var", correction)
        check_global_mean(global_mean)
        if duplicates not in ("skip", "inf", "clamp"):
            raise UserError(f'duplicates must be "skip", "inf" or "clamp", got {duplicates!r}')
        pairs = [PairedStreams(num_features, num_paired_features)] if num_paired_features else []
        super().__init__(
            num_features,
            power=power,
            center=center,
            base=base,
            eps=eps,
            keep_rows=keep_rows,
            max_classes=max_classes,
            parts=[UnitSums(num_features), *pairs],
            num_paired=num_paired_features,
            **settings,
        )
        self._rows, self._paired = ClassifierRows(classifier, num_features), pairs[0] if pairs else None
        self._with_classifier = classifier is not None
        self.cdnv_exponent, self.duplicates, self.global_mean = cdnv_exponent, duplicates, global_mean
        self.correction, self._with_vocabulary = correction, nc4_vocabulary and classifier is not None

    def set_classifier(self, classifier: Classifier) -> None:
        """Give the classifier again, after pickling has lost a function."""
        self._rows, self._with_classifier = ClassifierRows(classifier, self.num_features), True
        self._computed = None

    def _before_sync(self) -> None:
        if self._with_classifier:
            self._rows.weight(self.num_features)

    def _agreement(self, rows: Tensor, ids: Tensor, classes: Classes) -> Tensor | None:
        weight = chosen = None
        if self._with_classifier:
            chosen = self._rows.rows(classes.ids, self.num_features)
            weight = self._rows.weight(self.num_features).to(self.device) if self._with_vocabulary else None
        # Rows and means both less the shift: their distances keep their digits.
        return nc4_counts(rows, ids, classes.ids, classes.means, chosen, weight)

    def compute(self) -> dict[str, Tensor]:
        """Return all numbers by name, float64 scalars; NaN where undefined.

        ``compute_details()`` adds: every reduction of every quantity behind a value; ``spectrum`` (raw and centred
        summaries); ``states`` (entropy, rows); ``classes`` (the entropies per class) and ``nc4`` (hits) where rows are
        kept; and the counters ``classes_seen``, ``classes_eligible``, ``n_duplicate_pairs``, ``n_equal_mean_pairs``,
        ``n_zero_mean``, ``n_zero_classifier``, ``n_nonfinite_classifier``, ``n_zero_rows``.
        """
        found = Findings(correction=self.correction)
        classes = self.classes()
        eligible = classes.eligible(self.min_samples, self.max_classes)
        self._add_spectra(found)
        centred = add_class_geometry(
            found,
            len(classes.ids),
            eligible,
            self.global_mean,
            self.cdnv_exponent,
            self.duplicates,
        )
        self._add_scatter(found, classes, eligible, centred)
        if self._with_classifier:
            add_duality(found, centred, self._rows.rows(eligible.ids, self.num_features)[: len(centred)])
        if self.keep_rows:
            self._add_row_results(found)
        unit_rows, zero_rows = self.unit_rows.tolist()
        cosine = mean_cosine_from_sum(self.unit_sum, unit_rows)
        found.add("anisotropy/mean_cosine", cosine, "fewer than 2 rows that differ from zero")
        if self._paired is not None:
            linear, debiased, paired_rows = self._paired.cka(self._get(_PAIR_STATES))
            found.add("cka/linear", linear, f"a stream does not vary over {paired_rows} rows")
            found.add("cka/debiased", debiased, f"fewer than 4 rows ({paired_rows}), or a stream does not vary")
        counters = {
            "classes_seen": len(classes.ids),
            "classes_eligible": len(eligible.ids),
            "n_zero_rows": zero_rows,
        }
        self._finish({**found.details, **counters, "values": found.values}, found.undefined)
        return {name: self._number(value) for name, value in found.values.items()}

    def _add_spectra(self, found: Findings) -> None:
        summaries: dict[bool, dict[str, Any]] = {}
        for center in (False, True):
            values, rows = self.eigenvalues(center)
            summaries[center] = {**spectrum_summary(values, rows, center), "eigenvalues": values}
            reason = why_no_entropy(rows, center)
            if center == self.center:
                value, normalized = self._entropies_of(values, rows)
                found.add("svd_entropy/overall", value, reason)
                found.add("svd_entropy/normalized", normalized, why_no_share(rows, self.num_features, center))
            if center:
                # The second definition of the original scripts, whatever the settings are.
                bits, _ = bounded_entropy(values, rows, self.num_features, power=2, center=True, base=2)
                found.add("svd_entropy/covariance_bits", bits, reason)
        for name, (center, key) in _RANKS.items():
            reason = why_no_entropy(int(self.row_counts[0]), center)
            if "alpha_req" in key and summaries[center]["numerical_rank"] == 1:
                reason = "there is one direction, through which no line is fitted"
            found.add(name, summaries[center][key], reason)
        found.details["spectrum"] = {"raw": summaries[False], "centred": summaries[True]}
        found.details["states"] = {}
        for name, (values, rows) in self.state_eigenvalues(self.center).items():
            value, _ = self._entropies_of(values, rows)
            found.add(f"svd_entropy/{name}", value, why_no_entropy(rows, self.center))
            found.details["states"][name] = {"svd_entropy": float(value), "rows": rows}

    def _add_scatter(self, found: Findings, classes: Classes, eligible: Classes, centred: Tensor) -> None:
        rows, _, gram = self.text_sums()
        weighted = classes.offsets * classes.counts.to(torch.float64).sqrt()[:, None]
        complete = self.min_samples <= 2 and self.max_classes is None
        scatter_rows = int(eligible.counts.sum()) if complete else rows
        found.details["scatter_of"] = "eligible classes" if complete else "all classes seen"
        add_scatter(found, eligible, centred, gram - weighted.T @ weighted, scatter_rows)

    def _add_row_results(self, found: Findings) -> None:
        results = self.row_results()
        summary = results.entropies.summary()
        reason = f"no class has {self.min_samples} rows or more and a defined entropy"
        for name, key in (("token_mean", "mean"), ("token_std", "std"), ("token_weighted_mean", "weighted_mean")):
            found.add(f"svd_entropy/{name}", summary[key], reason)
        found.add("svd_entropy/token_normalized_mean", summary["normalized_mean"], f"{reason} whose bound is above 0")
        found.details["classes"] = {
            **summary,
            "ids": results.entropies.ids,
            "counts": results.entropies.counts,
            "entropies": results.entropies.entropies,
            "normalized": results.entropies.normalized,
        }
        if results.agreement is not None:
            bad = found.details.get("n_nonfinite_classifier", 0)
            if self._with_vocabulary:
                bad = int((~self._rows.weight(self.num_features).isfinite().all(1)).sum())
            add_agreement(found, results.agreement, self._with_classifier, self._with_vocabulary, bad)

    def plot(self, val: dict[str, Tensor] | Sequence[dict[str, Tensor]] | None = None, ax: Any = None) -> Any:
        """Draw the values as bars on a scale that shows small and large ones, or several results as lines.

        Args:
            val: a result of :meth:`compute`, or a part of it, or a list of them; computed where none is given.
            ax: matplotlib axes to draw on.

        Returns:
            The figure and the axes.
        """
        if val is None or isinstance(val, dict):
            return plot_values(self.compute() if val is None else val, ax)
        return self._plot(val, ax)
