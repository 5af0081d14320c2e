"""Where input comes from: DataModules, and the plain data they are made of.

The classes are imported when first asked for, so that reading ``lit_hass.data.html_to_tsv`` needs no Lightning.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.data.commonsense_qa_datamodule import CommonsenseQADataModule
    from lit_hass.data.completion_datamodule import CompletionDataModule
    from lit_hass.data.conversation_datamodule import ConversationDataModule
    from lit_hass.data.html_to_tsv_datamodule import HTMLToTSVDataModule
    from lit_hass.data.perplexity_datamodule import PerplexityDataModule
    from lit_hass.data.question_datamodule import QuestionDataModule
    from lit_hass.data.text_datamodule import TextDataModule

_HOMES = {
    "CommonsenseQADataModule": "lit_hass.data.commonsense_qa_datamodule",
    "CompletionDataModule": "lit_hass.data.completion_datamodule",
    "ConversationDataModule": "lit_hass.data.conversation_datamodule",
    "HTMLToTSVDataModule": "lit_hass.data.html_to_tsv_datamodule",
    "PerplexityDataModule": "lit_hass.data.perplexity_datamodule",
    "QuestionDataModule": "lit_hass.data.question_datamodule",
    "TextDataModule": "lit_hass.data.text_datamodule",
}

__all__ = (
    "CommonsenseQADataModule",
    "CompletionDataModule",
    "ConversationDataModule",
    "HTMLToTSVDataModule",
    "PerplexityDataModule",
    "QuestionDataModule",
    "TextDataModule",
)


def __getattr__(name: str) -> object:
    """Import a DataModule when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
