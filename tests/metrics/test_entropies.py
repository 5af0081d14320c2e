"""Entropies and spectra against singular values, closed forms and each group computed alone."""

import math

import numpy as np
import pytest
import torch

from lit_hass.errors import UserError
from lit_hass.features import CollapseConfig, CollapseMeasurement
from lit_hass.features.kept_measures import _streamed_entropy
from lit_hass.metrics import CollapseMetrics, SVDEntropy
from lit_hass.metrics.functional import (
    chunk_entropies,
    gram_eigenvalues,
    grouped_entropy,
    matrix_eigenvalues,
    power_law,
    renyi_entropy,
    spectral_entropy,
    spectrum_summary,
)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(30, 8), (5, 8), (8, 8), (2, 3)])
@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("center", [False, True])
def test_entropy_is_that_of_the_singular_values(shape, power, center):
    rows = normal(*shape) + 4
    for base, eps in (("e", 1e-10), (2, 0.0)):
        s = rows - rows.mean(0) if center else rows
        s = torch.linalg.svdvals(s)
        s[max(1, min(shape[0] - center, shape[1])) :] = 0  # zero by rank, which svdvals leaves as 1e-16
        p = s**power / (s**power).sum()
        p = p[p > 0]
        expected = float(-(p * (p + eps).log()).sum()) / (1 if base == "e" else math.log(2))
        ours = float(spectral_entropy(rows, power, center, base, eps))
        assert ours == pytest.approx(max(0.0, expected), abs=1e-9)


def test_entropies_that_are_known_or_undefined():
    assert float(spectral_entropy(torch.linalg.qr(normal(6, 6)).Q, eps=0)) == pytest.approx(math.log(6))
    assert float(spectral_entropy(torch.ones(7, 3), eps=0)) == 0.0
    for rows in (torch.zeros(0, 3), torch.zeros(4, 3), torch.ones(1, 3)):
        assert math.isnan(float(spectral_entropy(rows))) and math.isnan(float(spectral_entropy(rows, center=True)))
    assert math.isnan(float(spectral_entropy(torch.full((6, 3), 0.1), center=True)))
    with pytest.raises(UserError, match="power"):
        spectral_entropy(torch.eye(2), power=3)


def test_summary_of_a_spectrum():
    rows = normal(50, 6) * torch.tensor([3.0, 2.0, 1.0, 0.5, 0.2, 0.1])
    s = torch.linalg.svdvals(rows)
    summary = spectrum_summary(gram_eigenvalues(rows.T @ rows, 50), 50)
    p = s.square() / s.square().sum()
    assert summary["participation_ratio"] == pytest.approx(float(1 / p.square().sum()))
    assert summary["stable_rank"] == pytest.approx(float(s.square().sum() / s[0] ** 2))
    assert summary["condition"] == pytest.approx(float(s[0] / s[-1]))
    assert summary["numerical_rank"] == 6 and summary["sum_sigma"] == pytest.approx(float(s.sum()))
    for order, key in ((1, "matrix_entropy_1"), (2, "matrix_entropy_2"), (math.inf, "matrix_entropy_inf")):
        assert float(renyi_entropy(s.square(), order)) == pytest.approx(summary[key])
    assert float(renyi_entropy(s.square(), 3)) == pytest.approx(float((p**3).sum().log() / -2))
    decay = torch.arange(1, 201, dtype=torch.float64) ** -1.5
    fit = power_law(decay)
    assert fit["alpha_req"] == pytest.approx(1.5) and fit["alpha_req_r2"] == pytest.approx(1)
    assert (fit["alpha_req_first"], fit["alpha_req_last"]) == (11, 100)
    assert math.isnan(spectrum_summary(torch.zeros(3, dtype=torch.float64), 0)["effective_rank"])


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize(("rank", "d", "batch"), [(3, 8, 1), (6, 24, 7), (60, 96, 64)])
def test_rounding_is_no_rank_and_no_line_is_fitted_through_it(rank, d, batch, center):
    """Rows of a known rank, added up in two orders, against the singular values of all rows."""
    rows = normal(2000, rank) * torch.logspace(0, -3, rank, dtype=torch.float64) @ normal(rank, d, seed=1)
    found = []
    for order in (torch.arange(2000), torch.randperm(2000, generator=torch.Generator().manual_seed(0))):
        family = CollapseMetrics(d)
        for x in rows[order].split(batch):
            family.update(x, torch.zeros(len(x), dtype=torch.long))
        found.append(family.compute_details()["spectrum"]["centred" if center else "raw"])
    singular = np.linalg.svd((rows - rows.mean(0) * center).numpy(), compute_uv=False)[:rank]
    first, last = (11, min(rank, 100)) if rank >= 50 else (1, rank)
    slope = np.polyfit(np.log(np.arange(first, last + 1)), np.log(singular[first - 1 : last] ** 2), 1)[0]
    for summary in found:
        assert summary["numerical_rank"] == np.linalg.matrix_rank((rows - rows.mean(0) * center).numpy()) == rank
        assert summary["alpha_req"] == pytest.approx(-slope, rel=1e-6) and summary["alpha_req_last"] == last
        assert summary["condition"] == pytest.approx(singular[0] / singular[-1], rel=1e-6)


def least_collapsed(n: int, d: int) -> torch.Tensor:
    """n orthogonal rows of one length; of more rows than numbers the columns are that, and add up to zero."""
    if n <= d:
        return torch.linalg.qr(normal(d, n))[0].T.contiguous()
    return torch.linalg.qr(torch.cat((torch.ones(n, 1, dtype=torch.float64), normal(n, d)), dim=1))[0][:, 1:]


@pytest.mark.parametrize("variant", ["a", "b"])
@pytest.mark.parametrize(("n", "d"), [(1, 9), (2, 9), (3, 9), (5, 9), (9, 9), (10, 9), (64, 9), (7, 1)])
def test_the_least_collapsed_rows_are_at_the_bound_by_every_name(n, d, variant):
    """All singular values are equal: the entropy is the logarithm of how many there can be, and its share is 1."""
    config = CollapseConfig(svd_variant=variant)
    x, ids, center = least_collapsed(n, d), torch.zeros(n, dtype=torch.long), variant == "b"
    directions = min(n - center, d)
    share = 1.0 if directions > 1 else math.nan
    single, family = SVDEntropy(d, **config.entropy), CollapseMetrics(d, keep_rows=True, **config.entropy)
    for metric in (single, family):
        metric.update(x, ids)
    values, undefined = family.compute(), family.compute_details()["undefined"]
    with CollapseMeasurement(d, config) as measurement:
        measurement.add_batch_features(x, ids)
        run = measurement.get_collapse_metrics()
        kept = measurement.store.kept
        streamed = _streamed_entropy(kept, torch.arange(n), 4, config.entropy, torch.device("cpu"))
    summary = spectrum_summary(matrix_eigenvalues(x, center), n, center)
    shares = {
        "CollapseMetrics": values["svd_entropy/normalized"],
        "CollapseMetrics, tokens": values["svd_entropy/token_normalized_mean"],
        "SVDEntropy": single.compute_details()["normalized_entropy"],
        "a spectrum": summary[f"normalized_sigma{'2' if center else ''}"],
        "groups": grouped_entropy(x, ids, min_samples=1, **config.entropy).normalized[0],
        "a run": run["family"]["overall"]["svd_entropy/normalized"],
        "a run's states": run["states"]["prompt"]["normalized_entropy"],
        "a run's tokens": run["token_metrics"].get("0", {}).get("normalized_entropy"),
        "a large class": streamed[1],
    }
    for name, found in shares.items():
        assert (math.nan if found is None else float(found)) == pytest.approx(share, abs=1e-7, nan_ok=True), name
    expected = math.log(directions) / (math.log(2) if center else 1) if n > 1 else math.nan  # of one row: nothing
    for found in (values["svd_entropy/overall"], single.compute(), streamed[0]):
        assert float(found) == pytest.approx(expected, abs=1e-7, nan_ok=True)
    if math.isnan(share):
        why = "one row" if n == 1 else f"{n} {'centred ' if center else ''}rows of {d} numbers"
        assert why in undefined["svd_entropy/normalized"]


@pytest.mark.parametrize("center", [False, True])
def test_groups_are_computed_as_each_alone(center):
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat([torch.full((n,), 3 * i) for i, n in enumerate([1, 2, 2, 3, 9, 10, 11, 12, 40, 70, 71, 300, 5])])
    rows = normal(len(ids), 20) * torch.linspace(0.1, 3, 20, dtype=torch.float64) + 2
    rows[ids == 36] = rows[0].clone()  # five equal rows
    order = torch.randperm(len(ids), generator=generator)
    found = grouped_entropy(rows[order], ids[order], center=center, eps=0.0)
    assert found.ids.tolist() == [3 * i for i in range(1, 13)]
    for token, value, normal_value, count in zip(
        found.ids.tolist(), found.entropies, found.normalized, found.counts.tolist(), strict=True
    ):
        alone = spectral_entropy(rows[ids == token], center=center, eps=0.0)
        assert int((ids == token).sum()) == count
        assert float(value) == pytest.approx(float(alone), abs=1e-9, nan_ok=True)
        bound = math.log(min(count - center, 20)) or math.nan
        assert float(normal_value) == pytest.approx(float(alone) / bound, abs=1e-9, nan_ok=True)
    assert math.isnan(float(found.entropies[-1])) == center
    assert found.summary()["n_undefined"] == int(center)
    wide = normal(600, 300)
    large = grouped_entropy(wide, torch.arange(600) // 280)
    for token in (0, 1):
        alone = float(spectral_entropy(wide[token * 280 : token * 280 + 280]))
        assert float(large.entropies[token]) == pytest.approx(alone, abs=1e-9)
    assert not len(grouped_entropy(rows[:0], ids[:0]).ids)
    with pytest.raises(ValueError, match="must be"):
        grouped_entropy(rows, ids[:3])


def test_chunks_follow_both_rules():
    rows = normal(23, 6)
    for rule, edges in (("array_split", [0, 5, 10, 15, 19, 23]), ("floor_last_rest", [0, 4, 8, 12, 16, 23])):
        found = chunk_entropies(rows, 5, rule)
        expected = [float(spectral_entropy(rows[a:b])) for a, b in zip(edges, edges[1:], strict=False)]
        assert found.entropies == pytest.approx(expected, abs=1e-9)
        assert found.first_minus_last == pytest.approx(expected[0] - expected[-1], abs=1e-9)
    assert chunk_entropies(rows[:4]).pattern == "undefined"
    # Of 7 rows the last stretches are one row each: no entropy, which as 0 would be a strong decline.
    short = chunk_entropies(rows[:7])
    assert [math.isnan(value) for value in short.entropies] == [False, False, True, True, True]
    assert short.pattern == "undefined" and math.isnan(short.first_minus_last)
    flat = torch.cat((torch.eye(6, dtype=torch.float64), torch.ones(6, 6, dtype=torch.float64)))
    assert chunk_entropies(flat, 2).pattern == "strong_decline"
    with pytest.raises(UserError, match="rule"):
        chunk_entropies(rows, rule="halves")
