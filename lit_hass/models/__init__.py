"""Base models and drafts: finding, checking and loading them. Needs torch and transformers only.

Names are imported when first asked for, so that asking for one costs no more than it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.models.context import context_length
    from lit_hass.models.digest import model_digest
    from lit_hass.models.folders import check_base, load_config, resolve_base, shipped_names
    from lit_hass.models.loading import load_base, load_tokenizer
    from lit_hass.models.stopping import stop_ids

_HOMES = {
    "check_base": "lit_hass.models.folders",
    "context_length": "lit_hass.models.context",
    "load_base": "lit_hass.models.loading",
    "load_config": "lit_hass.models.folders",
    "load_tokenizer": "lit_hass.models.loading",
    "model_digest": "lit_hass.models.digest",
    "resolve_base": "lit_hass.models.folders",
    "shipped_names": "lit_hass.models.folders",
    "stop_ids": "lit_hass.models.stopping",
}

__all__ = (
    "check_base",
    "context_length",
    "load_base",
    "load_config",
    "load_tokenizer",
    "model_digest",
    "resolve_base",
    "shipped_names",
    "stop_ids",
)


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
