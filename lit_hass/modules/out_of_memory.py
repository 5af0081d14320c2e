"""What to say when a batch was too large for the device: the batch that would fit."""

from __future__ import annotations

import os

import torch
from transformers import PreTrainedModel

from lit_hass.errors import UserError
from lit_hass.memory_errors import is_out_of_memory
from lit_hass.models.memory_estimate import ModelSizes, estimate_memory

__all__ = ("USABLE", "batch_that_fits", "device_memory", "is_out_of_memory")

#: Share of the memory that is planned with: the rest is for the device's context, workspaces and fragments.
USABLE = 0.9


def batch_that_fits(
    model: PreTrainedModel, rows: int, prompt: int, answer: int, own_forward: bool, memory: int | None = None
) -> int:
    """The largest batch, smaller than one that has just failed, whose memory by formula is there.

    Args:
        model: the one that answers.
        rows: of the batch that failed.
        prompt: tokens of its longest prompt.
        answer: most new tokens of a row.
        own_forward: whether this project's hand-written forward decodes the model.
        memory: bytes of the device; None asks it.

    Returns:
        0 where not even one row fits. Half the batch where the formula does not know the model, or says that the failed
        one fits (something else occupies the memory).
    """
    half = rows // 2
    total = memory if memory is not None else device_memory(model.device)
    try:
        sizes = ModelSizes.of(model.config, own_forward)
    except UserError:  # a model whose memory no formula describes
        return half
    if total is None:
        return half

    def needs(batch: int) -> int:
        bytes_each = model.dtype.itemsize
        return estimate_memory(sizes, batch, prompt, answer, bytes_each, model.device.type == "cpu").total

    low, high = 0, rows  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needs(middle) <= USABLE * total else (low, middle)
    return min(low, half) if needs(rows) <= USABLE * total else low


def device_memory(device: torch.device) -> int | None:
    """Bytes of the device that a process may use; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        import resource

        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    except (ImportError, ValueError, OSError):  # not a POSIX system
        return None
    return physical if limit == resource.RLIM_INFINITY else min(physical, limit)
