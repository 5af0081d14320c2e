"""The dictionary of all collapse metrics (``collapse_metrics.json``), from a measurement of one process or of many."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from lit_hass.errors import RunError
from lit_hass.features.kept_measures import (
    Kept,
    agreement_counts,
    agreement_values,
    class_entropies,
    exchanged,
    places,
    stream_entropies,
)
from lit_hass.features.reservoir import keeps_class
from lit_hass.features.scopes import SCOPES, STREAMS, ScopeResult, result_of, synced
from lit_hass.features.store import STREAM_SHARE
from lit_hass.memory_errors import is_out_of_memory
from lit_hass.metrics.accumulator import STATE_NAMES
from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.functional.equal_rows import EQUAL_ROWS
from lit_hass.metrics.functional.group_entropies import GroupedEntropy
from lit_hass.records import to_jsonable

if TYPE_CHECKING:
    from lit_hass.features.measurement import CollapseMeasurement

log = logging.getLogger(__name__)

_STORE_COUNTS = ("rows_added", "n_dropped_rows", "n_unsampled_rows")


class _Assembly:
    """One computation of the dictionary; collective where there are ranks."""

    def __init__(self, measurement: CollapseMeasurement, sync: bool, brief: bool) -> None:
        self.m, self.config = measurement, measurement.config
        alone = not (sync and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
        self.ranks = None if alone else Ranks()
        self.errors: list[dict[str, str]] = []
        self.sizes = EQUAL_ROWS[:1] if brief else EQUAL_ROWS
        self.device = torch.device(self.config.device)

    def guarded(self, name: str, action: Callable[[], Any], otherwise: Any) -> Any:
        """One family's failure leaves it null, named in ``errors``, and the others as they are.

        Collective: where it fails on one rank it is null on all of them, and where it is to end the run it ends all.

        Args:
            name: of the family.
            action: computes it, without collective calls.
            otherwise: the result where it fails.
        """
        failure: Exception | None = None
        result = otherwise
        try:
            result = action()
        except (ArithmeticError, MemoryError, RuntimeError) as error:
            if not (isinstance(error, ArithmeticError | torch.linalg.LinAlgError) or is_out_of_memory(error)):
                raise
            log.exception("%s could not be computed", name)
            # Without its traceback, which keeps every frame's tensors alive.
            failure = error.with_traceback(None)
        failed = failure is not None
        if self.ranks is not None:
            failed = bool(self.ranks.max(torch.tensor([int(failed)])))
        if not failed:
            return result
        if self.config.on_error == "raise":
            raise RunError(f"{name} could not be computed: {failure or 'another rank failed'}") from failure
        if failure is not None:
            message = str(failure).split("\n")[0]
            self.errors.append({"metric": name, "type": type(failure).__name__, "message": message})
        return otherwise

    def scope_results(self) -> dict[str, ScopeResult]:
        results = {}
        for scope in ("overall", *SCOPES):
            sums = self.m.overall() if scope == "overall" else self.m.sums.get(scope)
            if sums is None:
                results[scope] = ScopeResult()
                continue
            # Outside of the guard: inside of a collective nothing is swallowed.
            with synced(sums, self.ranks is not None):
                results[scope] = self.guarded(f"family/{scope}", partial(result_of, sums, self.config), ScopeResult())
            self._tell(scope, results[scope])
        return results

    def _tell(self, scope: str, result: ScopeResult) -> None:
        """Log what is undefined, once: a run looks many times. That a scope is empty stands in the result."""
        fresh = {name: why for name, why in result.undefined.items() if name not in self.m.told}
        if fresh and result.counts.get("n_rows"):
            self.m.told |= fresh.keys()
            why = "; ".join(sorted(set(fresh.values())))
            log.warning("collapse metrics, %s: undefined: %s (%s)", scope, ", ".join(fresh), why)

    def kept(self) -> Kept:
        mine = self.m.store.kept
        if self.ranks is None:
            return mine
        width = self.m.num_features
        return exchanged(mine, width, self.config.host_budget(width) // 4, self.ranks)

    def summed(self, table: Tensor) -> Tensor:
        return table if self.ranks is None else self.ranks.sum(table)

    def entropies(self, kept: Kept, scope: str, result: ScopeResult) -> GroupedEntropy | None:
        """Entropies of the kept rows of each eligible class, and the numbers of those rows as ``counts``."""
        if result.classes is None:
            return None
        chosen, ids = places(kept, scope)
        classes = result.classes.ids.cpu()
        empty = torch.full((len(classes), 3), math.nan, dtype=torch.float64)
        table = self.guarded(
            f"token_metrics/{scope}",
            lambda: class_entropies(kept, chosen, ids, classes, self.config.entropy, self.device),
            empty,
        )
        table = self.summed(table)
        defined = torch.where(table[:, 0] > 0, 1.0, math.nan)  # no rows, no entropy
        return GroupedEntropy(classes, table[:, 0].nan_to_num(0).long(), table[:, 1] * defined, table[:, 2] * defined)

    def agreement(self, kept: Kept, scope: str, result: ScopeResult) -> dict[str, float]:
        """NC4."""
        classes = result.classes
        if classes is None:
            return {}
        chosen, ids = places(kept, scope)
        vocabulary = self.config.nc4_classes == "vocab" and self.m.classifier is not None
        empty = torch.zeros(len(classes.ids), 6, dtype=torch.int64)

        def count() -> Tensor:
            weight = self._weight()
            rows = None if weight is None else weight[classes.ids.to(weight.device)].to(classes.ids.device)
            return agreement_counts(kept, chosen, ids, classes, rows, weight if vocabulary else None)

        counts = self.summed(self.guarded(f"nc4/{scope}", count, empty))
        return agreement_values(counts, classes.counts.cpu(), self.m.classifier is not None, vocabulary)

    def _weight(self) -> Tensor | None:
        held = self.m.classifier
        return None if held is None else (held if isinstance(held, Tensor) else held()).detach()

    def gathered(self, value: Any) -> list[Any]:
        if self.ranks is None:
            return [value]
        found: list[Any] = [None] * self.ranks.size
        dist.all_gather_object(found, value)
        return found

    def assemble(self) -> dict[str, Any]:
        results = self.scope_results()
        config = self.config
        by_row = config.compute_token_metrics or config.compute_class_metrics
        tokens: dict[str, GroupedEntropy] = {}
        if by_row:
            kept = self.kept()
            for scope, result in results.items():
                if config.compute_token_metrics:
                    found = self.entropies(kept, scope, result)
                    if found is not None:
                        tokens[scope] = found
                        self._add_token_values(result, found)
                if config.compute_class_metrics:
                    self._add_values(
                        result, self.agreement(kept, scope, result), "no rows of eligible classes are kept"
                    )
        counts = self._counts(results, kept if by_row else None)
        overall = results["overall"]
        return {
            "total_tokens": counts["rows_in_text"],
            "token_metrics": self._token_metrics(overall, tokens["overall"]) if "overall" in tokens else None,
            "overall_metrics": self._overall_metrics(overall.values),
            "chunk_metrics": self._chunk_metrics(chunks := self._chunks()),
            "states": self._states(overall),
            "equal_rows": self._equal_rows(overall),
            "family": {scope: result.values or None for scope, result in results.items()},
            "undefined": {scope: result.undefined for scope, result in results.items()},
            "spectra": self._by_scope_and_state(results, "spectra", []),
            "spectra_sums": self._by_scope_and_state(results, "squares", 0.0),
            "chunks": chunks,
            "counts": counts,
            "settings": config.as_dict(),
            "meta": {"schema_version": 2, "feature_dim": self.m.num_features, "timed": False},
            "errors": [error for errors in self.gathered(self.errors) for error in errors],
        }

    def _add_token_values(self, result: ScopeResult, found: GroupedEntropy) -> None:
        assert result.classes is not None
        true = GroupedEntropy(found.ids, result.classes.counts.cpu(), found.entropies, found.normalized).summary()
        names = {"mean": "mean", "std": "std", "weighted_mean": "weighted_mean", "normalized_mean": "normalized_mean"}
        values = {f"svd_entropy/token_{name}": true[key] for name, key in names.items()}
        self._add_values(result, values, f"no class has {self.config.min_samples_per_token} rows and an entropy")

    @staticmethod
    def _add_values(result: ScopeResult, values: dict[str, float], reason: str) -> None:
        result.values |= values
        result.undefined |= {name: reason for name, value in values.items() if math.isnan(value)}

    def _token_metrics(self, result: ScopeResult, found: GroupedEntropy) -> dict[str, dict[str, Any]]:
        assert result.classes is not None
        columns = (found.ids, result.classes.counts.cpu(), found.counts, found.entropies, found.normalized)
        name = self.m.token_name
        return {
            str(token): {
                "svd_entropy": value,
                "num_samples": count,
                "normalized_entropy": normal,
                "sampled": sampled,
                "token": None if name is None else name(token),
            }
            for token, count, sampled, value, normal in zip(*(c.tolist() for c in columns), strict=True)
        }

    def _overall_metrics(self, values: dict[str, float]) -> dict[str, float | None]:
        config = self.config
        return {
            "svd_entropy": values.get("svd_entropy/overall") if config.compute_overall_metrics else None,
            "gnc2": values.get(f"gnc2/{config.gnc2_reduction}"),
            "unc3": values.get(f"unc3/{config.unc3_reduction}"),
        }

    def _states(self, overall: ScopeResult) -> dict[str, dict[str, Any]] | None:
        if not self.config.compute_overall_metrics:
            return None
        nothing = {"rows": 0, "svd_entropy": math.nan, "normalized_entropy": math.nan}
        return {name: overall.states.get(name, dict(nothing)) for name in STATE_NAMES}

    def _equal_rows(self, overall: ScopeResult) -> dict[str, dict[str, dict[str, float]]] | None:
        """Entropies of equally many rows of each stream, by stream and number of rows."""
        if not self.config.compute_overall_metrics:
            return None
        kept: Kept = self.m.store.streams
        if self.ranks is not None:
            width = self.m.num_features
            kept = exchanged(kept, width, self.config.host_budget(width) // STREAM_SHARE, self.ranks)
        empty = torch.zeros(len(STREAMS), len(self.sizes), 5, dtype=torch.float64)
        table = self.summed(
            self.guarded(
                "equal_rows",
                lambda: stream_entropies(kept, len(STREAMS), self.sizes, self.config.entropy, self.device),
                empty,
            )
        )
        if not all(self.gathered(self.m.store.streams_whole)):
            overall.undefined["equal_rows"] = "an earlier version began the run, which kept no rows by state"
            table = empty
        keys = ("svd_entropy", "low", "high")
        return {
            name: {
                str(rows): dict(zip(keys, found, strict=True))
                | {f"normalized_{key}": value / bound for key, value in zip(("entropy", *keys[1:]), found, strict=True)}
                for rows, (some, *found, bound) in zip(self.sizes, sizes, strict=True)
                if some
            }
            for name, sizes in zip(STREAMS, table.tolist(), strict=True)
        }

    def _by_scope_and_state(self, results: dict[str, ScopeResult], name: str, nothing: Any) -> dict[str, Any] | None:
        if not self.config.compute_overall_metrics:
            return None
        # The scope "prompt" and the state "prompt" are the same rows.
        by_state = {state: values for state, values in getattr(results["overall"], name).items() if state}
        return by_state | {scope: getattr(result, name).get("", nothing) for scope, result in results.items()}

    def _chunks(self) -> list[dict[str, Any]]:
        found = [chunk for chunks in self.gathered(self.m.chunks) for chunk in chunks]
        return sorted(found, key=lambda chunk: tuple((isinstance(x, str), x) for x in list(chunk.values())[:3]))

    def _chunk_metrics(self, chunks: list[dict[str, Any]]) -> dict[str, Any] | None:
        """The original's keys: per chunk the mean over sequences, and mean and population std of those means."""
        number = self.config.chunks
        if not (self.config.compute_overall_metrics and number):
            return None
        rows = [[math.nan if x is None else x for x in chunk["entropies"]] for chunk in chunks if chunk["entropies"]]
        table = torch.tensor(rows, dtype=torch.float64).view(len(rows), number)
        means = table.nanmean(0)
        some = bool(means.isfinite().any())
        return {
            "num_chunks": number,
            "chunk_svd_entropies": means.tolist(),
            "avg_svd_entropy": float(means.nanmean()) if some else math.nan,
            "std_svd_entropy": float(means[means.isfinite()].std(correction=0)) if some else math.nan,
        }

    def _counts(self, results: dict[str, ScopeResult], kept: Kept | None) -> dict[str, Any]:
        store = self.m.store
        mine = {**self.m.counts, **{name: getattr(store, name) for name in _STORE_COUNTS}}
        everyone = self.gathered((mine, store.kept.spill_disabled, store.reproducible))
        counts: dict[str, Any] = {name: sum(each[0][name] for each in everyone) for name in mine}
        counts["rows_in_statistics"] = results["overall"].counts.get("n_rows", 0)
        counts |= {name: value for name, value in results["overall"].counts.items() if name != "n_rows"}
        counts.setdefault("rows_in_text", 0)
        counts["n_rejected"] = counts["rows_in_statistics"] - counts["rows_in_text"]
        counts["n_kept_cap"] = None if kept is None else kept.cap
        classes = results["overall"].classes
        if kept is not None and classes is not None:
            counts["classes_left_out"] = int((~keeps_class(classes.ids.cpu(), kept.halvings)).sum())
            self._tell_left_out(counts["classes_left_out"], len(classes.ids))
        counts["spill_disabled"] = next((reason for _, reason, _ in everyone if reason), None)
        counts["reservoir_reproducible"] = all(each[2] for each in everyone)
        return counts

    def _tell_left_out(self, left_out: int, eligible: int) -> None:
        """Log once that the sample has no room for some classes."""
        if left_out and "classes_left_out" not in self.m.told:
            self.m.told.add("classes_left_out")
            log.warning(
                "token entropies and NC4 leave out %d of %d classes: there is no room for two rows of each; raise "
                "collapse.host_bytes (now %d)",
                left_out, eligible, self.config.host_budget(self.m.num_features),
            )  # fmt: skip


def collapse_metrics(measurement: CollapseMeasurement, sync: bool, brief: bool) -> dict[str, Any]:
    """See `CollapseMeasurement.get_collapse_metrics`."""
    return to_jsonable(_Assembly(measurement, sync, brief).assemble())
