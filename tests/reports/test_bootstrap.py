"""The bootstrap: its interval covers the truth about as often as it says, and keeps pairs together."""

import numpy as np
import pytest

from lit_hass.reports.bootstrap import bootstrap_interval


def ratio(sums: np.ndarray) -> np.ndarray:
    return (sums[0] / sums[1]) / (sums[2] / sums[3])


def draw(generator: np.random.Generator, questions: int) -> np.ndarray:
    """Tokens and seconds of two methods on the same questions; the ratio of expectations is 3."""
    tokens = generator.integers(20, 200, questions).astype(float)
    noise = generator.lognormal(-0.02, 0.2, (2, questions))  # mean 1
    return np.stack([tokens, tokens / 300 * noise[0], tokens, tokens / 100 * noise[1]], axis=1)


def test_coverage_is_about_95_percent() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        low, high = bootstrap_interval(draw(generator, 40), ratio, resamples=400, seed=2)
        covered += low <= 3 <= high
    # 0.95 +- 4 standard errors, and a little less because the bootstrap of 40 is a little narrow
    assert 0.88 <= covered / 300 <= 0.99


def test_equals_a_loop_over_resampled_questions() -> None:
    columns = draw(np.random.default_rng(3), 7)
    generator = np.random.default_rng(5)
    values = []
    for drawn in generator.integers(0, 7, size=(500, 7)):
        n_d, t_d, n_b, t_b = (sum(columns[i][c] for i in drawn) for c in range(4))
        values.append((n_d / t_d) / (n_b / t_b))
    expected = np.percentile(values, [2.5, 97.5])
    assert bootstrap_interval(columns, ratio, 500, 5) == pytest.approx(expected)


def test_pairs_stay_together() -> None:
    # Questions differ a hundredfold, but each is exactly 2 times faster: no uncertainty at all.
    seconds = np.array([0.1, 1.0, 10.0, 5.0])
    columns = np.stack([np.full(4, 10.0), seconds / 2, np.full(4, 10.0), seconds], axis=1)
    assert bootstrap_interval(columns, ratio) == pytest.approx((2, 2))


def test_same_seed_same_interval_in_any_memory(monkeypatch) -> None:
    columns = draw(np.random.default_rng(3), 9)
    whole = bootstrap_interval(columns, ratio, 300, 7)
    assert whole == bootstrap_interval(columns, ratio, 300, 7) != bootstrap_interval(columns, ratio, 300, 8)
    monkeypatch.setattr("lit_hass.reports.bootstrap._CHUNK", 50)
    assert bootstrap_interval(columns, ratio, 300, 7) == pytest.approx(whole, rel=0.05)


@pytest.mark.parametrize("questions", [0, 1])
def test_too_few_questions_have_no_interval(questions: int) -> None:
    assert bootstrap_interval(draw(np.random.default_rng(0), questions), ratio) is None


def test_a_resample_without_a_value_gives_no_interval() -> None:
    columns = np.array([[5.0, 1.0, 5.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    assert bootstrap_interval(columns, ratio) is None


def test_no_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        bootstrap_interval(draw(np.random.default_rng(0), 4), ratio, resamples=0)
