"""The triangular factor of all rows: singular values without squaring them."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.parts import Batch, Part, State


class TriangularFactor(Part):
    """R of the QR decomposition of the centred rows, with their mean and number (TSQR, Demmel et al. 2012).

    A Gram matrix holds singular values squared, so those below 1e-8 of the largest are lost in it; R keeps them. It
    does not merge by addition: the ranks' factors are gathered, d x d numbers each.

    Args:
        num_features: d.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def defaults(self) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.defaults`."""
        d = self.num_features
        return {
            "factor": torch.zeros(0, d, dtype=torch.float64),
            "factor_mean": torch.zeros(d, dtype=torch.float64),
            "factor_rows": torch.zeros(1, dtype=torch.int64),
        }

    def update(self, state: State, batch: Batch) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.update`."""
        mean = batch.x.mean(0)
        return self.merged(
            state,
            {
                "factor": batch.x - mean,
                "factor_mean": mean + batch.shift,
                "factor_rows": torch.tensor([len(batch.x)], device=batch.x.device),
            },
        )

    def merged(self, a: State, b: State) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.merged`."""
        n, m = float(a["factor_rows"]), float(b["factor_rows"])
        if not n or not m:
            some = a if n else b
            return {**some, "factor": _triangle(some["factor"])}
        delta = b["factor_mean"] - a["factor_mean"]
        between = delta * (n * m / (n + m)) ** 0.5
        return {
            "factor": _triangle(torch.cat((a["factor"], b["factor"], between[None]))),
            "factor_mean": a["factor_mean"] + delta * (m / (n + m)),
            "factor_rows": a["factor_rows"] + b["factor_rows"],
        }

    def reduced(self, state: State, ranks: Ranks, extent: int) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.reduced`."""
        d = self.num_features
        padded = state["factor"].new_zeros(d + 1, d)
        padded[: len(state["factor"])] = state["factor"]
        padded[d] = state["factor_mean"]
        total: State | None = None
        counts = torch.stack(ranks.gather(state["factor_rows"]))
        for rows, both in zip(counts, ranks.gather(padded), strict=True):
            other = {"factor": both[:d], "factor_mean": both[d], "factor_rows": rows}
            total = other if total is None else self.merged(total, other)
        assert total is not None
        return {**total, "factor": _triangle(total["factor"])}

    @staticmethod
    def eigenvalues(state: State, center: bool) -> Tensor:
        """Return the squared singular values of the rows, ``[d]``, largest first."""
        rows, factor = int(state["factor_rows"]), state["factor"]
        d = factor.shape[1]
        if not center:
            factor = torch.cat((factor, rows**0.5 * state["factor_mean"][None]))
        values = torch.linalg.svdvals(factor).square()
        values = torch.cat((values, values.new_zeros(max(0, d - len(values)))))[:d]
        values[max(0, min(rows - int(center), d)) :] = 0
        return values


def _triangle(rows: Tensor) -> Tensor:
    """Return R of at most d rows with the same Gram matrix."""
    if len(rows) <= rows.shape[1]:
        return rows.clone()
    return torch.linalg.qr(rows, mode="r").R
