"""Entropies of equally many rows: against all draws there are, and whether the intervals hold what they say."""

import itertools
import math

import numpy as np
import pytest
import torch

from lit_hass.metrics.functional import EQUAL_ROWS, drawn_entropies
from tests.metrics.test_entropies import least_collapsed, normal


def entropy_of(rows: np.ndarray, power: int, center: bool) -> float:
    rows = rows - rows.mean(0) if center else rows
    s = np.linalg.svd(rows, compute_uv=False)[: min(len(rows) - center, rows.shape[1])] ** power
    p = s[s > 1e-12 * s.max()] / s.sum()
    return float(-(p * np.log(p)).sum())


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("power", "center"), [(1, False), (2, True), (1, True)])
@pytest.mark.parametrize("d", [3, 40])  # fewer numbers than rows drawn, and more
def test_the_mean_is_that_over_all_draws(d, power, center, offset):
    rows = normal(9, d) * torch.linspace(0.3, 2, d, dtype=torch.float64) + offset
    settings = {"power": power, "center": center, "eps": 0.0}
    all_draws = [entropy_of(rows[list(some)].numpy(), power, center) for some in itertools.combinations(range(9), 5)]
    (found,) = drawn_entropies(rows, [5], draws=4000, **settings)
    error = np.std(all_draws) / math.sqrt(4000)
    assert abs(found.entropy - np.mean(all_draws)) < 4 * error
    assert found.bound == pytest.approx(math.log(min(5 - center, d)))
    # Of the spread of all draws and of the drawing: m / (n - m) times its variance, and a 4000th of it.
    expected = 1.959964 * np.std(all_draws) * math.sqrt(5 / 4 + 1 / 4000)
    reach = min(expected, found.bound - found.entropy)
    assert found.high - found.entropy == pytest.approx(reach, rel=0.1)
    assert found.entropy - found.low == pytest.approx(min(expected, found.entropy), rel=0.1)


def test_the_number_of_rows_alone_makes_no_difference():
    """562 and 44 rows of one kind: their entropies differ, those of 32 rows of each do not."""
    many, few = normal(562, 48), normal(44, 48, seed=1)
    whole = [entropy_of(x.numpy(), 1, False) / math.log(min(len(x), 48)) for x in (many, few)]
    assert abs(whole[0] - whole[1]) > 0.02
    (one,), (other,) = (drawn_entropies(x, [32]) for x in (many, few))
    assert max(one.low, other.low) <= min(one.high, other.high) and abs(one.entropy - other.entropy) < 0.02
    collapsed = normal(562, 48) * torch.linspace(1, 0, 48, dtype=torch.float64) ** 4  # and what differs is told apart
    (third,) = drawn_entropies(collapsed, [32])
    assert third.high < min(one.low, other.low)


def test_sizes_edges_and_rows_without_spread():
    assert [each.rows for each in drawn_entropies(normal(44, 8))] == [16, 24, 32]  # no more than four of five
    assert [each.rows for each in drawn_entropies(normal(320, 8))] == list(EQUAL_ROWS)
    assert drawn_entropies(normal(19, 8)) == [] and drawn_entropies(normal(0, 8)) == []
    first, again = (drawn_entropies(normal(50, 8)) for _ in range(2))
    assert first == again
    for found in drawn_entropies(least_collapsed(40, 64)):
        assert found.entropy == pytest.approx(found.bound, abs=1e-6) and found.high <= found.bound
    equal = torch.full((40, 6), 0.1, dtype=torch.float64)
    for found in drawn_entropies(equal):
        assert (found.entropy, found.low) == (0.0, 0.0) and found.high == 0.0
    for found in drawn_entropies(equal, center=True):
        assert math.isnan(found.entropy) and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(20, 16), (30, 24), (44, 32), (150, 32)])
@pytest.mark.parametrize("kind", ["light tails", "heavy tails", "clusters"])
def test_intervals_hold_what_they_say(kind, n, m):
    """At least 92 of 100 cover the expected entropy of m rows (clusters: nearly all, the intervals are wide there)."""
    chance, d = np.random.default_rng(n), 24
    scale, centres = np.arange(1, d + 1) ** -0.8, chance.standard_normal((12, d))

    def draw(rows: int) -> torch.Tensor:
        x = chance.standard_normal((rows, d)) * scale
        if kind == "heavy tails":
            x *= chance.standard_t(4, (rows, 1))
        if kind == "clusters":
            x = 0.4 * x + centres[chance.integers(0, 12, rows)]
        return torch.from_numpy(x + 0.3)

    truth = np.mean([entropy_of(draw(m).numpy(), 1, False) for _ in range(4000)])
    found = [drawn_entropies(draw(n), [m])[0] for _ in range(400)]
    covered = np.mean([each.low <= truth <= each.high for each in found])
    assert covered >= 0.92 if kind == "clusters" else 0.92 <= covered <= 0.985
