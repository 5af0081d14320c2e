"""Which part of a causal language model turns tokens into the hidden states that its output layer reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_hass.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def find_decoder(model: PreTrainedModel) -> tuple[str, nn.Module]:
    """Find a model's decoder, which most families call their base model.

    Some name a prefix that is no part of them (Llama-4's text model says ``language_model`` and has ``model``).

    Returns:
        The name of the part, and the part: called with ``input_ids`` it returns ``last_hidden_state``.

    Raises:
        UserError: The model has no such part.
    """
    whole: Any = model
    for name in (whole.base_model_prefix, "model", "decoder", "transformer"):
        part = getattr(model, name, None) if name else None
        if isinstance(part, nn.Module):
            return name, part
    raise UserError(
        f"{type(model).__name__}: which of its parts is the decoder is not known, so it cannot be taken apart"
    )


def same_order(ours: Tensor, theirs: Tensor) -> bool:
    """Whether one set of logits ``[1, T, V]`` is a rising function of the other in each row, up to rounding.

    So are an output layer's plain product and what a model makes of it by a scale or a cap; not, where the model puts a
    layer between its decoder and its output layer (BERT's transform).
    """
    rounding = 8 * torch.finfo(theirs.dtype).eps * float(theirs.abs().max())
    steps = theirs.float().gather(-1, ours.float().argsort(dim=-1).to(theirs.device)).diff(dim=-1)
    return bool(steps.min() >= -rounding)


def output_device(model: PreTrainedModel) -> torch.device:
    """Where a model's output layer computes, and with it what reads its features: its weight may be offloaded."""
    head: Any = model.get_output_embeddings()
    if head.weight.device.type != "meta":
        return torch.device(head.weight.device)
    hook = getattr(head, "_hf_hook", None)  # of accelerate, which brings the weight for each call
    return torch.device(getattr(hook, "execution_device", None) or model.device)
