"""What collapse metrics say of a run: the original analyzer's report, and the rest of the family beside it."""

from __future__ import annotations

import math
import os
from typing import Any

from lit_hass.records import to_jsonable, write_json
from lit_hass.reports.collapse_chunks import analyze_chunks, analyze_sequence
from lit_hass.reports.collapse_earlier import up_to_date
from lit_hass.reports.collapse_shape import check_shape

#: Of ``collapse_report.json``.
SCHEMA_VERSION = 2
#: The groups of the neural-collapse family; the rest of a scope's values are entropies, ranks and similarities.
_CLASS_GROUPS = ("gnc2", "unc3", "nc1", "nc2", "nc3", "nc4")
#: The chief numbers, and the setting that each of them is measured by.
_SWITCHES = {
    "svd_entropy": "compute_overall_metrics", "gnc2": "compute_class_metrics", "unc3": "compute_class_metrics",
}  # fmt: skip
_STATES = ("prompt", "accepted", "rejected", "bonus", "baseline")


class CollapseAnalyzer:
    """Summarise collapse metrics and write the report.

    Args:
        config: settings with ``compute_token_metrics``, ``compute_overall_metrics`` and ``compute_class_metrics``, such
            as a `CollapseConfig`; what they switch off is null in the analysis. None takes what the metrics hold.

    Example:
        >>> analyzer = CollapseAnalyzer()
        >>> tokens = {"7": {"svd_entropy": 1.0, "num_samples": 4}, "9": {"svd_entropy": 2.0, "num_samples": 2}}
        >>> analysis = analyzer.analyze_collapse_metrics({"total_tokens": 8, "token_metrics": tokens})
        >>> analysis["summary"]["avg_svd_entropy"]
        1.5
    """

    def __init__(self, config: object | None = None) -> None:
        """See the class."""
        self.config = config

    def analyze_collapse_metrics(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Analyse metrics as `get_collapse_metrics` returns them, or as they were read back from their file.

        Metrics of the original scripts, which have ``total_tokens`` and the four families ``*_metrics`` only, will do,
        and so will those of earlier versions (see `up_to_date`).

        Returns:
            The original's keys, exactly: ``summary`` (``total_tokens_analyzed, tokens_with_metrics, avg_svd_entropy,
            std_svd_entropy, avg_samples_per_token, min_samples, max_samples``: unweighted mean and population standard
            deviation over the tokens whose entropy is defined), ``token_analysis``, ``overall_analysis``
            (``overall_svd_entropy, overall_gnc2, overall_unc3``) and ``chunk_analysis`` (see `analyze_chunks`). Beside
            them ``class_metrics``, ``scopes``, ``spectra``, ``chunks``, ``diagnostics``, ``undefined``, ``errors`` and
            ``meta``. What is undefined or was switched off is None; ``undefined`` says why.

        Raises:
            UserError: these are no collapse metrics.
        """
        metrics = to_jsonable(metrics)
        check_shape(metrics)
        metrics = up_to_date(metrics)
        tokens = self._family(metrics, "compute_token_metrics", "token_metrics")
        overall = metrics.get("overall_metrics") or {}
        entropies = (self._family(metrics, "compute_overall_metrics", "family") or {}).get("overall")
        scopes: dict[str, Any] = self._family(metrics, "compute_class_metrics", "family") or {}
        sequences = [analyze_sequence(sequence) for sequence in metrics.get("chunks") or []]
        counts = metrics.get("counts") or {}
        values = scopes.get("overall")
        return {
            "summary": _summary(metrics.get("total_tokens", 0), tokens),
            "token_analysis": None if tokens is None else {key: tokens[key] for key in sorted(tokens, key=int)},
            "overall_analysis": {
                f"overall_{key}": overall.get(key) if getattr(self.config, switch, True) else None
                for key, switch in _SWITCHES.items()
            },
            "chunk_analysis": analyze_chunks(metrics.get("chunk_metrics"), sequences),
            "class_metrics": _class_metrics(values, counts),
            "scopes": {name: _class_metrics(found, {}) for name, found in scopes.items() if name != "overall"},
            "spectra": {
                "overall": _groups(entropies, ("svd_entropy", "rank", "anisotropy")) if entropies else None,
                "states": {name: (metrics.get("states") or {}).get(name) for name in _STATES},
                "equal_rows": metrics.get("equal_rows"),
                "cka": _groups((scopes.get("answer") or {}), ("cka",)).get("cka"),
            },
            "chunks": sequences,
            "diagnostics": counts,
            "undefined": metrics.get("undefined") or {},
            "errors": metrics.get("errors") or [],
            "meta": {
                **(metrics.get("meta") or {}),
                "schema_version": SCHEMA_VERSION,
                "config": metrics.get("settings") or {},
            },
        }

    def save_analysis(self, analysis: dict[str, Any], output_file: str | os.PathLike[str]) -> None:
        """Write an analysis as JSON, atomically; parent folders are made.

        Raises:
            UserError: the folder cannot be written to.
            RunError: the disk is full or failed.
        """
        write_json(output_file, analysis)

    def generate_report(self, metrics: dict[str, Any], output_file: str | os.PathLike[str]) -> dict[str, Any]:
        """Analyse metrics, write the analysis, and return it; see the methods for the arguments and what they raise."""
        analysis = self.analyze_collapse_metrics(metrics)
        self.save_analysis(analysis, output_file)
        return analysis

    def _family(self, metrics: dict[str, Any], switch: str, key: str) -> dict[str, Any] | None:
        return metrics.get(key) if getattr(self.config, switch, True) else None


def _summary(total: int, tokens: dict[str, Any] | None) -> dict[str, Any]:
    defined = [t for t in (tokens or {}).values() if t.get("svd_entropy") is not None]
    entropies, samples = [t["svd_entropy"] for t in defined], [t["num_samples"] for t in defined]
    n = len(defined)
    mean = math.fsum(entropies) / n if n else None
    return {
        "total_tokens_analyzed": total,
        "tokens_with_metrics": None if tokens is None else n,
        "avg_svd_entropy": mean,
        "std_svd_entropy": None if mean is None else math.sqrt(math.fsum((e - mean) ** 2 for e in entropies) / n),
        "avg_samples_per_token": sum(samples) / n if n else None,
        "min_samples": min(samples, default=None),
        "max_samples": max(samples, default=None),
    }


def _class_metrics(values: dict[str, Any] | None, counts: dict[str, Any]) -> dict[str, Any]:
    """The family by group; null for a group that was not measured."""
    found: dict[str, Any] = {name: None for name in _CLASS_GROUPS} | _groups(values or {}, _CLASS_GROUPS)
    eligible, skipped = counts.get("classes_eligible"), counts.get("n_duplicate_pairs")
    if found["gnc2"] is not None and eligible is not None and skipped is not None:
        usable = eligible - counts.get("n_zero_mean", 0)
        found["gnc2"] |= {"pairs": usable * (usable - 1) // 2 - skipped, "skipped": skipped}
    return found


def _groups(values: dict[str, Any], wanted: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """``{"gnc2/mean": x}`` as ``{"gnc2": {"mean": x}}``."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        group, _, rest = name.partition("/")
        if group in wanted:
            found.setdefault(group, {})[rest] = value
    return found
