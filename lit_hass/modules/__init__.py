"""LightningModules: one per job."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.modules.draft_training import DraftTrainingModule
    from lit_hass.modules.evaluation import EvaluationModule, EvaluationOutcome
    from lit_hass.modules.generation import GenerationModule
    from lit_hass.modules.language_modeling import LanguageModelingModule
    from lit_hass.modules.perplexity import PerplexityModule
    from lit_hass.modules.rationale import RationaleModule

_HOMES = {
    "DraftTrainingModule": "lit_hass.modules.draft_training",
    "EvaluationModule": "lit_hass.modules.evaluation",
    "EvaluationOutcome": "lit_hass.modules.evaluation",
    "GenerationModule": "lit_hass.modules.generation",
    "LanguageModelingModule": "lit_hass.modules.language_modeling",
    "RationaleModule": "lit_hass.modules.rationale",
    "PerplexityModule": "lit_hass.modules.perplexity",
}

__all__ = (
    "DraftTrainingModule",
    "EvaluationModule",
    "EvaluationOutcome",
    "GenerationModule",
    "LanguageModelingModule",
    "PerplexityModule",
    "RationaleModule",
)


def __getattr__(name: str) -> object:
    """Import a module class when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
