"""Intervals of ratios: by hand, and how often they hold the truth of populations that are known."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lit_hass.metrics.functional.jackknife import FEWEST_UNITS, ratio_interval
from lit_hass.metrics.functional.perplexity import paired_estimate, ratio_estimate
from lit_hass.reports.comparison_speed import _ratio

Population = Callable[[np.random.Generator, int], np.ndarray]


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[0] / sums[1]


def test_of_equal_weights_it_is_the_t_interval_stretched_to_the_skewed_side() -> None:
    values = np.array([1.0, 2.0, 2.5, 3.0, 9.0, 2.2, 1.7])
    low, high = ratio_interval(np.stack([values, np.ones(7)], axis=1), mean, np.ones(7))
    t = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    error, q = stats.sem(values), stats.t.ppf(0.975, 6)
    stretch = stats.skew(values, bias=False) * error * (1 + 2 * q * q) / (6 * math.sqrt(7))
    assert (low, high) == pytest.approx((t.low, t.high + stretch)) and stretch > 0
    assert ratio_interval(np.stack([-values, np.ones(7)], axis=1), mean, np.ones(7)) == pytest.approx((-high, -low))


def test_one_unit_that_weighs_as_much_as_all_others_leaves_few_degrees_of_freedom() -> None:
    generator = np.random.default_rng(0)
    weights = np.array([1.0] * 19 + [100.0])
    values = 3 + 0.3 * generator.normal(size=20)
    even, uneven = (np.ptp(ratio_interval(np.stack([values * w, w], axis=1), mean, w)) for w in (np.ones(20), weights))
    assert uneven > 3 * even


def test_pairs_stay_together() -> None:
    # Questions differ a hundredfold, but each is exactly 2 times faster: no uncertainty at all.
    seconds = np.array([0.1, 1.0, 10.0, 5.0, 2.0])
    found = _ratio(np.stack([np.full(5, 10.0), seconds / 2, np.full(5, 10.0), seconds], axis=1))
    assert found["ratio"] == pytest.approx(2) and found["interval"] == pytest.approx((2, 2))


@pytest.mark.parametrize("units", range(FEWEST_UNITS))
def test_of_too_few_nothing_is_said(units: int) -> None:
    columns = np.random.default_rng(0).lognormal(size=(units, 4))
    assert _ratio(columns)["interval"] is None
    assert ratio_estimate(columns[:, 0], columns[:, 1]).interval is None


def test_without_a_value_there_is_no_interval() -> None:
    empty = np.zeros((6, 4))
    empty[0] = 1.0  # without this one nothing is left
    assert _ratio(empty)["interval"] is None
    assert ratio_estimate([math.inf] + [1.0] * 9, [1.0] * 10).interval is None


# What questions and documents are like: tokens and seconds of the draft, then of the baseline; or nats and a weight.
def tables(g: np.random.Generator, n: int) -> np.ndarray:
    tokens, noise = g.integers(20, 200, n).astype(float), g.lognormal(-0.02, 0.2, (2, n))
    return np.stack([tokens, tokens / 300 * noise[0], tokens, tokens / 100 * noise[1]], axis=1)


def long_and_short(g: np.random.Generator, n: int) -> np.ndarray:
    """Answers from 20 to 1,500 tokens; the longer, the better drafted; a prompt to read besides."""
    z = g.normal(size=n)
    tokens, speedup = np.exp(4.5 + 0.8 * z), np.exp(1 + 0.15 * z + 0.3 * g.normal(size=n))
    return np.stack([tokens, 0.05 + tokens / 250 / speedup, tokens, 0.05 + tokens / 250], axis=1)


def other_answers(g: np.random.Generator, n: int) -> np.ndarray:
    """Sampled without equal seeds: both methods answer in lengths of their own."""
    tokens, speedup = np.exp(4.5 + 0.6 * g.normal(size=(2, n)) + 0.4 * g.normal(size=n)), g.lognormal(1, 0.35, n)
    return np.stack([tokens[0], 0.05 + tokens[0] / 250 / speedup, tokens[1], 0.05 + tokens[1] / 250], axis=1)


def pages(g: np.random.Generator, n: int) -> np.ndarray:
    z = g.normal(size=n)
    weights = np.exp(7 + 0.6 * z)
    return np.stack([weights * (3 - 0.2 * z + 0.3 * g.normal(size=n)), weights], axis=1)


def pages_of_all_lengths(g: np.random.Generator, n: int) -> np.ndarray:
    weights = np.exp(7 + g.normal(size=n))
    return np.stack([weights * (3 + 0.3 * g.normal(size=n)), weights], axis=1)


def pruned_against_dense(g: np.random.Generator, n: int) -> np.ndarray:
    """Differences of two models, with outliers (t of 5 degrees) to the harder side."""
    weights = np.exp(7 + 0.6 * g.normal(size=n))
    return np.stack([weights * (0.2 + 0.03 * (g.standard_t(5, n) + 0.5 * g.exponential(size=n))), weights], axis=1)


SPEED = (tables, long_and_short, other_answers)
TEXT = (pages, pages_of_all_lengths, pruned_against_dense)


def bounds(columns: np.ndarray) -> tuple[float, float]:
    """As the reports compute them."""
    if columns.shape[1] == 4:
        return _ratio(columns)["interval"]
    return paired_estimate(np.zeros(len(columns)), columns[:, 0], columns[:, 1]).interval


def truth_of(columns: np.ndarray) -> float:
    sums = columns.sum(axis=0)
    return (sums[0] / sums[1]) / (sums[2] / sums[3]) if len(sums) == 4 else math.exp(sums[0] / sums[1])


def coverage(draw: Callable[[], np.ndarray], truth: float, runs: int) -> float:
    found = (bounds(draw()) for _ in range(runs))
    return sum(low <= truth <= high for low, high in found) / runs


@pytest.mark.parametrize("population", SPEED + TEXT)
def test_about_95_of_100_intervals_of_8_hold_the_truth(population: Population) -> None:
    g = np.random.default_rng(1)
    truth = truth_of(population(g, 1_000_000))
    assert 0.90 <= coverage(lambda: population(g, 8), truth, 500) <= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("population", SPEED + TEXT)
@pytest.mark.parametrize("n", [FEWEST_UNITS, 8, 16, 40, 80])
def test_coverage(population: Population, n: int) -> None:
    """Within 92 to 98 of 100; one standard error of this simulation is 0.25."""
    g = np.random.default_rng(n)
    truth = truth_of(population(g, 3_000_000))
    assert 0.92 <= coverage(lambda: population(g, n), truth, 8000) <= 0.98


REAL = Path(os.environ.get("LIT_HASS_REAL") or "nowhere") / "hass_llama3_8b"


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("LIT_HASS_REAL"), reason="LIT_HASS_REAL is not set: no real files here")
@pytest.mark.parametrize("bench", ["mt_bench", "alpaca", "gsm8k"])
@pytest.mark.parametrize("n", [FEWEST_UNITS, 8, 16, 40, 80])
def test_coverage_of_questions_drawn_from_real_runs(bench: str, n: int) -> None:
    """A real draft's and baseline's answers to 80 questions are the population, of which n are drawn."""
    found: dict[object, list[float]] = {}
    for kind in ("ea", "base"):
        for line in (REAL / f"{bench}.{kind}.answers.jsonl").read_text().splitlines():
            answer = json.loads(line)
            choice = answer["choices"][0]
            found.setdefault(answer["question_id"], []).extend((sum(choice["new_tokens"]), sum(choice["wall_time"])))
    columns = np.array([row for row in found.values() if len(row) == 4])
    g = np.random.default_rng(n)
    covered = coverage(lambda: columns[g.integers(0, len(columns), n)], truth_of(columns), 4000)
    assert 0.92 <= covered <= 0.98
