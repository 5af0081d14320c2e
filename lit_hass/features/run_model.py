"""What a measurement needs to know of the model that a run uses: its output layer and its special tokens."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from lit_hass.errors import UserError
from lit_hass.models import load_tokenizer


def model_of(module: Any) -> PreTrainedModel:
    """Find the base in a module that holds it through a decoder, a scorer or as ``model``.

    Raises:
        UserError: there is none.
    """
    decoder = getattr(module, "decoder", None)
    for holder in (getattr(decoder, "forward", None), getattr(module, "scorer", None), module):
        model = getattr(holder, "model", None)
        if isinstance(model, PreTrainedModel):
            if model.get_output_embeddings() is None:
                raise UserError(f"{type(model).__name__} has no output layer to compare features with")
            return model
    raise UserError(f"{type(module).__name__} holds no transformers model whose features could be collected")


def tokenizer_of(module: Any, data: Any) -> Any:
    """The tokenizer of a run: its data's, or its base's; None where it has none."""
    prompting = getattr(data, "prompting", None)
    if prompting is not None:
        return prompting.tokenizer
    name = getattr(data, "tokenizer_name", None) or getattr(module, "base", None)
    return load_tokenizer(name) if isinstance(name, str) else None
