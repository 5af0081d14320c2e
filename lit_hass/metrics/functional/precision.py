"""Matrix products that keep their digits, whatever the process has set for speed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Switch TF32 off for CUDA matrix products in float32, and restore the setting afterwards.

    ``torch.set_float32_matmul_precision("high")`` turns it on for the whole process, and distances from products with
    ten bits of mantissa are no distances.
    """
    settings = torch.backends.cuda.matmul
    # The older name refuses to be read once somebody has used the newer one.
    name, exact = ("fp32_precision", "ieee") if hasattr(settings, "fp32_precision") else ("allow_tf32", False)
    before = getattr(settings, name)
    setattr(settings, name, exact)
    try:
        yield
    finally:
        setattr(settings, name, before)
