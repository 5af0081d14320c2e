"""Time that includes what the device still has to do, and the processor's time beside it."""

import time
from typing import NamedTuple

import torch


class Clocks(NamedTuple):
    """What two clocks say, or the difference of two readings of them.

    Attributes:
        wall: Seconds that pass, whatever else the machine does meanwhile.
        processor: Seconds that the processors gave this process, all its threads together; 0.0 with a device of its
            own, for which it says nothing.
    """

    wall: float
    processor: float

    def since(self, start: "Clocks") -> "Clocks":
        """What has passed between ``start`` and this reading."""
        return Clocks(self.wall - start.wall, self.processor - start.processor)


def read_clocks(device: torch.device) -> Clocks:
    """Read both clocks as they stand; what was submitted to ``device`` may still run."""
    return Clocks(time.perf_counter(), time.process_time() if device.type == "cpu" else 0.0)


def device_seconds(device: torch.device) -> float:
    """Return ``time.perf_counter()`` after everything submitted to ``device`` is done (a CPU has no queue)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter()
