"""Where a figure was measured."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

_PACKAGES = ("lit-hass", "torch", "transformers", "lightning", "torchmetrics", "tokenizers")


def environment() -> dict[str, Any]:
    """Python, the versions of what decides results, and the machine's processors and GPUs."""
    import torch

    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "machine": platform.machine(),
        "cpu_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # used from a checkout that was not installed
        return None
