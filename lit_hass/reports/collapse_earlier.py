"""Metrics that an earlier version wrote, as this one would: other names, and no number that it got wrong."""

from __future__ import annotations

from typing import Any

#: Of ``collapse_metrics.json``. 1 had one prefix for raw and centred ranks, took entropies of centred rows over log
#: min(n, d), which they cannot reach, and gave classes of which one row was kept the entropy 0.
METRICS_VERSION = 2
_RAW = ("effective_rank", "rankme")
_CENTRED = (
    "effective_dimensions", "participation_ratio", "stable_rank", "matrix_entropy_1", "matrix_entropy_2",
    "matrix_entropy_inf", "alpha_req",
)  # fmt: skip
_NAMES = {
    f"rank/{name}": f"rank/{kind}/{name}" for kind, names in (("raw", _RAW), ("centred", _CENTRED)) for name in names
}
_SHARES = ("svd_entropy/normalized", "svd_entropy/token_normalized_mean")
_UNREACHABLE = "an earlier version took it over a bound that centred rows cannot reach"
_ONE_ROW = "an earlier version kept one row of a token, and gave its entropy as 0"


def up_to_date(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return metrics with the names of this version; numbers that were wrong are None, with a reason.

    Args:
        metrics: of the shape that `check_shape` asks for; not changed.
    """
    if (metrics.get("meta") or {}).get("schema_version", 1) >= METRICS_VERSION:
        return metrics
    found = dict(metrics)
    for key in ("family", "undefined"):
        if found.get(key):
            found[key] = {
                scope: values and {_NAMES.get(name, name): value for name, value in values.items()}
                for scope, values in found[key].items()
            }
    if (metrics.get("settings") or {}).get("svd_variant") == "b":
        _without(found, _SHARES, _UNREACHABLE)
        for key in ("token_metrics", "states"):
            if found.get(key):
                found[key] = {name: _less(each, "normalized_entropy") for name, each in found[key].items()}
        if found.get("chunks"):
            found["chunks"] = [
                {**each, "normalized": [None for _ in each.get("normalized") or []]} for each in found["chunks"]
            ]
    tokens = found.get("token_metrics") or {}
    alone = {name for name, each in tokens.items() if each.get("sampled", each["num_samples"]) < 2}
    if alone:
        keys = ("svd_entropy", "normalized_entropy")
        found["token_metrics"] = {name: _less(each, *keys) if name in alone else each for name, each in tokens.items()}
        names = [f"svd_entropy/token_{key}" for key in ("mean", "std", "weighted_mean", "normalized_mean")]
        _without(found, names, _ONE_ROW)
    if found.get("states"):
        found["states"] = {
            name: _less(each, "svd_entropy") if each and (each.get("rows") or 0) < 2 else each
            for name, each in found["states"].items()
        }
    return found


def _less(values: dict[str, Any] | None, *keys: str) -> dict[str, Any] | None:
    return values and {**values, **dict.fromkeys(values.keys() & set(keys))}


def _without(metrics: dict[str, Any], names: Any, reason: str) -> None:
    """Take values out of every scope that has them, and say why."""
    family, undefined = metrics.get("family") or {}, dict(metrics.get("undefined") or {})
    for scope, values in family.items():
        gone = [name for name in names if (values or {}).get(name) is not None]
        if gone:
            family = {**family, scope: _less(values, *gone)}
            undefined[scope] = {**(undefined.get(scope) or {}), **dict.fromkeys(gone, reason)}
    if family:
        metrics["family"], metrics["undefined"] = family, undefined
