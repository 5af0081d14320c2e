"""Base models and drafts: finding, checking and loading them. Needs torch and transformers only.

Names are imported when first asked for, so that asking for one costs no more than it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.models.context import check_context, context_length, context_of_run
    from lit_hass.models.decoder import find_decoder
    from lit_hass.models.digest import model_digest
    from lit_hass.models.draft import DraftModel
    from lit_hass.models.draft_cache import DraftCache
    from lit_hass.models.draft_checkpoint import save_draft
    from lit_hass.models.draft_config import DraftConfig
    from lit_hass.models.draft_loading import check_draft, load_draft, resolve_draft
    from lit_hass.models.folders import check_base, load_config, resolve_base, shipped_names
    from lit_hass.models.loading import attention_kind, dtype_setting, load_base, load_tokenizer, parse_dtype
    from lit_hass.models.pairs import check_shipped_draft, own_draft, tree_of
    from lit_hass.models.stopping import stop_ids

_HOMES = {
    "DraftCache": "lit_hass.models.draft_cache",
    "DraftConfig": "lit_hass.models.draft_config",
    "DraftModel": "lit_hass.models.draft",
    "attention_kind": "lit_hass.models.loading",
    "check_base": "lit_hass.models.folders",
    "check_draft": "lit_hass.models.draft_loading",
    "check_context": "lit_hass.models.context",
    "check_shipped_draft": "lit_hass.models.pairs",
    "context_length": "lit_hass.models.context",
    "context_of_run": "lit_hass.models.context",
    "find_decoder": "lit_hass.models.decoder",
    "dtype_setting": "lit_hass.models.loading",
    "load_base": "lit_hass.models.loading",
    "load_draft": "lit_hass.models.draft_loading",
    "load_config": "lit_hass.models.folders",
    "load_tokenizer": "lit_hass.models.loading",
    "parse_dtype": "lit_hass.models.loading",
    "model_digest": "lit_hass.models.digest",
    "own_draft": "lit_hass.models.pairs",
    "resolve_base": "lit_hass.models.folders",
    "resolve_draft": "lit_hass.models.draft_loading",
    "save_draft": "lit_hass.models.draft_checkpoint",
    "shipped_names": "lit_hass.models.folders",
    "stop_ids": "lit_hass.models.stopping",
    "tree_of": "lit_hass.models.pairs",
}

__all__ = (
    "DraftCache",
    "DraftConfig",
    "DraftModel",
    "attention_kind",
    "check_base",
    "check_context",
    "check_draft",
    "check_shipped_draft",
    "context_length",
    "context_of_run",
    "find_decoder",
    "dtype_setting",
    "load_base",
    "load_config",
    "load_draft",
    "load_tokenizer",
    "model_digest",
    "own_draft",
    "parse_dtype",
    "resolve_base",
    "resolve_draft",
    "save_draft",
    "shipped_names",
    "stop_ids",
    "tree_of",
)


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
