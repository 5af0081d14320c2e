"""Counts and sums per class: ClassStatistics against a one-hot matrix product, and the cost of a row as rows grow.

OMP_NUM_THREADS=1 python benchmarks/collapse_class_sums.py
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from collapse_timing import interleaved, report

from lit_hass.metrics import ClassStatistics

CLASSES, WIDTH, ROWS = 32000, 256, 4096


def zipf_ids(rows: int, classes: int) -> torch.Tensor:
    """Return token ids whose frequency falls with their rank, as that of words does."""
    return torch.multinomial(1 / torch.arange(1, classes + 1, dtype=torch.float64), rows, replacement=True)


def one_hot_sums(features: torch.Tensor, ids: torch.Tensor, sums: torch.Tensor, counts: torch.Tensor) -> None:
    """Add a batch by the formula: sum over rows of one_hot(y) h'."""
    one_hot = F.one_hot(ids, CLASSES).to(features.dtype)
    sums += one_hot.T @ features
    counts += one_hot.sum(0)


def against_one_hot() -> None:
    """Compare one batch, with the same result."""
    features, ids = torch.randn(ROWS, WIDTH), zipf_ids(ROWS, CLASSES)
    sums, counts = torch.zeros(CLASSES, WIDTH), torch.zeros(CLASSES)
    metric = ClassStatistics(WIDTH, gram=False, num_classes=CLASSES)
    for _ in range(20):  # a table that has met most of its classes, as after some batches
        metric.update(torch.randn(ROWS, WIDTH), zipf_ids(ROWS, CLASSES))

    def ours() -> None:
        for _ in range(20):
            metric.update(features, ids)

    mine, theirs = interleaved([ours, lambda: one_hot_sums(features, ids, sums, counts)], repeats=5)
    report(f"{ROWS} rows, {CLASSES} classes, d {WIDTH}", mine / 20, theirs, "one-hot product", 300)
    check = ClassStatistics(WIDTH, gram=False)
    check.update(features, ids)
    expected = (sums / counts[:, None])[check.compute()["class_ids"]]
    print(f"largest difference of a mean: {float((check.compute()['class_means'] - expected).abs().max()):.1e}")


def growth(total: int = 1_000_000, width: int = 64, classes: int = 2000) -> None:
    """Measure the CPU time of a row, and the memory of the states, at every fifth of a million rows."""
    metric = ClassStatistics(width)
    ids, features = zipf_ids(10_000, classes), torch.randn(10_000, width)
    ids[:classes] = torch.arange(classes)  # all classes from the first batch on
    step, start = total // 5, time.process_time()
    for rows in range(10_000, total + 1, 10_000):
        metric.update(features, ids.roll(rows))
        if rows % step == 0:
            spent = time.process_time() - start
            size = sum(state.numel() * state.element_size() for state in metric.metric_state.values())
            print(f"up to {rows:>9,} rows: {spent / step * 1e6:.2f} us a row, {size / 2**20:.3f} MiB of states")
            start = time.process_time()


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    against_one_hot()
    growth()
