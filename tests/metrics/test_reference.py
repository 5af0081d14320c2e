"""Every number of the reference values, computed from the reference input."""

import pytest
import torch

from lit_hass.metrics import GNC2, UNC3, CollapseMetrics, SVDEntropy
from lit_hass.metrics.functional import (
    cdnv_statistics,
    chunk_entropies,
    gnc2_statistics,
    grouped_entropy,
    product_statistics,
    spectral_entropy,
)
from tests.metrics.reference import check, load, needs_reference

pytestmark = needs_reference
SPECIAL = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def reference():
    return load()


def settings(tensors, **more):
    return {
        "num_features": 32,
        "classifier": tensors["lm_head"],
        "ignore_ids": SPECIAL,
        "keep_rows": True,
        "nc4_vocabulary": True,
        **more,
    }


def test_one_pass_in_uneven_batches(reference):
    tensors, expected = reference
    metrics = CollapseMetrics(**settings(tensors))
    for rows in torch.arange(1500).split([1, 700, 300, 499]):
        metrics.update(tensors["features"][rows], tensors["token_ids"][rows])
    assert check(expected, metrics.compute(), metrics.compute_details()) > 300


def test_population_spreads(reference):
    tensors, expected = reference
    metrics = CollapseMetrics(**settings(tensors, correction=0, keep_rows=False))
    metrics.update(tensors["features"], tensors["token_ids"])
    details = metrics.compute_details()
    for theirs, ours in (("gnc2_log_skip", "gnc2"), ("nc2_norms", "norms"), ("unc3_cos", "classifier_cosines")):
        for name in ("std", "var", "cov"):
            assert details[ours][name] == pytest.approx(expected["direct"][theirs][f"{name}_pop"], rel=1e-9)
    package = expected["nc_package"]
    assert details["gnc2"]["var"] == pytest.approx(package["gnc2_log_var_pop"], rel=1e-5)
    assert details["gnc2"]["cov"] == pytest.approx(package["gnc2_log_cov"], rel=1e-5)


def test_merged_parts(reference):
    tensors, expected = reference
    parts = []
    for rows in torch.arange(1500).split([1100, 0, 400]):
        parts.append(CollapseMetrics(**settings(tensors)))
        parts[-1].update(tensors["features"][rows], tensors["token_ids"][rows])
    parts[1].merge_state(parts[0])
    parts[1].merge_state(parts[2].metric_state)
    check(expected, parts[1].compute(), parts[1].compute_details())


def test_single_metrics_and_variants(reference):
    tensors, expected = reference
    direct, overall = expected["direct"], expected["svd_entropy_overall"]
    common = {"num_features": 32, "ignore_ids": SPECIAL}
    head = tensors["lm_head"]
    cases = [
        (GNC2(**common), direct["gnc2_log_skip"]["mean"]),
        (GNC2(**common, reduction="cov_abs"), direct["gnc2_log_skip"]["cov_abs_unb"]),
        (GNC2(**common, reduction="var", correction=0), direct["gnc2_log_skip"]["var_pop"]),
        (GNC2(**common, duplicates="inf"), direct["gnc2_log_all"]["mean"]),
        (GNC2(**common, global_mean="weighted"), direct["gnc2_log_skip_weighted_mG"]["mean"]),
        (GNC2(**common, global_mean="weighted", reduction="var"), direct["gnc2_log_skip_weighted_mG"]["var_unb"]),
        (GNC2(**common, kernel="riesz", exponent=-1), direct["gnc2_dist"]["mean"]),
        (GNC2(**common, kernel="riesz", exponent=-1, reduction="max"), direct["gnc2_dist"]["max"]),
        (GNC2(**common, norm_eps=1e-8), direct["gnc2_original_a_mean"]),
        (
            GNC2(**common, norm_eps=1e-8, ordered_pairs=True, reduction="cov"),
            direct["gnc2_original_b_cov_unb_orderedpairs"],
        ),
        (UNC3(**common, classifier=head), direct["unc3_cos"]["cov_abs_unb"]),
        (UNC3(**common, classifier=lambda: head, correction=0), direct["unc3_cos"]["cov_pop"]),
        (UNC3(**common, classifier=head, similarity="dot"), direct["unc3_dot"]["cov_abs_unb"]),
        (
            UNC3(**common, classifier="class_means"),
            direct["unc3_original_a_wrong_classifier=means"]["cov_abs_unb"],
        ),
        (SVDEntropy(**common), overall["original_a_nats"]),
        (SVDEntropy(**common, eps=0.0, method="tsqr"), overall["table"]["raw_sigma"]["nats"]),
        (SVDEntropy(**common, power=2, center=True, base=2), overall["original_b"]["entropy"]),
        (SVDEntropy(**common, power=2, center=True, base=2, method="tsqr"), overall["original_b"]["entropy"]),
        (SVDEntropy(32), expected["svd_entropy_overall_all_rows"]["original_a_nats"]),
        (SVDEntropy(32, 2, True, 2), expected["svd_entropy_overall_all_rows"]["original_b"]["entropy"]),
        (SVDEntropy(**common, scope="class"), expected["per_class_summary"]["avg_svd_entropy"]),
    ]
    for metric, value in cases:
        for rows in torch.arange(1500).split(470):
            metric.update(tensors["features"][rows], tensors["token_ids"][rows])
        assert float(metric.compute()) == pytest.approx(value, abs=1e-9), metric
    package = expected["nc_package"]
    assert float(cases[6][0].compute()) == pytest.approx(package["gnc2_dist_mean"], rel=1e-5)
    unbiased = cases[6][0].compute_details()["var"]
    assert unbiased * 5252 / 5253 == pytest.approx(package["gnc2_dist_var_pop"], rel=1e-5)
    b = cases[16][0].compute_details()
    for name, key in (("effective_dimensions",) * 2, ("participation_ratio",) * 2, ("max_entropy",) * 2):
        assert b[name] == pytest.approx(overall["original_b"][key], rel=1e-8)
    assert b["normalized_entropy"] == pytest.approx(overall["original_b"]["normalized_entropy"], abs=1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-6)])
def test_tiles(reference, dtype, tolerance):
    tensors, expected = reference
    direct = expected["direct"]
    keep = torch.tensor(expected["meta"]["eligible_ids"])
    groups = [tensors["features"][tensors["token_ids"] == token].double() for token in keep.tolist()]
    means = torch.stack([rows.mean(0) for rows in groups])
    variances = torch.stack([rows.var(0, correction=0).sum() for rows in groups])
    squared = cdnv_statistics(means, variances, exponent=2, tile_dtype=dtype).moments.mean
    assert squared == pytest.approx(expected["nc_package"]["nc1_cdnv_exp2"], rel=1e-5)
    for moments, name in (
        (gnc2_statistics(means, tile=17, tile_dtype=dtype).moments, "gnc2_log_skip"),
        (gnc2_statistics(means, kernel="riesz", exponent=-1, tile=40, tile_dtype=dtype).moments, "gnc2_dist"),
        (cdnv_statistics(means, variances, tile=17, tile_dtype=dtype).moments, "nc1_cdnv_exp1"),
        (cdnv_statistics(means, variances, exponent=2, tile=99, tile_dtype=dtype).moments, "nc1_cdnv_exp2"),
        (product_statistics(means, tile=17, tile_dtype=dtype).moments, "nc2_cosines"),
        (product_statistics(means, similarity="dot", tile=17, tile_dtype=dtype).moments, "nc2_interference_dot"),
    ):
        assert moments.count == direct[name]["n"] == 5253
        for key in ("mean", "min", "max", "std_unb", "var_unb", "cov_unb", "std_pop", "var_pop", "cov_pop"):
            ours = moments.reduced(key.split("_")[0], 0 if key.endswith("_pop") else 1)
            assert ours == pytest.approx(direct[name][key], rel=tolerance, abs=tolerance), (name, key)


def test_entropies_of_classes(reference):
    tensors, expected = reference
    keep = ~torch.isin(tensors["token_ids"], torch.tensor(SPECIAL))
    rows, ids = tensors["features"][keep], tensors["token_ids"][keep]
    for key, settings in (
        ("raw_sigma_nats", {}),
        ("centred_sigma_nats", {"center": True}),
        ("centred_sigma2_bits", {"center": True, "power": 2, "base": 2}),
    ):
        found = grouped_entropy(rows, ids, eps=0.0, **settings)
        assert found.ids.tolist() == expected["meta"]["eligible_ids"]
        for token, value in zip(found.ids.tolist(), found.entropies.tolist(), strict=True):
            theirs = expected["per_class"][str(token)][key]
            assert value == pytest.approx(float("nan") if theirs is None else theirs, abs=1e-9, nan_ok=True)


def test_chunks(reference):
    tensors, expected = reference
    for rule, sequences in expected["chunks"].items():
        for one in sequences:
            found = chunk_entropies(tensors["features"][tensors["seq_ids"] == one["seq"]], rule=rule)
            if one["entropies"] is None:
                assert found.entropies == [] and found.pattern == "undefined"
                continue
            assert found.entropies == pytest.approx(one["entropies"], abs=1e-9)
            assert found.first_minus_last == pytest.approx(one["first_minus_last"], abs=1e-9)
            assert found.pattern == one["pattern"]
    assert float(spectral_entropy(tensors["features"])) == pytest.approx(
        expected["svd_entropy_overall_all_rows"]["original_a_nats"], abs=1e-9
    )
