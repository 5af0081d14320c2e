"""`TokenLengths` and its histogram: against numpy, plain loops, every order of a small set, and two processes."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchmetrics import MetricCollection

from lit_hass.errors import UserError
from lit_hass.metrics import TokenLengths
from lit_hass.metrics.functional.token_lengths import LengthHistogram, show_length
from tests.metrics.ranks import run_ranks

ROOT = Path(__file__).resolve().parents[2]
SHARES = (0, 0.001, 0.05, 0.07, 0.25, 0.29, 1 / 3, 0.5, 0.95, 0.99, 0.999, 0.9999, 1)


def draw(seed: int, n: int, high: int = 900) -> np.ndarray:
    return np.random.default_rng(seed).geometric(0.01, n).clip(max=high) - 1


@pytest.mark.parametrize("n", [1, 2, 7, 100, 999, 1000, 9741])
def test_percentiles_are_those_of_numpy(n: int) -> None:
    lengths = draw(n, n)
    found = LengthHistogram.of(lengths, cap=1000)
    for q in SHARES:
        assert found.percentile(q) == np.quantile(lengths, q, method="inverted_cdf"), q
    assert (found.n, found.total, found.longest) == (n, lengths.sum(), lengths.max())
    assert found.mean == pytest.approx(lengths.mean())
    for limit in (-1, 0, 1, 50, 899, 2000):
        assert found.truncation_rate(limit) == pytest.approx((lengths > limit).mean(), abs=0), limit


def test_beyond_the_cap_nothing_is_invented() -> None:
    found = LengthHistogram.of([3, 9, 10, 11, 5000], cap=10)
    assert found.percentile(0.6) == 10 and found.percentile(0.8) == math.inf and found.longest == 5000
    assert show_length(found.percentile(0.8), 10) == "> 10" and show_length(9.0, 10) == "9"
    assert found.truncation_rate(10) == 0.4 and found.truncation_rate(5000) == 0
    assert (
        math.isnan(found.truncation_rate(100))
        and math.isnan(found.batch_waste(2))
        and math.isnan(found.fixed_waste(99))
    )
    assert found.fixed_waste(10) == pytest.approx(1 - (3 + 9 + 10 + 10 + 10) / 50)


def test_nothing_is_undefined_and_not_zero() -> None:
    found = LengthHistogram.of([])
    values = [found.percentile(0.5), found.mean, found.cut_rate, found.truncation_rate(3), found.observed_waste]
    assert all(map(math.isnan, [*values, found.batch_waste(4), found.fixed_waste(3), found.coverage_length(0.9)]))
    assert show_length(math.nan, 5) == "–"


@pytest.mark.parametrize("bad", [[-1], [1.0], [[1, 2]], [None], [True]])
def test_what_is_no_length_is_refused(bad) -> None:
    with pytest.raises(ValueError, match="whole numbers"):
        LengthHistogram.of(bad)
    with pytest.raises(ValueError, match="whole numbers"):
        TokenLengths().update(bad)


@pytest.mark.parametrize("seed", range(5))
def test_a_cut_answer_counts_as_longer_than_any(seed: int) -> None:
    """Whatever the cut answers would have become, the length said to cover a share covers it."""
    rng = np.random.default_rng(seed)
    true = rng.integers(1, 60, 200)
    limits = rng.choice([40, 55], 200)  # 40: the context was full
    seen, cut = np.minimum(true, limits), true > limits
    found = LengthHistogram.of(seen, cut)
    assert found.cut_rate == cut.mean()
    for coverage in (0.3, 0.5, 0.7, 0.9, 0.99, 1.0):
        length = found.coverage_length(coverage)
        worst = np.where(cut, 10**9, seen)
        expected = np.quantile(worst, coverage, method="inverted_cdf")
        assert length == (expected if expected < 10**9 else math.inf)
        assert math.isinf(length) or (true <= length).mean() >= coverage
        # exactly the rule of censoring: no length is known once more than 1 - coverage of all were cut
        assert math.isinf(length) == (math.ceil(coverage * 200) > (~cut).sum())


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_padding_waste_over_every_order(size: int) -> None:
    lengths = [1, 1, 4, 6, 9, 9]
    found = LengthHistogram.of(lengths, cap=20)

    def cells(rows) -> int:
        return sum(max(rows[i : i + size]) * len(rows[i : i + size]) for i in range(0, len(rows), size))

    expected = np.mean([cells(order) for order in itertools.permutations(lengths)])
    assert found.batch_waste(size) == pytest.approx(1 - sum(lengths) / expected, abs=1e-12)
    ordered = cells(sorted(lengths)[::-1])
    assert found.batch_waste(size, "sorted") == pytest.approx(1 - sum(lengths) / ordered, abs=1e-12)
    assert found.fixed_waste(9) == pytest.approx(found.batch_waste(6), abs=1e-12)


def test_padding_waste_of_many_against_drawing() -> None:
    lengths = draw(3, 3001)
    found = LengthHistogram.of(lengths, cap=1000)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(40):
        rows = rng.permutation(lengths)
        drawn.append(sum(part.max() * len(part) for part in np.split(rows, range(32, len(rows), 32))))
    assert found.batch_waste(32) == pytest.approx(1 - lengths.sum() / np.mean(drawn), abs=2e-3)
    ordered = np.sort(lengths)[::-1]
    cells = sum(part.max() * len(part) for part in np.split(ordered, range(32, len(ordered), 32)))
    assert found.batch_waste(32, "sorted") == pytest.approx(1 - lengths.sum() / cells, abs=1e-12)
    with pytest.raises(ValueError, match="order"):
        found.batch_waste(32, "longest")


def test_the_functions_need_no_torch() -> None:
    code = "import sys, lit_hass.metrics.functional.token_lengths; assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_the_metric_counts_what_the_function_counts() -> None:
    lengths, cut = draw(1, 500), draw(2, 500) % 5 == 0
    metric = TokenLengths(cap=300)
    for part in np.split(np.arange(500), [3, 10, 250]):
        metric.update(torch.from_numpy(lengths[part]), torch.from_numpy(cut[part]), padded_to=int(lengths[part].max()))
    metric.update([])
    whole, found = LengthHistogram.of(lengths, cut, cap=300), metric.histogram()
    assert np.array_equal(found.ended, whole.ended) and np.array_equal(found.cut, whole.cut)
    assert (found.total, found.longest, found.batched) == (whole.total, whole.longest, whole.total)
    parts = np.split(lengths, [3, 10, 250])
    assert found.cells == sum(len(part) * part.max() for part in parts)
    computed = metric.compute()
    assert {k: v.item() for k, v in computed.items()} == pytest.approx(found.summary(), nan_ok=True)
    assert computed["padding_waste"].item() == pytest.approx(1 - lengths.sum() / found.cells)
    assert all(value.dtype == torch.float64 for value in computed.values())
    # what was counted elsewhere is added as if it had been counted here
    other = TokenLengths(cap=300)
    assert math.isnan(other.compute()["p50"])
    other.add(found)
    assert {k: v.item() for k, v in other.compute().items()} == {k: v.item() for k, v in computed.items()}
    metric.reset()
    assert metric.histogram().n == 0 and math.isnan(metric.compute()["mean"])


def test_the_metric_refuses_by_name() -> None:
    with pytest.raises(UserError, match="cap"):
        TokenLengths(cap=0)
    with pytest.raises(ValueError, match="cut has 1 entries for 2"):
        TokenLengths().update([1, 2], cut=[True])
    with pytest.raises(ValueError, match="length of 9 cannot have been padded to 8"):
        TokenLengths().update([9], padded_to=8)
    with pytest.raises(ValueError, match="cap 5 cannot be added"):
        TokenLengths(cap=6).add(LengthHistogram.of([1], cap=5))


def test_counts_stay_whole_in_any_precision() -> None:
    metric = TokenLengths(cap=10)
    torch.nn.ModuleDict({"m": metric}).to(torch.bfloat16)
    metric.set_dtype(torch.float32)
    metric.add(LengthHistogram(np.full(12, 2**24 + 1), np.zeros(12, np.int64), total=2**53 + 1, longest=2**24 + 1))
    metric.update([1])
    found = metric.histogram()
    assert found.ended.dtype == np.int64 and found.ended[1] == 2**24 + 2 and found.total == 2**53 + 2
    assert found.longest == 2**24 + 1


def test_metrics_share_a_collection_and_survive_inference_mode() -> None:
    both = MetricCollection({"prompt": TokenLengths(10), "answer": TokenLengths(10)}, compute_groups=False)
    with torch.inference_mode():
        both["prompt"].update([1, 2])
    both["prompt"].update([3])
    assert both["prompt"].histogram().n == 3 and both["answer"].histogram().n == 0


@pytest.mark.ddp
@pytest.mark.parametrize("shared", ["uneven", "empty"])
def test_two_ranks_equal_one(tmp_path: Path, shared: str) -> None:
    code = f"""
from lit_hass.metrics import TokenLengths
torch.manual_seed(0)
lengths = torch.randint(0, 120, (101,)).tolist()
cut = [i % 7 == 0 for i in range(101)]
def count(rows):
    metric = TokenLengths(cap=100)
    for i in rows:
        metric.update([lengths[i]], [cut[i]], padded_to=lengths[i] + i % 3)
    return metric
def work(rank):
    alone = count(range(101)) if rank == 0 else None
    rows = range(rank, 101, 2) if {shared!r} == "uneven" else (range(101) if rank == 1 else [])
    mine = count(rows)
    whole, values = mine.histogram(), mine.compute()
    assert mine.histogram().n == 101 and int(mine.ended.sum() + mine.cut.sum()) == len(rows), "the own share comes back"
    if rank == 0:
        one = alone._read()
        assert (whole.ended == one.ended).all() and (whole.cut == one.cut).all()
        for name in ("total", "longest", "batched", "cells", "n", "cut_rate", "observed_waste"):
            assert getattr(whole, name) == getattr(one, name), name
        for name, value in one.summary().items():
            assert values[name].item() == value, name
"""
    run_ranks(code, tmp_path)
