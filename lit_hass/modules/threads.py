"""How many CPU threads a model deserves."""

from __future__ import annotations

import logging
import os

import torch
from transformers import PreTrainedModel

log = logging.getLogger(__name__)

#: Models with fewer parameters gain next to nothing from a second thread, and lose much on cores that are busy.
_SMALL = 20_000_000


def choose_threads(model: PreTrainedModel) -> None:
    """Let a small model on a CPU run on one thread, unless ``OMP_NUM_THREADS`` says how many.

    Its products take microseconds, and threads that wait for each other on a core that something else uses take
    milliseconds: the shipped base decodes nearly as fast on one thread as on two where the machine is idle, and more
    than ten times as fast where it is busy.
    """
    if model.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ or torch.get_num_threads() == 1:
        return
    if sum(parameter.numel() for parameter in model.parameters()) < _SMALL:
        torch.set_num_threads(1)
        log.info("decoding a small model on one thread (OMP_NUM_THREADS sets another number)")
