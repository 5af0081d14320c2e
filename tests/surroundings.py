"""What a Trainer, or a line somewhere in a script, may have switched on around a call."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _matmul(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


#: By what a user types, or calls.
SURROUNDINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "bf16-mixed": lambda: torch.autocast("cpu", torch.bfloat16),
    "16-mixed": lambda: torch.autocast("cpu", torch.float16),
    "bf16-true": lambda: _default_dtype(torch.bfloat16),
    "16-true": lambda: _default_dtype(torch.float16),
    "64-true": lambda: _default_dtype(torch.float64),
    "matmul_precision": lambda: _matmul("medium"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "deterministic": lambda: _deterministic(),
}


@contextmanager
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
