"""What a run's ``statistics.json`` must look like to be shown or compared. Standard library only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.shapes import ALL, AMOUNT, ANY, COUNT, SHARE, misfit

_SHAPE = {
    "questions": {"answered": COUNT, "total": COUNT},
    "exact_match": {"share": SHARE, "matched": COUNT},
    "new_tokens": {"total": COUNT},
    "tokens_per_second": {"end_to_end": AMOUNT, "decode_only": AMOUNT},
    "acceptance": {"micro": AMOUNT, "nodes_per_step": AMOUNT},
    "devices": COUNT,
    "environment": {"packages": {ALL: ANY}},
}


def check_statistics(path: Path, statistics: dict[str, Any]) -> None:
    """Refuse statistics that no run can have, such as an exact match of 700 %.

    Raises:
        UserError: names the file and the value.
    """
    if fault := misfit(statistics, _SHAPE):
        raise UserError(f"{path}: {fault}")
