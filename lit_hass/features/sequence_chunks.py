"""The entropies along one sequence, as plain values."""

from __future__ import annotations

import math
from typing import Any

import torch

from lit_hass.features.config import CollapseConfig
from lit_hass.features.sequences import PROMPT, FeatureSequence
from lit_hass.metrics.functional.group_entropies import chunk_entropies


def sequence_chunks(sequence: FeatureSequence, config: CollapseConfig) -> dict[str, Any]:
    """Return the entropies of a sequence's stretches, by ``chunks``, ``chunk_rule`` and ``chunk_rows``.

    Rows with a number that is not finite are left out; special tokens are part of it.

    Returns:
        The sequence's name (``question_id``, ``choice``, ``turn``), the number of rows as ``length``, ``entropies`` and
        ``normalized`` by stretch, ``first_minus_last``, and ``pattern``; None where undefined.
    """
    rows, mine = sequence.features, sequence.states != PROMPT
    if config.chunk_rows == "prompt":
        rows = rows[~mine]
    elif config.chunk_rows == "answer" or (config.chunk_rows == "auto" and bool(mine.any())):
        rows = rows[mine]
    if config.storage_dtype != "auto":  # a journal stores them before they come here, a run without one does not
        rows = rows.to(getattr(torch, config.storage_dtype))
    rows = rows[torch.isfinite(rows).all(1)].to(config.device)
    found = chunk_entropies(rows, config.chunks, config.chunk_rule, **config.entropy)
    names = dict(zip(("question_id", "choice", "turn"), (*sequence.name, None, None, None), strict=False))
    return {
        **names,
        "length": len(rows),
        "entropies": [_no_nan(value) for value in found.entropies],
        "normalized": [_no_nan(value) for value in found.normalized],
        "first_minus_last": _no_nan(found.first_minus_last),
        "pattern": found.pattern,
    }


def _no_nan(value: float) -> float | None:
    """NaN as None."""
    return None if math.isnan(value) else value
