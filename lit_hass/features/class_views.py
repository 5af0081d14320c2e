"""What is known of single classes, for pictures: means, and a few numbers of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from lit_hass.features.measurement import CollapseMeasurement
from lit_hass.features.scopes import synced
from lit_hass.metrics.class_table import Classes
from lit_hass.metrics.functional.neural_collapse import similarities


@contextmanager
def _eligible(measurement: CollapseMeasurement) -> Iterator[Classes | None]:
    measurement.store.consolidate()
    config, sums = measurement.config, measurement.overall()
    if sums is None or not (config.compute_class_metrics or config.compute_token_metrics):
        yield None
        return
    with synced(sums, dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield sums.classes().eligible(config.min_samples_per_token, config.max_tokens_to_analyze)


def class_means(measurement: CollapseMeasurement) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids ``[K]``, counts ``[K]`` and means ``[K, d]`` of the eligible classes of all ranks; collective."""
    with _eligible(measurement) as classes:
        if classes is None:
            nothing = torch.empty(0, dtype=torch.int64)
            return nothing, nothing, torch.empty(0, measurement.num_features, dtype=torch.float64)
        return classes.ids.cpu(), classes.counts.cpu(), classes.means.cpu()


def class_quantities(measurement: CollapseMeasurement) -> dict[str, Tensor]:
    """Return ``[K]`` numbers of the eligible classes of all ranks by name; collective.

    ``count``; ``norm``: length of the centred mean; ``variance``: mean squared distance of the rows from it;
    ``classifier_cosine``: with the output layer's row, NaN where one of both is zero.
    """
    with _eligible(measurement) as classes:
        if classes is None or not len(classes.ids):
            return {}
        centred = classes.offsets - classes.offsets.mean(0)
        found = {
            "count": classes.counts.to(torch.float64),
            "norm": torch.linalg.vector_norm(centred, dim=1),
            "variance": classes.variances,
        }
        held = measurement.classifier
        if held is not None:
            weight = (held if isinstance(held, Tensor) else held()).detach()
            rows = weight[classes.ids.to(weight.device)].to(centred)
            found["classifier_cosine"] = similarities(rows, centred)
        return {name: value.cpu() for name, value in found.items()}
