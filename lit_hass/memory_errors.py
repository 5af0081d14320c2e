"""Telling errors of memory from others: torch has one kind for a GPU and another for the machine."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short: of a GPU, or of the machine (a plain RuntimeError of torch)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
