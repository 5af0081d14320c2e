"""Peak memory, as far as the device tells."""

from __future__ import annotations

import torch

from lit_hass.metrics.resources import host_peak_memory


def reset_peak_memory(device: torch.device) -> None:
    """Start a new peak where the device can (CUDA); a process's peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes.

    Returns:
        on CUDA, the most that tensors occupied since `reset_peak_memory`; elsewhere the most that the whole process
        ever had in RAM (Python and libraries included); None where the system does not tell (Windows).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return host_peak_memory()
