"""Rows that are made as they are needed, fed to a measurement; prints what came out and the memory it took.

``python -m tests.features.million_rows ROWS FOLDER SETTINGS`` (JSON of a `CollapseConfig`) prints one line of JSON.
"""

import json
import resource
import sys
from collections.abc import Iterator

import torch

from lit_hass.features import CollapseConfig, CollapseMeasurement
from lit_hass.features.class_views import class_means

WIDTH, CLASSES, BLOCK = 512, 2000, 2000


def classifier() -> torch.Tensor:
    return torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(4))


def blocks(rows: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Features ``[2000, 512]`` float32 around the means of their classes, of which few are frequent, and an offset."""
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9))
    scales = torch.logspace(0, -3, WIDTH)
    weights = 1 / torch.arange(1.0, CLASSES + 1)
    for start in range(0, rows, BLOCK):
        chance = torch.Generator().manual_seed(start)
        ids = torch.multinomial(weights, min(BLOCK, rows - start), replacement=True, generator=chance)
        features = torch.randn(len(ids), WIDTH, generator=chance).add_(centres[ids]).mul_(scales).add_(0.5)
        yield features, ids


def peak() -> int:
    """Bytes of this process in memory, at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(rows: int, folder: str, settings: dict) -> None:
    torch.set_num_threads(1)
    config = CollapseConfig(**settings)
    # The first calls load code that stays.
    with CollapseMeasurement(WIDTH, CollapseConfig(), classifier()) as small:
        for features, ids in blocks(BLOCK):
            small.add_batch_features(features, ids)
        small.get_collapse_metrics()
    before = peak()
    with CollapseMeasurement(WIDTH, config, classifier(), num_classes=CLASSES, folder=folder or None) as measurement:
        for features, ids in blocks(rows):
            measurement.add_batch_features(features, ids)
        measurement.store.consolidate()
        held, collected = measurement.store.nbytes(), peak() - before
        metrics = measurement.get_collapse_metrics()
        after = peak() - before
        ids, counts, means = class_means(measurement)

    small = {key: metrics[key] for key in ("total_tokens", "overall_metrics", "family", "counts")}
    tokens = {token: value["sampled"] for token, value in metrics["token_metrics"].items()}
    shown = {"peak_collecting": collected, "peak": after, "held": held, **small, "sampled": tokens}
    print(json.dumps({**shown, "count": counts.tolist(), "sums_of_means": means.sum(1).tolist()}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
