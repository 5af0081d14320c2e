"""What is measured: torchmetrics Metrics, thin states around the functions of ``lit_hass.metrics.functional``.

Names are imported when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.metrics.acceptance import AcceptanceLength
    from lit_hass.metrics.class_statistics import ClassStatistics
    from lit_hass.metrics.collapse import CollapseMetrics
    from lit_hass.metrics.gnc2 import GNC2
    from lit_hass.metrics.perplexity import Perplexity
    from lit_hass.metrics.svd_entropy import SVDEntropy
    from lit_hass.metrics.throughput import Throughput
    from lit_hass.metrics.token_lengths import TokenLengths
    from lit_hass.metrics.unc3 import UNC3

_HOMES = {
    "AcceptanceLength": "lit_hass.metrics.acceptance",
    "ClassStatistics": "lit_hass.metrics.class_statistics",
    "CollapseMetrics": "lit_hass.metrics.collapse",
    "GNC2": "lit_hass.metrics.gnc2",
    "Perplexity": "lit_hass.metrics.perplexity",
    "SVDEntropy": "lit_hass.metrics.svd_entropy",
    "Throughput": "lit_hass.metrics.throughput",
    "TokenLengths": "lit_hass.metrics.token_lengths",
    "UNC3": "lit_hass.metrics.unc3",
}

__all__ = (
    "AcceptanceLength",
    "ClassStatistics",
    "CollapseMetrics",
    "GNC2",
    "Perplexity",
    "SVDEntropy",
    "Throughput",
    "TokenLengths",
    "UNC3",
)


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
