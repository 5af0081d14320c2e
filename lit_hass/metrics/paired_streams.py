"""Sums over two streams of features at the same positions, from which their similarity (CKA) comes."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.functional.similarity import (
    cka_from_grams,
    debiased_ratio,
    hsic_sums,
    shifted_hsic_sums,
    unbiased_hsic,
)
from lit_hass.metrics.parts import Batch, Part, State

_FAMILIES = ("pair_xy", "pair_xx", "pair_yy")


class PairedStreams(Part):
    """Gram matrices of both streams and across them, with the sums of the unbiased estimator.

    Args:
        num_features: d of the first stream, whose rows come less the accumulator's shift.
        num_paired: e of the second; it has a shift of its own.
    """

    def __init__(self, num_features: int, num_paired: int) -> None:
        d, e = num_features, num_paired
        self.num_paired = num_paired
        self._widths = {"pair_xy": (d, e), "pair_xx": (d, d), "pair_yy": (e, e)}

    def defaults(self) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.defaults`; memory for the sums is taken with the first row."""
        return {
            "pair_shift": torch.zeros(self.num_paired, dtype=torch.float64),
            "pair_rows": torch.zeros(1, dtype=torch.int64),
            **{family: torch.zeros(0, dtype=torch.float64) for family in _FAMILIES},
        }

    def update(self, state: State, batch: Batch) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.update`."""
        if batch.paired is None:
            return state
        y, x = batch.paired.to(torch.float64), batch.x
        shift = state["pair_shift"] if int(state["pair_rows"]) else y.mean(0)
        y = y - shift
        state = self._allocated({**state, "pair_shift": shift})
        state["pair_rows"] += len(x)
        for family, (p, q) in zip(_FAMILIES, ((x, y), (x, x), (y, y)), strict=True):
            state[family] += _packed(hsic_sums(p, q))
        return state

    def rebased(self, state: State, delta: Tensor) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.rebased`; the second stream keeps its shift."""
        return self._moved(state, delta, torch.zeros_like(state["pair_shift"]))

    def merged(self, a: State, b: State) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.merged`."""
        n, m = int(a["pair_rows"]), int(b["pair_rows"])
        shift = (n * a["pair_shift"] + m * b["pair_shift"]) / (n + m) if n + m else a["pair_shift"]
        a, b = (self._moved_to(self._allocated(state), shift) for state in (a, b))
        return {**{name: a[name] + b[name] for name in ("pair_rows", *_FAMILIES)}, "pair_shift": shift}

    def reduced(self, state: State, ranks: Ranks, extent: int) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.reduced`."""
        rows = state["pair_rows"].to(torch.float64)
        weighted = ranks.sum(torch.cat((state["pair_shift"] * rows, rows)))
        shift = weighted[:-1] / weighted[-1] if weighted[-1] else state["pair_shift"]
        state = self._moved_to(self._allocated(state), shift)
        summed = {name: ranks.sum(state[name].clone()) for name in ("pair_rows", *_FAMILIES)}
        return {**summed, "pair_shift": shift}

    def cka(self, state: State) -> tuple[Tensor, Tensor, int]:
        """Return linear CKA, debiased CKA and the number of paired rows."""
        n = int(state["pair_rows"])
        xy, xx, yy = (self._unpacked(state, family) for family in _FAMILIES)
        if not n:
            undefined = state["pair_shift"].new_full((), torch.nan)
            return undefined, undefined, 0
        grams = [s["xy"] - torch.outer(s["y"], s["x"]) / n for s in (xx, yy, xy)]
        return cka_from_grams(*grams), debiased_ratio(*(unbiased_hsic(s, n) for s in (xy, xx, yy))), n

    def _moved_to(self, state: State, shift: Tensor) -> State:
        moved = self._moved(
            state, state["pair_shift"].new_zeros(self._widths["pair_xx"][0]), state["pair_shift"] - shift
        )
        return {**moved, "pair_shift": shift}

    def _moved(self, state: State, dx: Tensor, dy: Tensor) -> State:
        if not state["pair_xy"].numel():
            return state
        n = int(state["pair_rows"])
        shifts = {"pair_xy": (dx, dy), "pair_xx": (dx, dx), "pair_yy": (dy, dy)}
        moved = {f: _packed(shifted_hsic_sums(self._unpacked(state, f), *shifts[f], n)) for f in _FAMILIES}
        return {**state, **moved}

    def _allocated(self, state: State) -> State:
        if state["pair_xy"].numel():
            return state
        sizes = {family: sum(self._sizes(family).values()) for family in _FAMILIES}
        return {**state, **{family: state[family].new_zeros(size) for family, size in sizes.items()}}

    def _sizes(self, family: str) -> dict[str, int]:
        d, e = self._widths[family]
        return {"xy": e * d, "x": d, "y": e, "ay": e, "bx": d, "a": 1, "b": 1, "ab": 1}

    def _unpacked(self, state: State, family: str) -> dict[str, Tensor]:
        sizes = self._sizes(family)
        if not state[family].numel():
            return {}
        sums = dict(zip(sizes, state[family].split(list(sizes.values())), strict=True))
        sums["xy"] = sums["xy"].view(self._widths[family][1], self._widths[family][0])
        return {name: value[0] if name in ("a", "b", "ab") else value for name, value in sums.items()}


def _packed(sums: dict[str, Tensor]) -> Tensor:
    return torch.cat([sums[name].reshape(-1) for name in ("xy", "x", "y", "ay", "bx", "a", "b", "ab")])
