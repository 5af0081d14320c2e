"""Time that includes what the device still has to do."""

import time

import torch


def device_seconds(device: torch.device) -> float:
    """Return ``time.perf_counter()`` after everything submitted to ``device`` is done (a CPU has no queue)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
