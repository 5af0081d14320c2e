"""Which forward a model gets, decided by its kind and proved by numbers."""

import logging

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding.forward import BaseForward
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.lean_weights import unsupported
from lit_hass.errors import UserError

log = logging.getLogger(__name__)

_LONG, _SHORT = 8, 5


def make_forward(model: PreTrainedModel) -> BaseForward:
    """Return the fastest forward that reproduces ``model``'s own logits.

    The lean one where the model is of a supported kind and a self-test passes (prompts of unequal length in one
    batch, then a cached step, against the unmodified model), else the model's own.

    Raises:
        UserError: The model is in training mode, or not even its own forward with a cache reproduces its logits.
    """
    if model.training:
        raise UserError("the model is in training mode (dropout would change its answers): call model.eval() first")
    reason = unsupported(model)
    if reason is None:
        lean = LeanForward(model)
        error = max(_errors(lean, [_LONG, _SHORT]))
        if error <= tolerance(model.dtype):
            return lean
        reason = f"the self-test differs by {error:.1e} (allowed {tolerance(model.dtype):.1e})"
    log.info("decoding with the forward of transformers: %s", reason)
    own = HFForward(model)
    error = max(_errors(own, [_LONG]))
    if not error <= tolerance(model.dtype):
        raise UserError(
            f"{type(model).__name__}: cached decoding differs from a full forward by {error:.1e} relative "
            f"(allowed {tolerance(model.dtype):.1e}), so this model cannot be decoded step by step"
        )
    own.pads = max(_errors(own, [_LONG, _SHORT])) <= tolerance(model.dtype)
    if not own.pads:
        log.info("prompts of different lengths are decoded apart: padding changes what this model computes")
    return own


def tolerance(dtype: torch.dtype) -> float:
    """Largest accepted difference of logits, relative to the largest logit."""
    return max(1e-4, 16 * torch.finfo(dtype).eps)


def _errors(forward: BaseForward, lengths: list[int]) -> list[float]:
    """Relative difference of logits, per row after the prompt and per row after one cached step."""
    rows = [(torch.arange(n + 1) * 7 + 3 * n) % forward.embedding_size for n in lengths]
    with torch.inference_mode():
        cache = forward.new_cache(len(rows), max(lengths) + 1)
        prompt = forward.prefill([row[:-1] for row in rows], cache)
        first = forward.logits(torch.stack([hidden[-1] for hidden in prompt]))
        step = torch.stack([row[-1:] for row in rows]).to(forward.device)
        second = forward.logits(forward.extend(step, cache)[:, -1])
        errors = []
        for index, row in enumerate(rows):
            expected = forward.model(input_ids=row[None].to(forward.device), use_cache=False).logits[0, -2:].float()
            errors += [_relative(first[index], expected[0]), _relative(second[index], expected[1])]
    return errors


def _relative(logits: Tensor, expected: Tensor) -> float:
    scale = expected.abs().max().clamp(min=1e-30)
    error = ((logits - expected.to(logits.device)).abs().max() / scale.to(logits.device)).item()
    return error if error == error else float("inf")
