"""Prompts that can be decoded, and how far."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lit_hass.decoding.forward import BaseForward
from lit_hass.errors import UserError


def check_prompts(forward: BaseForward, prompts: Sequence[Tensor], max_new_tokens: int) -> list[int]:
    """Return how many tokens each answer may have: ``max_new_tokens``, or what the context leaves.

    Raises:
        UserError: A prompt is not a 1-D tensor of integers, is empty, longer than the model's context, or holds an
            id outside the vocabulary; or ``max_new_tokens`` is not a whole number >= 0.
    """
    if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 0:
        raise UserError(f"max_new_tokens must be a whole number >= 0, got {max_new_tokens!r}")
    limits = []
    for index, prompt in enumerate(prompts):
        if prompt.dim() != 1 or prompt.dtype.is_floating_point or prompt.dtype in (torch.bool, torch.complex64):
            raise UserError(
                f"prompt {index} must be a 1-D tensor of token ids, got shape {tuple(prompt.shape)} of {prompt.dtype}"
            )
        if len(prompt) == 0:
            raise UserError(f"prompt {index} is empty: decoding needs at least one token")
        low, high = (int(bound) for bound in torch.aminmax(prompt))
        if low < 0 or high >= forward.embedding_size:
            wrong = low if low < 0 else high
            raise UserError(
                f"prompt {index} holds id {wrong}, outside the vocabulary 0 .. {forward.embedding_size - 1}"
            )
        if forward.context is not None and len(prompt) > forward.context:
            raise UserError(f"prompt {index} has {len(prompt)} tokens, the model's context holds {forward.context}")
        room = max_new_tokens if forward.context is None else forward.context - len(prompt)
        limits.append(min(max_new_tokens, room))
    return limits
