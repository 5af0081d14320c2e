"""The family over one accumulator: against the pure functions, states, undefined values, details, drawings."""

import doctest
import importlib
import logging
import math
import pkgutil

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from torchmetrics import MetricCollection

import lit_hass.metrics
from lit_hass.metrics import GNC2, UNC3, ClassStatistics, CollapseMetrics, SVDEntropy, functional
from tests.metrics.synthetic import PAIRED, SPECIAL, WIDTH, make, part

COMMON = {"num_features": WIDTH, "ignore_ids": SPECIAL}


@pytest.fixture(autouse=True)
def no_display():
    matplotlib.use("agg")
    yield
    plt.close("all")


def plain(data, states=None):
    """Rows of the text, per-class means and variances of classes with two rows or more."""
    keep = data["token_ids"] > max(SPECIAL)
    if states is not None:
        keep &= states != 2
    x, ids = data["features"][keep].double(), data["token_ids"][keep]
    found, counts = ids.unique(return_counts=True)
    eligible = found[counts >= 2]
    groups = [x[ids == token] for token in eligible.tolist()]
    means = torch.stack([rows.mean(0) for rows in groups])
    variances = torch.stack([rows.var(0, correction=0).sum() for rows in groups])
    return keep, x, ids, eligible, means, variances


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_every_value_is_that_of_the_rows(offset):
    data = make(offset=offset)
    keep, x, ids, eligible, means, variances = plain(data, data["states"])
    settings = {"keep_rows": True, "num_paired_features": PAIRED, "cdnv_exponent": 2, "nc4_vocabulary": True}
    metric = CollapseMetrics(**COMMON, classifier=data["lm_head"], **settings)
    for rows in torch.arange(600).split(130):
        metric.update(**part(data, rows))
    values = {name: float(value) for name, value in metric.compute().items()}
    head, centred = data["lm_head"][eligible].double(), means - means.mean(0)
    scatter = sum((x[ids == t] - x[ids == t].mean(0)).T @ (x[ids == t] - x[ids == t].mean(0)) for t in ids.unique())
    rows_eligible = int(torch.isin(ids, eligible).sum())
    groups = functional.grouped_entropy(x, ids).summary()
    summary = functional.spectrum_summary(functional.matrix_eigenvalues(x, center=True), len(x))
    nc4 = functional.nc4_counts(x, ids, eligible, means, head, data["lm_head"]).sum(0).tolist()
    expected = {
        "svd_entropy/overall": functional.spectral_entropy(x),
        "svd_entropy/covariance_bits": functional.spectral_entropy(x, 2, True, 2),
        "svd_entropy/normalized": functional.spectral_entropy(x) / math.log(WIDTH),
        "svd_entropy/token_mean": groups["mean"],
        "svd_entropy/token_std": groups["std"],
        "rank/raw/effective_rank": functional.spectral_entropy(x, eps=0).exp(),
        "rank/centred/participation_ratio": summary["participation_ratio"],
        "rank/centred/alpha_req": summary["alpha_req"],
        "rank/lidar": functional.lidar(scatter / rows_eligible, centred),
        "gnc2/mean": functional.gnc2(means),
        "gnc2/cov_abs": functional.gnc2(means, "cov_abs"),
        "unc3/cov_abs": functional.unc3(means, head),
        "unc3/dot_cov_abs": functional.unc3(means, head, similarity="dot"),
        "nc1/cdnv": functional.cdnv(means, variances, exponent=2),
        "nc1/quotient": scatter.trace() / rows_eligible / centred.square().sum(1).mean(),
        "nc1/pinv": functional.pinv_ratio(scatter / rows_eligible, centred),
        "nc2/norm_mean": centred.norm(dim=1).mean(),
        "nc2/equinorm": centred.norm(dim=1).std() / centred.norm(dim=1).mean(),
        "nc2/etf_error": functional.etf_error(means),
        "nc3/frobenius": functional.papyan_distance(head, centred),
        "nc3/distance_mean": functional.duality_distances(head, centred).mean(),
        "nc3/structure_error": functional.structure_error(head, centred),
        "nc4/agreement": nc4[1] / nc4[0],
        "nc4/agreement_vocab": nc4[2] / nc4[0],
        "nc4/nearest_accuracy": nc4[3] / nc4[0],
        "anisotropy/mean_cosine": functional.mean_cosine(x),
        "cka/linear": functional.linear_cka(x, data["paired_features"][keep]),
        "cka/debiased": functional.debiased_cka(x, data["paired_features"][keep]),
    }
    for i, name in enumerate(("prompt", "accepted", "rejected", "bonus")):
        rows = (data["token_ids"] > max(SPECIAL)) & (data["states"] == i)
        expected[f"svd_entropy/{name}"] = functional.spectral_entropy(data["features"][rows])
    for name, value in expected.items():
        assert values[name] == pytest.approx(float(value), rel=1e-8, abs=1e-9), name
    assert not metric.compute_details()["undefined"]
    assert metric.compute_details()["states"]["rejected"]["rows"] == int(
        (data["states"][data["token_ids"] > 1] == 2).sum()
    )


def test_small_values_from_numpy():
    """Computed once with numpy from the definitions: svd, eigvalsh of the covariance, double loops over classes."""
    i, j = torch.meshgrid(torch.arange(24), torch.arange(4), indexing="ij")
    features = (i * i * 7 + j * 5 + i * j * 3) % 13 - 5.0 + 0.25 * j
    a, b = torch.meshgrid(torch.arange(16), torch.arange(4), indexing="ij")
    metric = CollapseMetrics(4, classifier=(a * 3 + b * 7) % 11 - 4.0, keep_rows=True)
    metric.update(features, torch.arange(24) * 5 % 6 + 10)
    values = metric.compute()
    expected = {
        "svd_entropy/overall": 1.3520206603621578,
        "svd_entropy/covariance_bits": 1.7315005949071036,
        "svd_entropy/token_mean": 1.1642432501685946,
        "gnc2/mean": -0.22799219329696147,
        "gnc2/cov_abs": 2.500849253381835,
        "unc3/cov_abs": 3.3592425469677574,
        "nc3/cos_mean": -0.15763925409568177,
        "nc1/cdnv": 3.8896160557319206,
        "nc1/quotient": 2.7336005062223157,
        "nc1/pinv": 111.74358974358755,
        "nc2/etf_error": 0.9523979861749052,
        "nc4/agreement": 3 / 24,
        "nc4/nearest_accuracy": 8 / 24,
        "anisotropy/mean_cosine": 0.1333664453154852,
    }
    for name, value in expected.items():
        assert float(values[name]) == pytest.approx(value, rel=1e-9), name


def test_single_metrics_are_views_of_the_family():
    data = make()
    family = CollapseMetrics(**COMMON, classifier=data["lm_head"], keep_rows=True)
    single = {
        "svd_entropy/overall": SVDEntropy(**COMMON),
        "svd_entropy/token_mean": SVDEntropy(**COMMON, scope="class"),
        "gnc2/mean": GNC2(**COMMON),
        "unc3/cov_abs": UNC3(**COMMON, classifier=data["lm_head"]),
    }
    for metric in (family, *single.values()):
        metric.update(**part(data, slice(0, 600), "features", "token_ids", "states"))
    for name, metric in single.items():
        assert float(metric.compute()) == pytest.approx(float(family.compute()[name]), abs=1e-12)
        assert metric.compute_details()["value"] == float(metric.compute())


def test_tsqr_keeps_what_a_gram_matrix_loses():
    generator = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=generator, dtype=torch.float64)).Q
    rows = torch.randn(400, 8, generator=generator, dtype=torch.float64) * torch.logspace(
        0, -11, 8, dtype=torch.float64
    )
    rows = rows @ turn
    for center in (False, True):
        found = {}
        for method in ("gram", "tsqr"):
            metric = SVDEntropy(num_features=8, method=method, center=center)
            for some in rows.split([150, 3, 247]):
                metric.update(some, torch.zeros(len(some), dtype=torch.int64))
            metric.compute()
            found[method] = metric.compute_details()["eigenvalues"].sqrt()
        exact = torch.linalg.svdvals(rows - rows.mean(0) if center else rows)
        torch.testing.assert_close(found["tsqr"], exact, rtol=1e-4, atol=1e-14)
        assert float((found["gram"] - exact).abs().max()) > 1e-9


def test_undefined_is_nan_with_a_reason(caplog):
    head = torch.eye(3)
    empty = CollapseMetrics(3, classifier=head, keep_rows=True, num_paired_features=2)
    with caplog.at_level(logging.WARNING), pytest.warns(UserWarning, match="before the ``update``"):
        values = empty.compute()
    undefined = empty.compute_details()["undefined"]
    assert all(v.isnan() for v in values.values()) and undefined.keys() == values.keys()
    assert undefined["svd_entropy/overall"] == "there are no rows"
    assert undefined["gnc2/mean"] == "fewer than 2 eligible classes (0 of 0 seen)"
    assert len(caplog.messages) == 1 and "gnc2/mean" in caplog.messages[0]

    one = CollapseMetrics(3, classifier=head, keep_rows=True)
    one.update(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1]))
    values = one.compute()
    assert values["svd_entropy/overall"].isnan() and values["svd_entropy/covariance_bits"].isnan()
    assert one.compute_details()["undefined"]["svd_entropy/covariance_bits"] == "there is one row, which has no spread"
    assert one.compute_details()["undefined"]["unc3/mean"].startswith("fewer than 2")

    twins = CollapseMetrics(3, classifier=torch.zeros(3, 3), keep_rows=True)
    twins.update(torch.ones(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]))
    values, details = twins.compute(), twins.compute_details()
    assert values["gnc2/mean"].isnan() and details["n_zero_mean"] == 3 and details["n_zero_classifier"] == 3
    assert details["n_equal_mean_pairs"] == 3 and values["nc1/cdnv"].isnan() and values["unc3/mean"].isnan()
    assert details["undefined"]["svd_entropy/covariance_bits"] == "all rows are equal up to rounding"

    pair = GNC2(2)
    pair.update(torch.tensor([[0.0, 1.0], [0.0, 3.0], [5.0, 0.0], [6.0, 0.0]]), torch.tensor([4, 4, 6, 6]))
    assert float(pair.compute()) == pytest.approx(-math.log(2)) and pair.compute_details()["std"] == 0
    for metric in (GNC2(2), UNC3(2, classifier=torch.eye(2)), SVDEntropy(2), SVDEntropy(2, scope="class")):
        metric.update(torch.zeros(1, 2), torch.tensor([1]))
        assert metric.compute().isnan() and metric.compute_details()["undefined"]["value"]


def test_scatter_of_larger_classes_says_whose_it_is():
    data = make()
    for settings, whose in (({}, "eligible classes"), ({"min_samples": 5}, "all classes seen")):
        metric = CollapseMetrics(**COMMON, **settings)
        metric.update(**part(data, slice(0, 600), "features", "token_ids"))
        assert metric.compute_details()["scatter_of"] == whose
    bare = CollapseMetrics(**COMMON, keep_rows=True)  # what needs a classifier is not there, rather than 0
    bare.update(**part(data, slice(0, 600), "features", "token_ids"))
    assert [name for name in bare.compute() if name.startswith(("nc3", "nc4", "unc3"))] == ["nc4/nearest_accuracy"]
    most = CollapseMetrics(**COMMON, max_classes=4, keep_rows=True)
    most.update(**part(data, slice(0, 600), "features", "token_ids"))
    ids = data["token_ids"][data["token_ids"] > 1]
    frequent = sorted(ids.unique().tolist(), key=lambda t: (-int((ids == t).sum()), t))[:4]
    assert most.compute_details()["classes"]["ids"].tolist() == sorted(frequent)


def test_a_training_classifier_is_read_when_it_is_needed():
    head = torch.nn.Linear(3, 4, bias=False)
    metric = UNC3(3, classifier=head.weight, min_samples=1)
    metric.update(torch.eye(4)[:, :3] + 0.1, torch.arange(4))
    first = float(metric.compute())
    with torch.no_grad():
        head.weight.add_(torch.arange(12.0).view(4, 3))
    metric._computed = None
    assert float(metric.compute()) != first and not list(metric.parameters())


def test_drawings():
    data = make()
    for metric in (
        ClassStatistics(**COMMON),
        SVDEntropy(**COMMON),
        GNC2(**COMMON),
        UNC3(**COMMON, classifier=data["lm_head"]),
        CollapseMetrics(**COMMON),
    ):
        metric.update(**part(data, slice(0, 600), "features", "token_ids"))
        figure, axes = metric.plot()
        assert figure is axes.get_figure() and (axes.lines or axes.patches)
        given = plt.subplots()[1]
        assert metric.plot(metric.compute(), ax=given)[1] is given
    figure, axes = GNC2(**COMMON).plot([torch.tensor(0.1), torch.tensor(0.3)])
    assert list(axes.lines[0].get_ydata()) == pytest.approx([0.1, 0.3])


def test_examples_in_docstrings():
    tried = 0
    for module in pkgutil.walk_packages(lit_hass.metrics.__path__, "lit_hass.metrics."):
        result = doctest.testmod(importlib.import_module(module.name))
        assert result.failed == 0, module.name
        tried += result.attempted
    assert tried > 50


@pytest.mark.parametrize("package", ["lit_hass.metrics", "lit_hass.metrics.functional"])
def test_every_public_name_is_there(package):
    module = importlib.import_module(package)
    assert sorted(module._HOMES) == sorted(module.__all__)
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert all(
        callable(getattr(module, name)) for name in module.__all__ if not name.isupper() and name != "NC4_COLUMNS"
    )
    with pytest.raises(AttributeError, match="nonsense"):
        module.nonsense  # noqa: B018


def test_a_collection_gives_the_same_numbers():
    data = make()
    single = {
        "entropy": SVDEntropy(**COMMON),
        "gnc2": GNC2(**COMMON),
        "unc3": UNC3(**COMMON, classifier=data["lm_head"]),
    }
    together = MetricCollection({name: metric.clone() for name, metric in single.items()})
    for rows in torch.arange(600).split(170):
        for target in (together, *single.values()):
            target.update(**part(data, rows, "features", "token_ids"))
    values = together.compute()
    assert {name: float(v) for name, v in values.items()} == {name: float(m.compute()) for name, m in single.items()}
