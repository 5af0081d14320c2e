from collections import Counter

import pytest

from lit_hass.data.html_to_tsv.rng import SplitMix


def test_the_bits_are_splitmix64s() -> None:
    # The reference values of the published C program for the seed 1234567.
    rng = SplitMix()
    rng._state = 1234567
    assert [rng.bits() for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


def test_a_stream_is_fixed_and_its_parts_do_not_run_together() -> None:
    rng = SplitMix("a", 1)
    assert [rng.bits() for _ in range(3)] == [4897516830346419698, 13668519464908224144, 17015961686330846769]
    first = {SplitMix(*parts).bits() for parts in (("a", 1), ("a", 11), ("a1",), ("a", 1, 1), ("", "a", 1), ())}
    assert len(first) == 6


def test_draws_are_even() -> None:
    rng = SplitMix("even")
    n = 30_000
    counts = Counter(rng.between(3, 8) for _ in range(n))
    assert set(counts) == set(range(3, 9))
    chi2 = sum((counts[k] - n / 6) ** 2 / (n / 6) for k in range(3, 9))
    assert chi2 < 20.5  # p = 0.001 with 5 degrees of freedom
    assert sum(rng.chance(30) for _ in range(n)) / n == pytest.approx(0.3, abs=0.01)
    assert not any(rng.chance(0) for _ in range(100)) and all(rng.chance(100) for _ in range(100))
    weighted = Counter(rng.weighted((("a", 1), ("b", 3), ("c", 0))) for _ in range(n))
    assert weighted["b"] / n == pytest.approx(0.75, abs=0.01) and "c" not in weighted
    orders = Counter(tuple(rng.shuffled("abc")) for _ in range(n))
    assert len(orders) == 6 and min(orders.values()) > 0.9 * n / 6
