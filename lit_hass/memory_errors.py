"""When memory is short: telling such errors from others, and letting go of what nobody needs."""

from __future__ import annotations

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short: of a GPU, or of the machine (a plain RuntimeError of torch)."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_memory() -> None:
    """Collect garbage, and give cached blocks of a GPU back; takes some tenths of a second."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
