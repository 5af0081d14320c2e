"""Numbers that are what their dtype says, whatever is switched on around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

#: Kinds of device on which somebody may have switched autocasting on.
_DEVICES = ("cpu", "cuda", "mps", "xpu", "hpu")


@contextmanager
def plain_numbers() -> Iterator[None]:
    """Compute in the dtypes of weights and inputs alone; a decorator, too.

    A Trainer's ``precision``, or a line anywhere in the process, may have set that products are autocast to half
    precision, that float32 products keep ten bits of mantissa or seven (``torch.set_float32_matmul_precision``: TF32 on
    CUDA, bfloat16 on CPUs that have it), or that new tensors are of another dtype than float32. A forward that is
    written for one dtype is wrong then, distances from such products are no distances, and what is called float32 is
    not. Inside, none of it holds; afterwards all of it does again.
    """
    default = torch.get_default_dtype()
    with ExitStack() as stack:
        for device in _DEVICES:
            if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        for settings in (torch.backends.cuda.matmul, getattr(torch.backends.mkldnn, "matmul", None)):
            if settings is not None:
                _exact(settings, stack)
        if default != torch.float32:
            stack.callback(torch.set_default_dtype, default)
            torch.set_default_dtype(torch.float32)
        yield


def _exact(settings: Any, stack: ExitStack) -> None:
    """Have one backend's float32 products keep their 24 bits, until the stack is left."""
    # The older name refuses to be read once somebody has used the newer one.
    newer = hasattr(settings, "fp32_precision")
    name, exact = ("fp32_precision", ("ieee", "none")) if newer else ("allow_tf32", (False,))
    before = getattr(settings, name, exact[0])
    if before in exact:
        return

    def restore() -> None:
        if newer:
            setattr(settings, name, "none")  # what was inherited from a wider setting is inherited again
        if getattr(settings, name) != before:
            setattr(settings, name, before)

    stack.callback(restore)
    setattr(settings, name, exact[0])
