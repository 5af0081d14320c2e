"""A torchmetrics Metric that is a set of exact sums: float64 whatever the model's precision, merged by addition."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from lit_hass.errors import RunError, UserError
from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.exact_states import RULES, ExactStates, digest, moved, ordinary_tensors
from lit_hass.metrics.incoming_rows import RowRules
from lit_hass.metrics.parts import Part, State

_log = logging.getLogger(__name__)

#: Names of the state codes 0 to 4, those of ``lit_hass.decoding.TokenState``.
STATE_NAMES = ("prompt", "accepted", "rejected", "bonus", "baseline")

_COUNTERS = ("n_rows", "n_nonfinite", "n_ignored", "n_special")


class Accumulator(ExactStates):
    """What the collapse metrics share: which rows count, the states, and how two sets of sums become one.

    States are float64 sums and int64 counts, and stay so under ``bf16-true`` and ``.to(torch.bfloat16)``. Ranks are
    merged by a few all_reduce calls over the union of the classes they saw; a rank may have no rows at all.

    Args:
        num_features: d.
        parts: the sums to keep.
        num_paired: e, the width of a second stream of features; None where there is none.
        ignore_ids: token ids whose rows are not counted anywhere (special tokens); counted as ``n_special``.
        min_samples: rows that a class needs to enter class metrics.
        num_classes: V; token ids from V on are an error. None allows any.
        nan_strategy: ``"drop"`` leaves out rows with a number that is not finite and counts them as ``n_nonfinite``;
            ``"error"`` raises.
        state_names: names of the codes 0, 1, ... of ``states``.
        exclude_states: rows of these states enter nothing but their own spectrum.
        kwargs: of `torchmetrics.Metric`.

    Raises:
        UserError: a setting that cannot be used.
    """

    full_state_update = True
    is_differentiable = False
    higher_is_better = None

    shift: Tensor
    row_counts: Tensor

    def __init__(
        self,
        num_features: int,
        parts: Sequence[Part],
        num_paired: int | None = None,
        ignore_ids: Collection[int | None] = (),
        min_samples: int = 2,
        num_classes: int | None = None,
        nan_strategy: Literal["drop", "error"] = "drop",
        state_names: Sequence[str] = STATE_NAMES,
        exclude_states: Collection[str] = ("rejected",),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_features < 1 or min_samples < 1:
            raise UserError(f"num_features and min_samples must be positive, got {num_features} and {min_samples}")
        if nan_strategy not in ("drop", "error"):
            raise UserError(f'nan_strategy must be "drop" or "error", got {nan_strategy!r}')
        if num_classes is not None and num_classes < 1:
            raise UserError(f"num_classes must be positive or None, got {num_classes}")
        if len(set(state_names)) != len(state_names):
            raise UserError(f"state_names must differ from each other: {', '.join(state_names)}")
        if tuple(state_names) != STATE_NAMES and tuple(exclude_states) == ("rejected",):
            exclude_states = set(exclude_states) & set(state_names)  # the default is about the default names
        if unknown := set(exclude_states) - set(state_names):
            raise UserError(f"no such state to exclude: {', '.join(sorted(unknown))}; states: {', '.join(state_names)}")
        self.num_features, self.min_samples, self.state_names = num_features, min_samples, tuple(state_names)
        self._excluded = tuple(1 + i for i, name in enumerate(self.state_names) if name in exclude_states)
        self._rules = RowRules(
            num_features,
            num_paired,
            # None is what a tokenizer without such a token has.
            tuple(sorted({int(i) for i in ignore_ids if i is not None})),
            num_classes,
            len(self.state_names),
            self._excluded,
            nan_strategy == "drop",
        )
        self._parts = list(parts)
        self._part_states = [list(part.defaults()) for part in self._parts]
        self._details: dict[str, Any] = {}
        self._warned = False
        self.add_state("shift", torch.zeros(num_features, dtype=torch.float64), dist_reduce_fx=None)
        self.add_state("row_counts", torch.zeros(len(_COUNTERS), dtype=torch.int64), dist_reduce_fx=None)
        self._set_rules(self._rules.ignore_ids, self.state_names, self._excluded)
        for part in self._parts:
            for name, default in part.defaults().items():
                self.add_state(name, default, dist_reduce_fx=None)

    # -- rows -----------------------------------------------------------------------------------------------------

    def update(
        self, features: Tensor, token_ids: Tensor, states: Tensor | None = None, paired_features: Tensor | None = None
    ) -> None:
        """Add rows.

        Args:
            features: ``[N, d]`` floating: the vectors that the output layer reads.
            token_ids: ``[N]`` int64, the token after each vector's own position, the row's class. -100 is ignored and
                counted as ``n_ignored``.
            states: ``[N]`` int64 codes of ``state_names``.
            paired_features: ``[N, e]`` floating, a second stream at the same positions, where a metric compares two.

        Raises:
            ValueError: shapes or types that do not fit, an id or a state out of range, or with
                ``nan_strategy="error"`` a number that is not finite. Nothing has been added then.
        """
        with ordinary_tensors():
            self._disown_inference_tensors()
            first = not int(self.row_counts[0])
            batch, dropped = self._rules.accept(features, token_ids, states, paired_features, self.shift, first)
            if dropped[0] and not self._warned:
                _log.warning("%s: %d feature rows are not finite and are left out", type(self).__name__, dropped[0])
                self._warned = True
            self.row_counts += torch.tensor([len(batch.ids), *dropped], device=self.device)
            if not len(batch.ids):
                return
            self.shift = batch.shift
            counted = batch
            if batch.counted is not None and not bool(batch.counted.all()):
                counted = batch.select(batch.counted)
            for part, names in zip(self._parts, self._part_states, strict=True):
                rows = batch if part.all_states else counted
                if len(rows.ids):
                    self._set(part.update(self._get(names), rows))

    # -- two become one -------------------------------------------------------------------------------------------

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another accumulator, or of its ``metric_state``, to this one's.

        Raises:
            ValueError: the other one is of another class or has other states.
        """
        if isinstance(incoming_state, Metric):
            if type(incoming_state) is not type(self):
                raise ValueError(f"a {type(self).__name__} cannot take in a {type(incoming_state).__name__}")
            incoming_state = incoming_state.metric_state
        mine: State = self.metric_state
        theirs: State = incoming_state
        if theirs.keys() != mine.keys() or theirs["shift"].shape != self.shift.shape:
            raise ValueError(f"not the states of a {type(self).__name__} with {self.num_features} features")
        if not self._same_rules(theirs):
            raise ValueError(f"a {type(self).__name__} with other {RULES} cannot be merged into this one")
        with ordinary_tensors():
            other = {name: moved(value, self.device) for name, value in theirs.items()}
            n, m = (int(state["row_counts"][0]) for state in (mine, other))
            shift = (n * mine["shift"] + m * other["shift"]) / (n + m) if n + m else self.shift
            counts = mine["row_counts"] + other["row_counts"]
            for part, names in zip(self._parts, self._part_states, strict=True):
                a, b = ({name: state[name] for name in names} for state in (mine, other))
                self._set(part.merged(part.rebased(a, mine["shift"] - shift), part.rebased(b, other["shift"] - shift)))
            self.shift, self.row_counts = shift, counts
        self._update_count += 1
        self._computed = None

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any = None) -> None:
        """Replace the states by their sums over all ranks; the functions that torchmetrics passes are not used."""
        with ordinary_tensors():
            ranks = Ranks(process_group or self.process_group)
            states = [self._get(names) for names in self._part_states]
            header = torch.ones(3 + len(states), dtype=torch.int64, device=self.device)
            header[1:] = 0
            try:
                self._before_sync()
                kind = _fingerprint(type(self).__name__, self.num_features, self._part_states, self._rules)
                extents = [part.extent(state) for part, state in zip(self._parts, states, strict=True)]
                header = torch.tensor([0, kind, -kind, *extents], dtype=torch.int64, device=self.device)
            finally:
                # A rank that fails tells the others, which would wait for it otherwise.
                ranks.max(header)
            if header[0]:
                raise RunError(f"{type(self).__name__} failed on another rank before it could be merged")
            if header[1] != -header[2]:
                raise RunError(f"the ranks hold different metrics or settings: {type(self).__name__} on this one")
            rows = self.row_counts[:1].to(torch.float64)
            weighted = ranks.sum(torch.cat((self.shift * rows, rows)))
            shift = weighted[:-1] / weighted[-1] if weighted[-1] else self.shift
            merged: State = {"shift": shift, "row_counts": ranks.sum(self.row_counts.clone())}
            for part, state, extent in zip(self._parts, states, header[3:].tolist(), strict=True):
                merged.update(part.reduced(part.rebased(state, self.shift - shift), ranks, extent))
            before, done = self._get(list(merged)), False
            try:
                self._set(merged)
                self._after_sync(ranks)
                done = True
            finally:
                # Sums of all ranks that count as this rank's own would be added up again.
                if not done:
                    self._set(before)

    def _before_sync(self) -> None:
        """Do what may fail on one rank alone, before the ranks depend on each other."""

    def _after_sync(self, ranks: Ranks) -> None:
        """Do what needs both the merged sums and the other ranks."""

    # -- results --------------------------------------------------------------------------------------------------

    def compute_details(self) -> dict[str, Any]:
        """Return everything that is known beside the value of :meth:`compute`, from the same one sync.

        Returns:
            Plain numbers, strings, dicts and tensors. ``"undefined"`` says of each NaN why it is one; ``n_rows``,
            ``n_nonfinite``, ``n_ignored`` and ``n_special`` count rows.
        """
        self.compute()
        return copy.copy(self._details)

    def _counters(self) -> dict[str, int]:
        return dict(zip(_COUNTERS, self.row_counts.tolist(), strict=True))

    def _finish(self, details: dict[str, Any], undefined: dict[str, str]) -> None:
        """Keep the details of a result, and say in the log what is undefined."""
        self._details = {**details, **self._counters(), "undefined": undefined}
        if undefined:
            reasons = "; ".join(sorted(set(undefined.values())))
            _log.warning("%s: undefined: %s (%s)", type(self).__name__, ", ".join(undefined), reasons)

    def _number(self, value: float | Tensor) -> Tensor:
        return torch.as_tensor(value, dtype=torch.float64, device=self.device)

    def reset(self) -> None:
        """Forget all rows."""
        with ordinary_tensors():
            super().reset()
        self._details = {}


def _fingerprint(*parts: Any) -> int:
    return int.from_bytes(digest(*parts), "big")
