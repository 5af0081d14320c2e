"""The few collective calls by which metrics merge: sums and maxima in place, and rows passed from rank to rank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_hass.errors import RunError

# Bytes of one all_reduce: a table of gigabytes must not need its size again as a buffer.
_PART_BYTES = 2**28


class Ranks:
    """The processes of a group.

    Every method is collective: all ranks call the same ones in the same order, with tensors of equal shape and dtype.

    Args:
        group: a process group; None is all processes.
    """

    def __init__(self, group: Any = None) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        # NCCL moves nothing that lies in host memory, where a callback may keep its sums.
        self._device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(group) == "nccl" else None

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by the sum over ranks; returns it."""
        return self._reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous tensor by the maximum over ranks; returns it."""
        return self._reduce(tensor, dist.ReduceOp.MAX)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all ranks in rank order."""
        moved = self._moved(tensor)
        found = [torch.empty_like(moved) for _ in range(self.size)]
        dist.all_gather(found, moved, group=self.group)
        return [x.to(tensor.device) for x in found]

    def broadcast(self, tensor: Tensor, source: int) -> Tensor:
        """Overwrite a contiguous tensor of any dtype by that of rank ``source`` of the group; returns it."""
        raw = tensor.view(torch.uint8)  # not every backend knows bfloat16
        moved = self._moved(raw)
        origin = source if self.group is None else dist.get_global_rank(self.group, source)
        dist.broadcast(moved, origin, group=self.group)
        if moved is not raw:
            raw.copy_(moved)
        return tensor

    @contextmanager
    def together(self, device: torch.device) -> Iterator[None]:
        """Do something without collective calls that may fail; if it does on one rank, no rank goes on.

        Raises:
            RunError: it failed on another rank. On its own rank the error itself is raised.
        """
        failed = torch.ones(1, dtype=torch.int32, device=device)
        try:
            yield
            failed.zero_()
        finally:
            self.max(failed)
        if failed:
            raise RunError("another rank failed while metrics were merged")

    def _moved(self, tensor: Tensor) -> Tensor:
        return tensor if self._device is None else tensor.to(self._device)

    def _reduce(self, tensor: Tensor, operation: Any) -> Tensor:
        flat = tensor.view(-1)
        size = max(1, _PART_BYTES // tensor.element_size())
        for start in range(0, flat.numel(), size):
            part = flat[start : start + size]
            moved = self._moved(part)
            dist.all_reduce(moved, operation, group=self.group)
            if moved is not part:
                part.copy_(moved)
        return tensor
