"""What a metrics file must look like, so that a broken one is refused by name and not by a traceback."""

from __future__ import annotations

import re
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.shapes import ALL, AMOUNT, ANY, COUNT, NUMBER, TEXT, misfit
from lit_hass.terminal import shorten

#: Key -> what stands there; a list of one shape, an object of named keys (`ALL`: of any), or a leaf. null may stand
#: everywhere: what was not measured.
_SHAPE: dict[str, Any] = {
    "total_tokens": COUNT,
    "token_metrics": {
        ALL: {"svd_entropy": NUMBER, "num_samples": COUNT, "normalized_entropy": NUMBER, "sampled": AMOUNT}
    },
    "overall_metrics": {ALL: NUMBER},
    "chunk_metrics": {
        "num_chunks": NUMBER, "chunk_svd_entropies": [NUMBER], "avg_svd_entropy": NUMBER, "std_svd_entropy": NUMBER,
    },
    "states": {ALL: {ALL: NUMBER}},
    "equal_rows": {ALL: {ALL: {ALL: NUMBER}}},
    "family": {ALL: {ALL: NUMBER}},
    "undefined": {ALL: {ALL: TEXT}},
    "spectra": {ALL: [NUMBER]},
    "spectra_sums": {ALL: NUMBER},
    "chunks": [
        {
            "length": COUNT, "entropies": [NUMBER], "normalized": [NUMBER], "first_minus_last": NUMBER,
            "pattern": TEXT,
        }
    ],
    "counts": {ALL: ANY},
    "settings": {ALL: ANY},
    "meta": {ALL: ANY},
    "errors": [{ALL: ANY}],
}  # fmt: skip


def check_shape(metrics: Any) -> None:
    """Refuse what is no metrics dict.

    Args:
        metrics: plain JSON types, as `get_collapse_metrics` returns or as they were read back; of the original scripts'
            files too.

    Raises:
        UserError: a key is missing or holds something else; names it.
    """
    if not isinstance(metrics, dict) or metrics.get("total_tokens") is None:
        raise UserError("these are no collapse metrics: total_tokens is missing")
    if fault := misfit(metrics, _SHAPE):
        raise UserError(f"these are no collapse metrics: {fault}")
    for key, token in (metrics.get("token_metrics") or {}).items():
        if not re.fullmatch(r"-?[0-9]{1,18}", key):
            named = shorten(key, 40)
            raise UserError(f"these are no collapse metrics: token_metrics has the key {named!r}, not a token id")
        if not isinstance(token, dict) or not isinstance(token.get("num_samples"), int):
            raise UserError(f"these are no collapse metrics: token_metrics.{key} has no num_samples")
