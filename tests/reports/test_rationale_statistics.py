"""Figures of a pass against counting by hand and scipy."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from lit_hass.reports.rationale_statistics import rationale_statistics, rationale_summary, wilson_interval
from tests.records.test_predictions import ONE


def test_the_interval_is_scipys() -> None:
    for successes, n in ((0, 7), (3, 10), (180, 500), (12, 12)):
        expected = binomtest(successes, n).proportion_ci(method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert np.isnan(wilson_interval(0, 0)).all()


def test_counts_by_hand() -> None:
    given = [
        ONE,
        replace(ONE, id="b", correct=False, answer="B"),
        replace(ONE, id="c", correct=False, answer=None, cut=True, gen_tokens=20),
        replace(ONE, id="d", cut=True, gen_tokens=20),
        replace(ONE, id="e", correct=False, answer=None, loose=None),
    ]
    found = rationale_statistics(given)
    assert (found["n"], found["correct"], found["kept"], found["hinted"]) == (5, 2, 1, 0)
    assert found["accuracy"] == 0.4 and found["standard_error"] == pytest.approx((0.4 * 0.6 / 5) ** 0.5)
    assert found["accuracy_loose"] == 4 / 5 and found["readings_differ"] == 2 / 5
    assert found["parse_rate"] == 3 / 5 and found["cut_rate"] == 2 / 5
    assert found["tokens_per_second"] == pytest.approx((4 * 3 + 40) / 2.5)
    lengths = [one.gen_tokens for one in given]
    for q in (50, 95, 99):
        assert found["lengths"]["completion"][f"p{q}"] == np.quantile(lengths, q / 100, method="inverted_cdf")
    assert found["lengths"]["total"]["max"] == 29
    assert "accuracy 40.0% (2 of 5" in rationale_summary(found)[0]


def test_hinted_predictions_have_no_accuracy() -> None:
    found = rationale_statistics([replace(ONE, hinted=True)])
    assert found["accuracy"] is found["interval"] is found["accuracy_loose"] is None and found["kept"] == 1
    assert "no accuracy" in rationale_summary(found)[0]


def test_nothing_asked() -> None:
    found = rationale_statistics([])
    assert found["n"] == 0 and found["parse_rate"] is found["accuracy"] is None
