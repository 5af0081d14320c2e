"""The sums over rows and classes that all collapse metrics are views of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lit_hass.metrics.accumulator import Accumulator
from lit_hass.metrics.class_table import Classes, ClassTable
from lit_hass.metrics.functional.spectrum import gram_eigenvalues, has_spread
from lit_hass.metrics.parts import Grams, Part


class ClassSums(Accumulator):
    """An accumulator of classes and scatter; what a metric does not look at, it does not keep.

    Args:
        num_features: d.
        gram: keep the ``[d, d]`` Gram matrix, from which spectra and scatters come.
        class_table: keep the classes.
        parts: further sums.
        settings: of :class:`~lit_hass.metrics.accumulator.Accumulator`.
    """

    slot_rows: Tensor
    slot_sums: Tensor
    slot_grams: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        gram: bool = True,
        class_table: bool = True,
        parts: Sequence[Part] = (),
        **settings: Any,
    ) -> None:
        mine: list[Part] = []
        if class_table:
            mine.append(ClassTable(num_features))
        if gram:
            mine.append(Grams(num_features))
        super().__init__(num_features, [*mine, *parts], **settings)

    def classes(self) -> Classes:
        """Return the classes seen by this process (inside a sync: by all of them)."""
        return ClassTable.classes(self._get(["class_ids", "class_counts", "class_sums", "class_sqnorms"]), self.shift)

    def eigenvalues(self, center: bool) -> tuple[Tensor, int]:
        """Return the squared singular values of all rows of the text, ``[d]``, largest first, and the number of rows.

        They are NaN where centred rows have no spread.
        """
        return self._spectrum(*self.text_sums(), center)

    def state_eigenvalues(self, center: bool) -> dict[str, tuple[Tensor, int]]:
        """Return the same for the rows of each state that occurred, by name."""
        found = {}
        for slot in range(1, len(self.slot_rows)):
            if rows := int(self.slot_rows[slot]):
                name = self.state_names[slot - 1]
                found[name] = self._spectrum(rows, self.slot_sums[slot], self.slot_grams[slot], center)
        return found

    def text_sums(self) -> tuple[int, Tensor, Tensor]:
        """Return number, sum and Gram matrix of the rows of the text, less the shift."""
        part = self._part(Grams)
        assert part is not None
        return part.total(self._get(["slot_rows", "slot_sums", "slot_grams"]), self._excluded)

    def _spectrum(self, rows: int, sums: Tensor, gram: Tensor, center: bool) -> tuple[Tensor, int]:
        r = self.shift
        raw = gram + torch.outer(r, sums) + torch.outer(sums, r) + rows * torch.outer(r, r)
        if not center or not rows:
            return gram_eigenvalues(raw, rows), rows
        values = gram_eigenvalues(gram - torch.outer(sums, sums) / rows, rows, center=True)
        if not has_spread(values[0], raw.trace(), rows, self.num_features):
            values = torch.full_like(values, math.nan)
        return values, rows

    def _part(self, kind: type[Part]) -> Any:
        return next((part for part in self._parts if isinstance(part, kind)), None)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one value or several, as torchmetrics does.

        Args:
            val: a result of ``compute`` or ``forward``, or a list of them; computed where none is given.
            ax: matplotlib axes to draw on.

        Returns:
            The figure and the axes.
        """
        return self._plot(val, ax)
