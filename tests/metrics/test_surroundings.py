"""Sums and what is made of them, whatever a Trainer or a script has switched on around a metric's calls."""

import pytest
import torch
from torchmetrics import Metric

from lit_hass.metrics import (
    GNC2,
    UNC3,
    AcceptanceLength,
    ClassStatistics,
    CollapseMetrics,
    Perplexity,
    SVDEntropy,
    Throughput,
    TokenLengths,
)
from lit_hass.metrics.functional import chunk_entropies, grouped_entropy

from ..surroundings import SURROUNDINGS

_NORMAL = torch.Generator().manual_seed(0)
ROWS = torch.randn(400, 24, generator=_NORMAL) + 0.3
OTHER = torch.randn(400, 16, generator=_NORMAL)
IDS = torch.arange(400) % 40
STATES = torch.arange(400) % 5
HEAD = torch.randn(64, 24, generator=_NORMAL)
#: Beyond 2,048 classes products are float32.
MANY = torch.randn(2300, 24, generator=_NORMAL)
STEPS = [[[3, 0, 2]], [[5, 1], [0]]]


def _rows(metric: Metric) -> Metric:
    for part in (slice(0, 300), slice(300, 400)):
        metric.update(ROWS[part], IDS[part], STATES[part])
    return metric


def _collapse() -> Metric:
    metric = CollapseMetrics(24, HEAD, keep_rows=True, num_paired_features=16, nc4_vocabulary=True)
    for part in (slice(0, 300), slice(300, 400)):
        metric.update(ROWS[part], IDS[part], STATES[part], OTHER[part])
    return metric


def _many() -> Metric:
    metric = CollapseMetrics(24, min_samples=1)
    metric.update(MANY, torch.arange(len(MANY)))
    return metric


def _perplexity() -> Metric:
    metric = Perplexity(2)
    metric.update(ROWS.square().sum(1), IDS % 2)
    metric.add_text([300, 500], [2000, 3001])
    return metric


def _acceptance() -> Metric:
    metric = AcceptanceLength()
    for steps in STEPS * 200:
        metric.update(steps)
    return metric


def _throughput() -> Metric:
    metric = Throughput()
    for tokens in range(1, 1000):
        metric.update(tokens, 0.001 * tokens + 1e-6)
    return metric


def _lengths() -> Metric:
    metric = TokenLengths()
    metric.update(torch.arange(1, 900) % 517)
    return metric


METRICS = {
    "SVDEntropy": lambda: _rows(SVDEntropy(24, method="tsqr")),
    "SVDEntropy of classes": lambda: _rows(SVDEntropy(24, scope="class")),
    "GNC2": lambda: _rows(GNC2(24)),
    "UNC3": lambda: _rows(UNC3(24, HEAD)),
    "ClassStatistics": lambda: _rows(ClassStatistics(24)),
    "CollapseMetrics": _collapse,
    "CollapseMetrics of many classes": _many,
    "Perplexity": _perplexity,
    "AcceptanceLength": _acceptance,
    "Throughput": _throughput,
    "TokenLengths": _lengths,
    "grouped_entropy": lambda: grouped_entropy(ROWS, IDS),
    "chunk_entropies": lambda: chunk_entropies(ROWS, 5),
}


def numbers(found: object) -> list[torch.Tensor]:
    """All tensors of a result, in order."""
    if isinstance(found, Metric):
        return [*numbers(found.metric_state), *numbers(found.compute())]
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, dict):
        return [each for value in found.values() for each in numbers(value)]
    if isinstance(found, list | tuple):
        return [each for value in found for each in numbers(value)]
    if isinstance(found, float):
        return [torch.tensor(found, dtype=torch.float64)]
    return numbers(vars(found)) if hasattr(found, "__dict__") else []


@pytest.mark.parametrize("name", METRICS)
def test_numbers_do_not_change(name: str) -> None:
    expected = numbers(METRICS[name]())
    assert expected
    for around in SURROUNDINGS.values():
        with around():
            found = numbers(METRICS[name]())
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))
