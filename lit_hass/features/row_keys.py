"""Priorities of rows that depend on the data alone, so that any split of a run keeps the same sample.

A row's key is a hash of which sequence it belongs to and where it stands in it (splitmix64, Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014). The rows with the smallest keys of each class are a uniform
sample of it, and the smallest of a union are among the smallest of its parts.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

#: Positions of one item have keys of their own up to here.
POSITIONS = 2**20


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_GAMMA, _MIX1, _MIX2 = (_signed(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def splitmix64(values: Tensor) -> Tensor:
    """Hash int64 numbers to int64 numbers, one to one; arithmetic wraps."""
    z = values + _GAMMA
    z = (z ^ _shifted(z, 30)) * _MIX1
    z = (z ^ _shifted(z, 27)) * _MIX2
    return z ^ _shifted(z, 31)


def hashed(values: Tensor) -> Tensor:
    """Hash int64 numbers to such in [0, 2^63)."""
    return _shifted(splitmix64(values), 1)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """A logical shift to the right: int64 has an arithmetic one only."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def item_number(*name: object) -> int:
    """A number in [0, 2^43) for a named item, such as a question's id, a choice and a turn."""
    return int.from_bytes(hashlib.sha256(repr(name).encode()).digest()[:8], "big") >> 21


def row_keys(item: int, start: int, count: int, salt: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Return the keys of consecutive rows of an item.

    Args:
        item: in [0, 2^43), see :func:`item_number`.
        start: position of the first row in the item.
        count: how many.
        salt: another salt is another sample.
        device: of the result.

    Returns:
        ``[count]`` int64, not negative.
    """
    positions = torch.arange(start, start + count, dtype=torch.int64, device=device)
    mixed = splitmix64(torch.tensor([_signed(salt % 2**64)], dtype=torch.int64, device=device))
    return hashed((item * POSITIONS + positions) ^ mixed)
