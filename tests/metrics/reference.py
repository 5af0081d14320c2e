"""The reference input of the collapse metrics, where it is, and which of our numbers are which of its."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

REFERENCE = os.environ.get("LIT_HASS_REFERENCE")
needs_reference = pytest.mark.skipif(not REFERENCE, reason="LIT_HASS_REFERENCE is not set: no reference values here")

_SPREADS = {"std_unb": "std", "var_unb": "var", "cov_unb": "cov", "cov_abs_unb": "cov_abs", "mean": "mean"}
_SPREADS |= {"min": "min", "max": "max"}
#: Name in the expected values -> name in compute_details() whose reductions it holds.
MOMENTS = {
    "gnc2_log_skip": "gnc2",
    "nc1_cdnv_exp1": "cdnv",
    "nc2_cosines": "cosines",
    "nc2_interference_dot": "dots",
    "nc2_norms": "norms",
    "nc2_norms_log": "log_norms",
    "nc3_dists_normalised": "duality_distances",
    "unc3_cos": "classifier_cosines",
    "unc3_dot": "classifier_dots",
}
#: Name in the expected values -> name in compute().
SCALARS = {
    "nc1_pinv_tr_SB+SW_over_K": "nc1/pinv",
    "nc1_quotient_trSW_over_trSB": "nc1/quotient",
    "nc1_trSB_unweighted": "nc1/between_trace",
    "nc1_trSW": "nc1/within_trace",
    "nc2_equiangularity_mean_abs_dev": "nc2/equiangularity",
    "nc2_etf_error": "nc2/etf_error",
    "nc3_papyan_fro": "nc3/frobenius",
    "nc3_self_duality_structure_error": "nc3/structure_error",
    "nc4_agree_linear_eligible": "nc4/agreement",
    "nc4_agree_linear_fullvocab": "nc4/agreement_vocab",
    "nc4_linear_accuracy_fullvocab": "nc4/linear_accuracy_vocab",
    "nc4_ncc_accuracy": "nc4/nearest_accuracy",
}
PACKAGE = {
    "gnc2_log_mean": ("gnc2", "mean"),
    "nc1_cdnv_exp1": ("cdnv", "mean"),
    "nc2_norms_cov_unb": ("norms", "cov"),
    "nc2_norms_log_mean": ("log_norms", "mean"),
    "nc2_norms_log_var_unb": ("log_norms", "var"),
    "nc2_norms_mean": ("norms", "mean"),
    "nc2_norms_var_unb": ("norms", "var"),
    "nc3_dists_mean": ("duality_distances", "mean"),
    "nc3_dists_var_unb": ("duality_distances", "var"),
    "unc3_cos_cov_unb": ("classifier_cosines", "cov"),
    "unc3_cos_mean": ("classifier_cosines", "mean"),
    "unc3_cos_var_unb": ("classifier_cosines", "var"),
    "unc3_dot_cov_unb": ("classifier_dots", "cov"),
    "unc3_dot_mean": ("classifier_dots", "mean"),
    "unc3_dot_var_unb": ("classifier_dots", "var"),
}
SPECTRUM = {
    "{}_sigma/nats": "entropy_sigma",
    "{}_sigma/effective_rank": "effective_rank",
    "{}_sigma/normalized": "normalized_sigma",
    "{}_sigma/participation_ratio": "participation_ratio_sigma",
    "{}_sigma2/nats": "entropy_sigma2",
    "{}_sigma2/effective_rank": "effective_dimensions",
    "{}_sigma2/normalized": "normalized_sigma2",
    "{}_sigma2/participation_ratio": "participation_ratio",
    "{}_rankme_eps1e-7": "rankme",
    "{}_stable_rank": "stable_rank",
    "{}_sum_sigma": "sum_sigma",
    "{}_top_sigma2_share": "top_share",
    "{}_numerical_rank": "numerical_rank",
}


def load() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the input's tensors and the expected values."""
    folder = Path(str(REFERENCE)) / "collapse"
    with np.load(folder / "input_main.npz") as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return tensors, json.loads((folder / "expected_main.json").read_text(encoding="utf-8"))


def pairs_of_numbers(
    expected: dict[str, Any], values: dict[str, float], details: dict[str, Any]
) -> dict[str, tuple[float, float, float]]:
    """Return name -> (ours, expected, tolerance) for everything that ``CollapseMetrics`` computes."""
    direct, found = expected["direct"], {}
    for theirs, ours in MOMENTS.items():
        for key, reduction in _SPREADS.items():
            if key in direct[theirs]:
                found[f"{theirs}/{key}"] = (details[ours][reduction], direct[theirs][key], 1e-9)
    for theirs, ours in SCALARS.items():
        found[theirs] = (values[ours], direct[theirs], 1e-9)
    for theirs, (ours, reduction) in PACKAGE.items():
        found[f"package/{theirs}"] = (details[ours][reduction], expected["nc_package"][theirs], 1e-5)
    for theirs, ours in (
        ("nc1_pinv", "nc1/pinv"),
        ("nc1_quotient", "nc1/quotient"),
        ("nc2_etf_error", "nc2/etf_error"),
        ("nc3_self_duality_error", "nc3/structure_error"),
        ("nc4_agree_unweighted", "nc4/agreement_class_mean"),
        ("nc4_agree_weighted", "nc4/agreement"),
    ):
        found[f"package/{theirs}"] = (values[ours], expected["nc_package"][theirs], 1e-5)
    overall, table = expected["svd_entropy_overall"], expected["svd_entropy_overall"]["table"]
    found["overall a"] = (values["svd_entropy/overall"], overall["original_a_nats"], 1e-9)
    found["overall b"] = (values["svd_entropy/covariance_bits"], overall["original_b"]["entropy"], 1e-9)
    for kind in ("raw", "centred"):
        for theirs, ours in SPECTRUM.items():
            number: Any = table
            for key in theirs.format(kind).split("/"):
                number = number[key]
            found[theirs.format(kind)] = (details["spectrum"][kind][ours], number, 1e-9)
    classes, summary = details["classes"], expected["per_class_summary"]
    for theirs, ours in (
        ("avg_svd_entropy", "mean"),
        ("avg_svd_entropy_weighted", "weighted_mean"),
        ("mean_normalized", "normalized_mean"),
        ("std_svd_entropy_pop", "std"),
        ("n_defined", "n_defined"),
        ("n_undefined", "n_undefined"),
        ("min_samples", "min_samples"),
        ("max_samples", "max_samples"),
    ):
        found[f"classes/{theirs}"] = (classes[ours], summary[theirs], 1e-9)
    per_class = expected["per_class"]
    for token, count, value in zip(*(classes[name].tolist() for name in ("ids", "counts", "entropies")), strict=True):
        found[f"class {token} n"] = (count, per_class[str(token)]["n"], 0)
        found[f"class {token}"] = (value, max(0.0, per_class[str(token)]["original_a_nats"]), 1e-9)
    meta = expected["meta"]
    for theirs, ours in (("N_kept", "n_rows"), ("classes_seen",) * 2, ("classes_eligible",) * 2):
        found[theirs] = (details[ours], meta[theirs], 0)
    for theirs, ours in (("nc4_hits_eligible", "agree"), ("nc4_hits_fullvocab", "agree_vocab")):
        found[theirs] = (details["nc4"][ours], direct[theirs], 0)
    return found


def check(expected: dict[str, Any], values: dict[str, Any], details: dict[str, Any]) -> int:
    """Compare all numbers; the tolerance is relative for numbers larger than 1. Returns how many were compared."""
    numbers = pairs_of_numbers(expected, {name: float(value) for name, value in values.items()}, details)
    wrong = {k: (a, b) for k, (a, b, tol) in numbers.items() if not abs(a - b) <= tol * max(1.0, abs(b))}
    assert not wrong, wrong
    return len(numbers)
