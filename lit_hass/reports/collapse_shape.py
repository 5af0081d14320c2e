"""What a metrics file must look like, so that a broken one is refused by name and not by a traceback."""

from __future__ import annotations

from typing import Any

from lit_hass.errors import UserError

#: Leaves.
_NUMBER, _TEXT, _ANY = "number", "text", "anything"
_ALL = "*"
#: Key -> what stands there; a list of one shape, an object of named keys (`_ALL`: of any), or a leaf. null may stand
#: everywhere: what was not measured.
_SHAPE: dict[str, Any] = {
    "total_tokens": _NUMBER,
    "token_metrics": {
        _ALL: {"svd_entropy": _NUMBER, "num_samples": _NUMBER, "normalized_entropy": _NUMBER, "sampled": _NUMBER}
    },
    "overall_metrics": {_ALL: _NUMBER},
    "chunk_metrics": {
        "num_chunks": _NUMBER, "chunk_svd_entropies": [_NUMBER], "avg_svd_entropy": _NUMBER, "std_svd_entropy": _NUMBER,
    },
    "states": {_ALL: {_ALL: _NUMBER}},
    "equal_rows": {_ALL: {_ALL: {_ALL: _NUMBER}}},
    "family": {_ALL: {_ALL: _NUMBER}},
    "undefined": {_ALL: {_ALL: _TEXT}},
    "spectra": {_ALL: [_NUMBER]},
    "spectra_sums": {_ALL: _NUMBER},
    "chunks": [
        {
            "length": _NUMBER, "entropies": [_NUMBER], "normalized": [_NUMBER], "first_minus_last": _NUMBER,
            "pattern": _TEXT,
        }
    ],
    "counts": {_ALL: _ANY},
    "settings": {_ALL: _ANY},
    "meta": {_ALL: _ANY},
    "errors": [{_ALL: _ANY}],
}  # fmt: skip


def check_shape(metrics: Any) -> None:
    """Refuse what is no metrics dict.

    Args:
        metrics: plain JSON types, as `get_collapse_metrics` returns or as they were read back; of the original scripts'
            files too.

    Raises:
        UserError: a key is missing or holds something else; names it.
    """
    if not isinstance(metrics, dict) or not isinstance(metrics.get("total_tokens"), int):
        raise UserError("these are no collapse metrics: total_tokens is missing")
    _check(metrics, _SHAPE, "")
    for key, token in (metrics.get("token_metrics") or {}).items():
        if not key.lstrip("-").isdigit():
            raise UserError(f"these are no collapse metrics: token_metrics has the key {key!r}, not a token id")
        if not isinstance(token, dict) or not isinstance(token.get("num_samples"), int):
            raise UserError(f"these are no collapse metrics: token_metrics.{key} has no num_samples")


def _check(value: Any, shape: Any, where: str) -> None:
    if value is None:
        return
    wanted = "an object" if isinstance(shape, dict) else "a list" if isinstance(shape, list) else str(shape)
    if not isinstance(value, _KINDS[wanted]):
        raise UserError(f"these are no collapse metrics: {where} is a {type(value).__name__}, not {wanted}")
    if isinstance(shape, dict):
        for key, found in value.items():
            if (inner := shape.get(key, shape.get(_ALL))) is not None:
                _check(found, inner, f"{where}.{key}".lstrip("."))
    elif isinstance(shape, list):
        for i, found in enumerate(value):
            _check(found, shape[0], f"{where}[{i}]")


_KINDS: dict[str, Any] = {
    "an object": dict, "a list": list, _NUMBER: (int, float), _TEXT: str, _ANY: object,
}  # fmt: skip
