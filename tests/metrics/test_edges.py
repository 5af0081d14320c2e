"""What rounding, broken classifiers, other settings and very few classes must not turn into numbers."""

import math
import warnings
from fractions import Fraction

import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch
from torchmetrics import MetricCollection

from lit_hass.errors import UserError
from lit_hass.features import CollapseConfig, CollapseMeasurement
from lit_hass.metrics import GNC2, UNC3, ClassStatistics, CollapseMetrics, SVDEntropy
from lit_hass.metrics.functional import cdnv, gnc2, unc3


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0.0, 0.1, 1000.1])
def test_a_class_at_the_global_mean_has_no_direction(offset):
    rows = torch.tensor([[1.0, 0.3, 0.7], [-1.0, -0.3, -0.7], [0, 0, 0]], dtype=torch.float64) + offset
    head = torch.eye(3)
    metrics = [GNC2(3, min_samples=1), UNC3(3, head, min_samples=1), CollapseMetrics(3, head, min_samples=1)]
    for metric in metrics:
        metric.update(rows, torch.arange(3))
        assert metric.compute_details()["n_zero_mean"] == 1
    for value in (metrics[0].compute(), metrics[2].compute()["gnc2/mean"], gnc2(rows)):
        assert float(value) == pytest.approx(-math.log(2))
    assert float(metrics[1].compute()) == pytest.approx(float(unc3(rows[:2] - offset, head[:2])), rel=1e-6)


def test_means_that_are_equal_up_to_rounding_are_equal():
    some, other = normal(7, 5) + 3, normal(8, 5, seed=1)
    metric = CollapseMetrics(5)
    metric.update(torch.cat((some, other)), torch.tensor([1] * 7 + [3] * 4 + [4] * 4))
    metric.update(some.flip(0)[:3], torch.full((3,), 2))
    metric.update(some.flip(0)[3:], torch.full((4,), 2))
    values, details = metric.compute(), metric.compute_details()
    means = metric.classes().means
    assert float((means[0] - means[1]).norm()) > 0  # the sums were rounded differently
    assert details["n_equal_mean_pairs"] == 1 and details["cdnv"]["count"] == 5
    groups = [some.double(), some.double(), other[:4].double(), other[4:].double()]
    means = torch.stack([rows.mean(0) for rows in groups])
    spreads = [float(rows.sub(rows.mean(0)).square().sum(1).mean()) for rows in groups]
    expected = [
        (spreads[i] + spreads[j]) / 2 / float((means[i] - means[j]).square().sum())
        for i, j in ((0, 2), (0, 3), (1, 2), (1, 3), (2, 3))
    ]
    assert float(values["nc1/cdnv"]) == pytest.approx(sum(expected) / 5, rel=1e-9)
    near = means.clone()
    near[1] += 1e-15
    assert float(cdnv(near, torch.tensor(spreads, dtype=torch.float64))) == pytest.approx(sum(expected) / 5, rel=1e-9)


def test_classes_of_one_mean_are_undefined_whatever_their_spread():
    """The same rows in every class, in another order each: nothing but rounding tells the means apart."""
    rows, metric = normal(9, 4) + 5, CollapseMetrics(4, classifier=normal(6, 4), keep_rows=True)
    for token in range(6):
        order = torch.randperm(9, generator=torch.Generator().manual_seed(token))
        metric.update(rows[order], torch.full((9,), token))
    values, details = metric.compute(), metric.compute_details()
    assert details["n_zero_mean"] == 6 and details["n_equal_mean_pairs"] == 15
    for name in ("gnc2/mean", "nc1/cdnv", "nc1/quotient", "nc2/equinorm", "nc2/etf_error", "unc3/mean", "rank/lidar"):
        assert values[name].isnan() and details["undefined"][name], name


def test_a_classifier_that_is_not_finite_decides_nothing():
    head = normal(6, 4)
    head[2, 1] = math.nan
    rows, ids = normal(60, 4, seed=1), torch.arange(60) % 5
    single = UNC3(4, head)
    single.update(rows, ids)
    assert single.compute().isnan()
    assert single.compute_details()["undefined"]["value"] == "1 rows of the classifier are not finite"
    for token, linear in ((2, True), (5, False)):  # of a class, or only in the vocabulary
        head = normal(6, 4)
        head[token, 0] = math.inf
        family = CollapseMetrics(4, head, keep_rows=True, nc4_vocabulary=token == 5)
        family.update(rows, ids)
        values, details = family.compute(), family.compute_details()
        assert details["n_nonfinite_classifier"] == int(linear)
        for name in values:
            broken = name.startswith(("nc4/agreement", "nc4/linear")) or (linear and name.startswith(("nc3", "unc3")))
            assert bool(values[name].isnan()) == broken, name
            assert not broken or "not finite" in details["undefined"][name]


def test_sums_by_other_rules_are_kept_apart():
    rows, ids = normal(100, 6), torch.arange(100) % 9
    ids[:50].clamp_(min=3)
    mine, theirs = GNC2(6), GNC2(6, ignore_ids=[0, 1, 2])
    collection = MetricCollection({"all": GNC2(6), "some": GNC2(6, ignore_ids=[0, 1, 2])})
    for part in (slice(0, 50), slice(50, 100)):
        for metric in (mine, theirs, collection):
            metric.update(rows[part], ids[part])
    assert float(collection.compute()["some"]) == pytest.approx(float(theirs.compute()), abs=1e-12)
    assert float(collection.compute()["all"]) != pytest.approx(float(theirs.compute()), abs=1e-6)
    with pytest.raises(ValueError, match="other ignore_ids"):
        mine.merge_state(theirs)
    theirs.persistent(True)
    with pytest.raises(UserError, match="saved with other ignore_ids"):
        GNC2(6).load_state_dict(theirs.state_dict())


def test_a_saved_state_is_taken_whole_or_not_at_all():
    metric = ClassStatistics(3)
    metric.persistent(True)
    metric.update(normal(8, 3), torch.arange(8) % 2)
    saved = metric.state_dict()
    fresh = ClassStatistics(3)
    with pytest.raises(UserError, match="cannot go on without shift"):
        fresh.load_state_dict({name: value for name, value in saved.items() if name != "shift"})
    assert not fresh.row_counts.any() and not len(fresh.class_ids)
    fresh.load_state_dict(saved)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchmetrics warns of a compute() before any update()
        torch.testing.assert_close(fresh.compute()["class_means"], metric.compute()["class_means"])


@pytest.mark.parametrize("width", [1, 5])
def test_one_class_keeps_its_shapes_and_is_drawn(width):
    matplotlib.use("agg")
    metric = ClassStatistics(width)
    metric.update(normal(4, width), torch.full((4,), 7))
    shapes = {name: tuple(value.shape) for name, value in metric.compute().items()}
    assert shapes == {
        "class_ids": (1,),
        "class_counts": (1,),
        "class_means": (1, width),
        "class_variances": (1,),
        "num_rows": (),
        "mean": (width,),
        "scatter": (width, width),
    }
    assert list(metric.plot()[1].lines[0].get_ydata()) == [4]
    plt.close("all")


def test_several_results_are_drawn_as_lines():
    matplotlib.use("agg")
    metric, results = CollapseMetrics(3), []
    for seed in range(3):
        metric.reset()
        metric.update(normal(40, 3, seed=seed), torch.arange(40) % 7)
        results.append({name: metric.compute()[name] for name in ("gnc2/mean", "nc1/cdnv")})
    axes = metric.plot(results)[1]
    drawn = [list(line.get_ydata()) for line in axes.lines]
    assert [float(r["gnc2/mean"]) for r in results] in drawn and [float(r["nc1/cdnv"]) for r in results] in drawn
    plt.close("all")


def test_a_new_classifier_counts_at_once():
    metric = UNC3(3, classifier=normal(5, 3))
    metric.update(normal(20, 3, seed=1), torch.arange(20) % 5)
    before = float(metric.compute())
    metric.set_classifier(normal(5, 3, seed=2))
    assert float(metric.compute()) != before


def test_an_id_beyond_every_vocabulary_needs_a_word():
    metric = SVDEntropy(2)
    with pytest.raises(ValueError, match="give num_classes"):
        metric.update(torch.eye(2), torch.tensor([1, 2**24]))
    allowed = ClassStatistics(2, num_classes=2**24 + 1)
    allowed.update(torch.eye(2), torch.tensor([1, 2**24]))
    assert allowed.compute()["class_ids"].tolist() == [1, 2**24]


def first_of_the_largest(scores: list[Fraction]) -> int:
    return scores.index(max(scores))


@pytest.mark.parametrize("seed", range(3))
def test_nc4_does_not_depend_on_how_means_and_products_were_rounded(seed):
    """Texts that begin alike: one feature and several next tokens, whose means are that feature up to an ulp.

    Expected by exact arithmetic: the lowest id of the nearest means, and of the largest products.
    """
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(4, 6, generator=generator, dtype=torch.float64) * 3 + 1
    counts = {2: (0, 7), 3: (0, 9), 5: (0, 3), 6: (1, 6), 7: (1, 13), 11: (2, 5), 12: (3, 11), 13: (3, 10)}
    ids = torch.cat([torch.full((n,), token) for token, (_, n) in counts.items()])
    rows = torch.cat([shared[place].expand(n, -1) for place, n in counts.values()])
    head = torch.randn(16, 6, generator=generator)
    head[[5, 7]], head[13] = head[2].clone(), head[12].clone()  # tied rows of the output layer
    head[0], head[15] = head[2].clone(), head[3].clone()
    exact = [[[Fraction(x) for x in row] for row in part.tolist()] for part in (shared, head.double())]
    classes, hits = sorted(counts), {name: 0 for name in ("agreement", "nearest_accuracy", "agreement_vocab")}
    for token, (place, n) in counts.items():
        row = exact[0][place]
        nearest = classes[
            first_of_the_largest(
                [-sum((a - b) ** 2 for a, b in zip(row, exact[0][counts[c][0]], strict=True)) for c in classes]
            )
        ]
        products = [sum(a * b for a, b in zip(row, weights, strict=True)) for weights in exact[1]]
        linear = classes[first_of_the_largest([products[c] for c in classes])]
        hits["agreement"] += n * (linear == nearest)
        hits["nearest_accuracy"] += n * (nearest == token)
        hits["agreement_vocab"] += n * (first_of_the_largest(products) == nearest)
    for attempt in range(8):
        order = torch.randperm(len(ids), generator=generator)
        metric, other = (CollapseMetrics(6, head, keep_rows=True, nc4_vocabulary=True) for _ in range(2))
        for number, part in enumerate(order.chunk(1 + attempt)):  # sums of other parts, by other shifts, and merged
            (metric if number % 2 else other).update(rows[part], ids[part])
        metric.merge_state(other)
        values = metric.compute()
        for name, expected in hits.items():
            assert float(values[f"nc4/{name}"]) == pytest.approx(expected / len(ids), abs=1e-12), (attempt, name)
        with CollapseMeasurement(6, CollapseConfig(nc4_classes="vocab", max_buffer_size=attempt + 1), head) as run:
            for part in order.chunk(1 + attempt):
                run.add_batch_features(rows[part], ids[part])
            family = run.get_collapse_metrics()["family"]["overall"]
        assert {name: family[f"nc4/{name}"] for name in hits} == pytest.approx(
            {name: expected / len(ids) for name, expected in hits.items()}, abs=1e-12
        )
