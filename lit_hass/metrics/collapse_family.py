"""The numbers of the neural-collapse family, by name, from one set of class statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_hass.metrics.class_table import Classes
from lit_hass.metrics.classifier_rows import why_no_classifier
from lit_hass.metrics.functional.classifier_agreement import NC4_COLUMNS
from lit_hass.metrics.functional.moments import Moments
from lit_hass.metrics.functional.neural_collapse import (
    duality_distances,
    lidar,
    papyan_distance,
    pinv_ratio,
    similarities,
    structure_error,
)
from lit_hass.metrics.functional.pair_statistics import (
    Duplicates,
    cdnv_statistics,
    gnc2_statistics,
    product_statistics,
)
from lit_hass.metrics.gnc2 import GlobalMean, centred_means, why_no_pairs


@dataclass
class Findings:
    """Values, what stands behind them, and why some are undefined.

    Attributes:
        values: scalars by name, such as ``"gnc2/mean"``.
        details: the moments and counts behind them.
        undefined: a reason for each value that is NaN.
        correction: of the variances.
    """

    values: dict[str, float] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    correction: int = 1

    def add(self, name: str, value: float | Tensor, reason: str) -> None:
        """Add one value; the reason holds if it is NaN."""
        self.values[name] = float(value)
        if math.isnan(self.values[name]):
            self.undefined[name] = reason

    def add_moments(self, name: str, moments: Moments, reductions: dict[str, str], reason: str) -> None:
        """Add the named reductions (key -> reduction) of some moments, and keep all of them as details."""
        self.details[name] = {**moments.as_dict(self.correction), "count": moments.count}
        for key, reduction in reductions.items():
            why = reason if not moments.count else moments.reason_undefined(reduction) or reason
            self.add(key, moments.reduced(reduction, self.correction), why)


_SPREAD = ("mean", "std", "var", "cov", "cov_abs", "min", "max")


def add_class_geometry(
    found: Findings, seen: int, classes: Classes, global_mean: GlobalMean, exponent: float, duplicates: Duplicates
) -> Tensor:
    """Add NC1 (CDNV), NC2 and GNC2 of the eligible classes.

    Args:
        found: is added to.
        seen: number of classes seen.
        classes: the eligible ones.
        global_mean: which mean the class means are centred by.
        exponent: of CDNV.
        duplicates: see :func:`~lit_hass.metrics.functional.pair_statistics.gnc2_statistics`.

    Returns:
        The centred class means, ``[K, d]``.
    """
    few = why_no_pairs(len(classes.ids), seen, "")
    reason = few or "no two classes have different directions"
    centred = centred_means(classes, global_mean)
    middle = centred.new_zeros(centred.shape[1])
    gnc2 = gnc2_statistics(centred, middle, duplicates=duplicates)
    found.add_moments("gnc2", gnc2.moments, {f"gnc2/{name}": name for name in _SPREAD}, reason)
    distances = cdnv_statistics(classes.offsets, classes.variances, exponent=exponent)
    found.add_moments("cdnv", distances.moments, {"nc1/cdnv": "mean", "nc1/cdnv_std": "std"}, few or "all means equal")
    if few:  # a single class is its own centre
        centred = centred[:0]
    norms = torch.linalg.vector_norm(centred, dim=1)
    found.add_moments("norms", Moments.of(norms), {"nc2/norm_mean": "mean", "nc2/equinorm": "cov"}, reason)
    logs = Moments.of(norms[norms > 0].log())
    found.add_moments("log_norms", logs, {"nc2/log_norm_mean": "mean", "nc2/log_norm_var": "var"}, reason)
    k = len(centred)
    for name, kind in (("cosines", "cos"), ("dots", "dot")):
        pairs = product_statistics(centred, middle, similarity=kind)  # type: ignore[arg-type]
        keys = {f"nc2/{kind}_{reduction}": reduction for reduction in ("mean", "std")}
        found.add_moments(name, pairs.moments, keys, reason)
    target = -1 / (k - 1) if k > 1 else math.nan
    deviation = product_statistics(centred, middle, deviation_from=target).moments
    found.add_moments("angle_deviations", deviation, {"nc2/equiangularity": "mean"}, reason)
    found.add("nc2/etf_error", structure_error(centred, centred), reason)
    found.details["n_duplicate_pairs"], found.details["n_zero_mean"] = gnc2.duplicates, gnc2.zero_rows
    found.details["n_equal_mean_pairs"] = distances.duplicates
    return centred


def add_scatter(found: Findings, classes: Classes, centred: Tensor, within: Tensor, scatter_rows: int) -> None:
    """Add NC1 from scatter matrices, and LiDAR.

    Args:
        found: is added to.
        classes: the eligible ones.
        centred: ``[K, d]``, their centred means; empty with fewer than two.
        within: ``[d, d]``, the summed scatter of rows around their class means, of all classes seen. Classes of one row
            add nothing to it, so up to ``min_samples=2`` it is that of the eligible classes.
        scatter_rows: the rows to divide it by.
    """
    reason = "fewer than 2 eligible classes, or no scatter"
    counts = classes.counts.to(torch.float64)
    trace_within = (counts @ classes.variances) / counts.sum() if len(counts) else torch.tensor(math.nan)
    trace_between = centred.square().sum(1).mean() if len(centred) else torch.tensor(math.nan)
    found.add("nc1/within_trace", trace_within, reason)
    found.add("nc1/between_trace", trace_between, reason)
    found.add("nc1/quotient", trace_within / trace_between if trace_between > 0 else math.nan, reason)
    defined = len(centred) > 1 and bool(trace_between > 0)
    matrix = within / max(1, scatter_rows)
    found.add("nc1/pinv", pinv_ratio(matrix, centred) if defined else math.nan, reason)
    found.add("rank/lidar", lidar(matrix, centred) if defined else math.nan, reason)


def add_duality(found: Findings, centred: Tensor, classifier: Tensor) -> None:
    """Add NC3 in its four meanings, and UNC3.

    Args:
        found: is added to.
        centred: ``[K, d]``, centred means; empty with fewer than two.
        classifier: ``[K, d]`` float64, the output layer's rows of those classes. If some are not finite, all is NaN.
    """
    reason = "fewer than 2 eligible classes whose mean and classifier row differ from zero"
    found.details["n_nonfinite_classifier"] = int((~classifier.isfinite().all(1)).sum())
    if unusable := why_no_classifier(found.details["n_nonfinite_classifier"]):
        reason, centred, classifier = unusable, centred[:0], classifier[:0]
    cosines = similarities(classifier, centred)
    usable = ~cosines.isnan()
    found.details["n_zero_classifier"] = int((classifier == 0).all(1).sum())
    keys = {f"unc3/{name}": name for name in _SPREAD} | {"nc3/cos_mean": "mean"}
    found.add_moments("classifier_cosines", Moments.of(cosines[usable]), keys, reason)
    dots = Moments.of(similarities(classifier, centred, "dot"))
    found.add_moments("classifier_dots", dots, {"nc3/dot_mean": "mean", "unc3/dot_cov_abs": "cov_abs"}, reason)
    distances = duality_distances(classifier[usable], centred[usable])
    found.add_moments("duality_distances", Moments.of(distances), {"nc3/distance_mean": "mean"}, reason)
    found.add("nc3/structure_error", structure_error(classifier, centred), reason)
    found.add("nc3/frobenius", papyan_distance(classifier, centred) if len(centred) else math.nan, reason)


def add_agreement(found: Findings, counts: Tensor, linear: bool, vocabulary: bool, bad_rows: int = 0) -> None:
    """Add NC4, as far as it was counted.

    Args:
        found: is added to.
        counts: ``[K, 6]`` int64, columns `NC4_COLUMNS`.
        linear: there was a classifier.
        vocabulary: it chose among all tokens too.
        bad_rows: its rows that are not finite; with any, what it chose means nothing.
    """
    names = {"nearest_accuracy": "nearest_correct"}
    if linear:
        names |= {"agreement": "agree", "linear_accuracy": "linear_correct"}
    if vocabulary:
        names |= {"agreement_vocab": "agree_vocab", "linear_accuracy_vocab": "linear_correct_vocab"}
    totals = dict(zip(NC4_COLUMNS, counts.sum(0).tolist(), strict=True))
    found.details["nc4"] = {name: totals[name] for name in ("rows", *names.values())}
    rows, reason = totals["rows"] or math.nan, "no rows of eligible classes were kept"
    found.add("nc4/nearest_accuracy", totals[names.pop("nearest_accuracy")] / rows, reason)
    if bad_rows:
        rows, counts, reason = math.nan, counts[:0], why_no_classifier(bad_rows)
    for name, column in names.items():
        found.add(f"nc4/{name}", totals[column] / rows, reason)
    if linear:
        shares = counts[:, 1].to(torch.float64) / counts[:, 0]
        found.add("nc4/agreement_class_mean", shares[counts[:, 0] > 0].mean(), reason)
