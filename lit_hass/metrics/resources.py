"""What a process uses of the machine: memory, processors, and its GPU where it has one."""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from typing import Any

import psutil
import torch


def host_peak_memory() -> int | None:
    """The most RAM in bytes that this process ever had (Python and libraries included).

    Returns:
        None where the system does not tell (Windows).
    """
    try:
        import resource
    except ImportError:  # not a POSIX system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


class ResourceSampler:
    """Looks at this process and its device from time to time, and keeps means and peaks.

    A look costs well under a millisecond on a CPU. Host memory is the process's resident set; device memory is what
    torch's allocator holds (CUDA), in tensors and reserved; utilisation is what the driver says of the whole GPU over
    its last sampling period, other processes' work included.

    Args:
        device: the process's device.

    Example:
        >>> sampler = ResourceSampler(torch.device("cpu"))
        >>> found = sampler.sample()
        >>> found["host_bytes"] > 0 and "device_bytes" not in found
        True
    """

    def __init__(self, device: torch.device) -> None:
        """Begin to measure."""
        self.device = device
        self.samples = 0
        self._process = psutil.Process()
        self._start = time.monotonic()
        self._processor_start = _processor_seconds()
        self._host_peak = 0
        self._device_peak = self._reserved_peak = 0
        self._utilization: list[float] = []
        #: Why nothing is known of the GPU's utilisation.
        self.utilization_reason = _why_nobody_tells(device)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._start

    def sample(self) -> dict[str, float]:
        """Look now.

        Returns:
            ``host_bytes`` (resident now), ``host_peak_bytes`` (the process's own peak, or the highest look where the
            system does not tell), ``cpus`` (processor seconds per wall second since the beginning); on CUDA
            ``device_bytes``, ``device_peak_bytes``, ``device_reserved_bytes`` and, if the driver tells,
            ``device_utilization`` (0 to 1).
        """
        self.samples += 1
        resident = int(self._process.memory_info().rss)
        self._host_peak = max(self._host_peak, resident, host_peak_memory() or 0)
        found: dict[str, float] = {
            "host_bytes": resident,
            "host_peak_bytes": self._host_peak,
            "cpus": (_processor_seconds() - self._processor_start) / max(self.seconds, 1e-9),
        }
        if self.device.type == "cuda":
            # The peak since somebody last reset it; looks that are frequent enough see every one.
            self._device_peak = max(self._device_peak, torch.cuda.max_memory_allocated(self.device))
            self._reserved_peak = max(self._reserved_peak, torch.cuda.memory_reserved(self.device))
            found["device_bytes"] = torch.cuda.memory_allocated(self.device)
            found["device_peak_bytes"] = self._device_peak
            found["device_reserved_bytes"] = torch.cuda.memory_reserved(self.device)
            utilization = self._look_at_gpu()
            if utilization is not None:
                self._utilization.append(utilization)
                found["device_utilization"] = utilization
        return found

    def summary(self) -> dict[str, Any]:
        """Look a last time; means and peaks of all looks, None where the machine does not tell."""
        now = self.sample()
        cuda, known = self.device.type == "cuda", self._utilization
        return {
            "seconds": self.seconds,
            "samples": self.samples,
            "host": {
                "current_bytes": now["host_bytes"],
                "peak_bytes": now["host_peak_bytes"],
                "total_bytes": psutil.virtual_memory().total,
                "mean_cpus": now["cpus"],
                "cpu_count": os.cpu_count(),
            },
            "device": {
                "type": self.device.type,
                "name": torch.cuda.get_device_name(self.device) if cuda else self.device.type,
                "current_bytes": now.get("device_bytes"),
                "peak_bytes": self._device_peak if cuda else None,
                "peak_reserved_bytes": self._reserved_peak if cuda else None,
                "total_bytes": torch.cuda.get_device_properties(self.device).total_memory if cuda else None,
                "mean_utilization": sum(known) / len(known) if known else None,
                "max_utilization": max(known, default=None),
                "utilization_unknown": self.utilization_reason,
            },
        }

    def _look_at_gpu(self) -> float | None:
        if self.utilization_reason is not None:
            return None
        from pynvml import NVMLError

        try:
            return torch.cuda.utilization(self.device) / 100
        # A GPU that is split or that we may not ask; no driver library, or a device that it does not know by our name.
        except (NVMLError, RuntimeError) as error:
            self.utilization_reason = str(error)
        return None


def _why_nobody_tells(device: torch.device) -> str | None:
    """Why the device's utilisation cannot be asked for; None where it can."""
    if device.type != "cuda":
        return "no GPU"
    if torch.version.hip is not None:
        return "read on NVIDIA's GPUs only"
    return None if find_spec("pynvml") is not None else "nvidia-ml-py is not installed"


def _processor_seconds() -> float:
    used = os.times()
    return used.user + used.system
