"""Hidden states as data: taking them from a model, keeping them within bounds, and measuring their collapse.

Stands on ``models`` (whose structure it asks for), ``records`` (atomic files) and ``metrics`` (the statistics that rows
are folded into); none of them knows this package, and nothing here knows Lightning.

Names are imported when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.features.config import CollapseConfig
    from lit_hass.features.extraction import extract_features, special_ids
    from lit_hass.features.measurement import CollapseMeasurement
    from lit_hass.features.reservoir import Reservoir
    from lit_hass.features.rows import RowBlock
    from lit_hass.features.sequences import FeatureSequence
    from lit_hass.features.store import FeatureStore

_HOMES = {
    "CollapseConfig": "lit_hass.features.config",
    "CollapseMeasurement": "lit_hass.features.measurement",
    "FeatureSequence": "lit_hass.features.sequences",
    "FeatureStore": "lit_hass.features.store",
    "Reservoir": "lit_hass.features.reservoir",
    "RowBlock": "lit_hass.features.rows",
    "extract_features": "lit_hass.features.extraction",
    "special_ids": "lit_hass.features.extraction",
}

__all__ = (
    "CollapseConfig",
    "CollapseMeasurement",
    "FeatureSequence",
    "FeatureStore",
    "Reservoir",
    "RowBlock",
    "extract_features",
    "special_ids",
)


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
