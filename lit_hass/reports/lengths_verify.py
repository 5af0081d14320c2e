"""One batch of the worst case, really run, and the memory it took."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.decoding.lean import LeanForward
from lit_hass.models import load_base
from lit_hass.models.memory_estimate import ModelSizes, estimate_memory
from lit_hass.modules.out_of_memory import is_out_of_memory
from lit_hass.reports.lengths_recommendation import show_bytes

log = logging.getLogger(__name__)

#: What torch's profiler says of itself: that it starts and ends, and that the weights were there before it.
_CHATTER = (b"SyncActivityProfilerHandler", b"Memory block of unknown size was allocated before the profiling started")


@dataclass(frozen=True)
class Trial:
    """What one batch took.

    Attributes:
        batch: rows that ran; 0 where not even one did.
        failed: larger batches that ran out of memory, largest first.
        measured: bytes of tensors at the worst moment.
        predicted: the same by formula.
        device: where it ran.
    """

    batch: int
    failed: tuple[int, ...]
    measured: int
    predicted: int
    device: str

    def text(self) -> str:
        """For people."""
        out = f"batches of {', '.join(map(str, self.failed))} ran out of memory; " if self.failed else ""
        if not self.batch:
            return f"verified on {self.device}: {out}not even one row runs"
        share = self.measured / self.predicted
        return (
            f"verified on {self.device}: {out}a batch of {self.batch} took {show_bytes(self.measured)}, "
            f"{show_bytes(self.predicted)} by formula ({share:.0%})"
        )


def run_worst_case(base: str, dtype: str, batch: int, prompt: int, answer: int) -> Trial:
    """Answer a batch of random prompts of full length with answers of full length, as ``predict`` would.

    On CUDA the allocator tells the peak; on a CPU the profiler adds up what is allocated and freed, and the weights are
    added to that. A batch that runs out of memory is halved, and said so.

    Args:
        base: folder, hub id or shipped name.
        dtype: as for ``load_base``.
        batch: rows.
        prompt: tokens of each prompt.
        answer: new tokens of each; no token ends one.

    Raises:
        UserError: the base cannot be loaded.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    model = load_base(base, dtype=dtype, device=device)
    decoder = AutoregressiveDecoder(model)
    element = model.dtype.itemsize
    sizes = ModelSizes.of(model.config, isinstance(decoder.forward, LeanForward))
    failed: list[int] = []
    while batch:
        draw = torch.Generator().manual_seed(0)
        ids = list(torch.randint(0, decoder.forward.embedding_size, (batch, prompt), generator=draw))
        try:
            measured = peak_bytes(lambda rows=ids: decoder.generate(rows, answer), device)  # type: ignore[misc]
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.warning("a batch of %d ran out of memory", batch)
            failed.append(batch)
            batch //= 2
            continue
        estimate = estimate_memory(sizes, batch, prompt, answer, element, not cuda)
        if not cuda:  # the profiler sees what is allocated from now on
            measured += estimate.weights + estimate.copies
        return Trial(batch, tuple(failed), measured, estimate.total, device.type)
    return Trial(0, tuple(failed), 0, 0, device.type)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes: on CUDA of everything on the device at the worst moment, else of what ``run`` allocates."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        run()
        return torch.cuda.max_memory_allocated(device)
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with _without_chatter(), torch.profiler.profile(activities=kinds, profile_memory=True) as profile:
        run()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


@contextmanager
def _without_chatter() -> Iterator[None]:
    """Drop the lines that the profiler itself writes to the standard error, past Python; all others are passed on."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        real = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(real, 2)
            os.close(real)
            said.seek(0)
            for line in said:
                if not any(word in line for word in _CHATTER):
                    os.write(2, line)
