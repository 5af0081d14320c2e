"""The accumulators of a measurement, one for the prompts' rows and one for the answers', and what each of them says."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lit_hass.errors import RunError
from lit_hass.features.config import CollapseConfig
from lit_hass.features.other_layers import unread_values
from lit_hass.features.rows import RowBlock
from lit_hass.features.sequences import PROMPT, REJECTED
from lit_hass.memory_errors import is_out_of_memory
from lit_hass.metrics import ClassStatistics, CollapseMetrics
from lit_hass.metrics.accumulator import STATE_NAMES
from lit_hass.metrics.class_table import Classes
from lit_hass.metrics.classifier_rows import Classifier
from lit_hass.metrics.functional.spectrum import bounded_entropy, spectrum_summary

#: Accumulators; the union of both is "overall".
SCOPES = ("prompt", "answer")
#: Rows whose entropies stand side by side: of each state, and of the text's answers.
STREAMS = (*STATE_NAMES, "answer")
# Eigenvalues that are told.
_MOST_EIGENVALUES = 512

Sums = CollapseMetrics | ClassStatistics


@dataclass
class ScopeResult:
    """What an accumulator says.

    Attributes:
        values: by the names of `CollapseMetrics.compute`; NaN where undefined.
        undefined: a reason for each of those.
        counts: rows and classes.
        classes: the eligible ones; None where classes are not kept.
        states: rows and entropies by state.
        spectra: eigenvalues of the raw Gram matrix, of all rows (name ``""``) and by state: the largest ones.
        squares: the sums of all of them, by the same names.
    """

    values: dict[str, float] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    classes: Classes | None = None
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    spectra: dict[str, list[float]] = field(default_factory=dict)
    squares: dict[str, float] = field(default_factory=dict)


def new_sums(
    num_features: int,
    config: CollapseConfig,
    classifier: Classifier | None,
    special: Collection[int],
    num_classes: int | None,
    paired: bool,
) -> Sums | None:
    """Make an accumulator that keeps what the settings ask for and nothing else; None if they ask for nothing."""
    common: dict[str, Any] = {
        "ignore_ids": special,
        "min_samples": config.min_samples_per_token,
        "num_classes": num_classes,
        "nan_strategy": config.nan_strategy,
        "sync_on_compute": False,
    }
    sums: Sums
    if config.compute_class_metrics:
        sums = CollapseMetrics(
            num_features,
            classifier,
            num_paired_features=num_features if paired else None,
            cdnv_exponent=config.cdnv_exponent,
            duplicates=config.duplicates,
            correction=config.correction,
            max_classes=config.max_tokens_to_analyze,
            **config.entropy,
            **common,
        )
    elif config.compute_overall_metrics or config.compute_token_metrics:
        gram, table = config.compute_overall_metrics, config.compute_token_metrics
        sums = ClassStatistics(num_features, gram=gram, class_table=table, **common)
    else:
        return None
    return sums.to(config.device)


def add_rows(sums: Sums, block: RowBlock) -> None:
    """Add rows, all of them or none.

    Raises:
        RunError: memory gave out when a part of the sums was changed already.
        ValueError: see `CollapseMetrics.update`.
        MemoryError, RuntimeError: of memory (see `is_out_of_memory`); nothing was added.
    """
    before = sums.row_counts.clone()
    takes_pairs = isinstance(sums, CollapseMetrics) and sums._paired is not None
    try:
        sums.update(
            block.features.to(sums.device),
            block.token_ids.to(sums.device),
            None if block.states is None else block.states.to(sums.device),
            **({"paired_features": block.paired} if takes_pairs and block.paired is not None else {}),
        )
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error) and not torch.equal(before, sums.row_counts):
            raise RunError(
                "memory gave out amid an update of the statistics, which are no longer whole; resume the run with a "
                "smaller collapse.max_buffer_size, or on another collapse.device"
            ) from error
        raise


def by_scope(block: RowBlock) -> Iterator[RowBlock]:
    """Part a block into the rows of each accumulator."""
    assert block.states is not None
    prompt = block.states == PROMPT
    for rows in (prompt, ~prompt):
        if bool(rows.any()):
            yield block if bool(rows.all()) else block.select(rows)


def kept_groups(block: RowBlock, special: Sequence[int]) -> Tensor:
    """Twice the token id, plus one for rows that are not the prompt's; -1 for rows that are not kept."""
    assert block.states is not None
    groups = 2 * block.token_ids + (block.states != PROMPT)
    return groups.masked_fill((block.states == REJECTED) | _in_no_sums(block, special), -1)


def stream_groups(block: RowBlock, special: Sequence[int]) -> list[Tensor]:
    """Twice the number of each stream of `STREAMS` that a row is part of, -1 where it is of none; streams overlap."""
    assert block.states is not None
    nowhere = _in_no_sums(block, special)
    answer = torch.full_like(block.states, 2 * STREAMS.index("answer"))
    answer.masked_fill_((block.states == PROMPT) | (block.states == REJECTED), -1)
    return [groups.masked_fill(nowhere, -1) for groups in (2 * block.states, answer)]


def _in_no_sums(block: RowBlock, special: Sequence[int]) -> Tensor:
    left_out = (block.token_ids < 0) | ~torch.isfinite(block.features).all(1)
    if block.paired is not None:
        left_out |= ~torch.isfinite(block.paired).all(1)
    if special:
        left_out |= torch.isin(block.token_ids, torch.tensor(special))
    return left_out


@contextmanager
def synced(sums: Sums, sync: bool) -> Iterator[None]:
    """Within it the sums are those of all ranks, afterwards this rank's own again, also after an error; collective."""
    sums.sync(should_sync=sync)
    # `compute` would leave this rank's own sums behind.
    before, sums._should_unsync = sums._should_unsync, False
    try:
        yield
    finally:
        sums._should_unsync = before
        if sums._is_synced:
            sums.unsync()


def result_of(sums: Sums, config: CollapseConfig) -> ScopeResult:
    """Read an accumulator as it stands (inside `synced`: that of all ranks)."""
    result = ScopeResult(counts=dict(zip(_COUNTERS, sums.row_counts.tolist(), strict=True)))
    # Rejected rows are in the sums of their own state only, and in no class.
    by_class = getattr(sums, "class_counts", None)
    result.counts["rows_in_text"] = sums.text_sums()[0] if by_class is None else int(by_class.sum())
    if isinstance(sums, CollapseMetrics):
        sums._computed = None  # it may be that of another moment, or of one rank
        with _quiet():
            result.values = {name: float(value) for name, value in sums.compute().items()}
            details = sums.compute_details()
        sums._computed = None
        values, reasons = unread_values(config, sums.num_features)
        result.values, result.undefined = result.values | values, {**details["undefined"], **reasons}
        keys = ("classes_seen", "classes_eligible", "n_duplicate_pairs", "n_equal_mean_pairs", "n_zero_mean")
        result.counts |= {key: details[key] for key in (*keys, "n_zero_rows", "n_zero_classifier") if key in details}
        result.classes = sums.eligible()
    elif config.compute_token_metrics:
        classes = sums.classes()
        result.classes = classes.eligible(config.min_samples_per_token, config.max_tokens_to_analyze)
        result.counts |= {"classes_seen": len(classes.ids), "classes_eligible": len(result.classes.ids)}
    if config.compute_overall_metrics:
        _add_spectra(sums, config, result)
    return result


@contextmanager
def _quiet() -> Iterator[None]:
    """Let no warning out that a value is undefined: the result says why, and whoever asked for it tells."""
    previous = _METRICS_LOG.level
    _METRICS_LOG.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*was called before the ``update`` method.*")
            yield
    finally:
        _METRICS_LOG.setLevel(previous)


_METRICS_LOG = logging.getLogger("lit_hass.metrics.accumulator")
_COUNTERS = ("n_rows", "n_nonfinite", "n_ignored", "n_special")


def _add_spectra(sums: Sums, config: CollapseConfig, result: ScopeResult) -> None:
    raw, rows = sums.eigenvalues(False)
    result.spectra[""], result.squares[""] = _listed(raw, rows), float(raw.sum())
    values, rows = sums.eigenvalues(config.entropy["center"])
    if not isinstance(sums, CollapseMetrics):
        value, normalized = entropies(values, rows, sums.num_features, config)
        result.values |= {"svd_entropy/overall": value, "svd_entropy/normalized": normalized}
        summary = spectrum_summary(raw, rows)
        result.values |= {f"rank/raw/{name}": summary[name] for name in ("effective_rank", "rankme")}
        result.undefined |= {name: "no rows, or no spread" for name, x in result.values.items() if math.isnan(x)}
    for name, (state_raw, count) in sums.state_eigenvalues(False).items():
        result.spectra[name], result.squares[name] = _listed(state_raw, count), float(state_raw.sum())
    for name, (state_values, count) in sums.state_eigenvalues(config.entropy["center"]).items():
        value, normalized = entropies(state_values, count, sums.num_features, config)
        result.states[name] = {"rows": count, "svd_entropy": value, "normalized_entropy": normalized}


def entropies(eigenvalues: Tensor, rows: int, num_features: int, config: CollapseConfig) -> tuple[float, float]:
    """Entropy and normalised entropy of a spectrum, by the settings; NaN where undefined."""
    value, normalized = bounded_entropy(eigenvalues, rows, num_features, **config.entropy)
    return float(value), float(normalized)


def _listed(eigenvalues: Tensor, rows: int) -> list[float]:
    return eigenvalues[: min(rows, _MOST_EIGENVALUES)].tolist()


def merged(make: Callable[[], Sums | None], parts: Mapping[str, Sums]) -> Sums | None:
    """Return the union of some accumulators; exact, by addition."""
    total = make()
    if total is not None:
        empty = total.metric_state
        for part in parts.values():
            # The prompts' rows have no draft beside them, and their accumulator no sums for one.
            total.merge_state({**{name: empty[name] for name in total._defaults}, **part.metric_state})
    return total
