"""Class statistics that can also keep the rows, for the measures that no sums can give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_hass.metrics.class_sums import ClassSums
from lit_hass.metrics.class_table import Classes, check_max_classes
from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.functional.group_entropies import GroupedEntropy, grouped_entropy
from lit_hass.metrics.functional.spectrum import ENTROPY_EPS, Base, bounded_entropy, check_entropy_settings
from lit_hass.metrics.parts import Part
from lit_hass.metrics.row_buffer import RowBuffer, exchange_by_class, rows_of


@dataclass(frozen=True)
class RowResults:
    """What only the rows themselves tell.

    Attributes:
        entropies: of the rows of each eligible class.
        agreement: ``[K, 6]`` int64 counts of NC4 per eligible class, or None without a classifier.
    """

    entropies: GroupedEntropy
    agreement: Tensor | None


class RowStatistics(ClassSums):
    """Class statistics with settings for entropies, and rows if asked for.

    Args:
        num_features: d.
        power: 1 for p = s / sum s over the singular values, 2 for p = s^2 / sum s^2.
        center: subtract the mean row first.
        base: ``"e"`` for nats, 2 for bits.
        eps: added inside the logarithm.
        keep_rows: keep copies of the rows of the text.
        max_classes: class metrics use the most frequent eligible classes only (ties: smaller id).
        settings: of :class:`~lit_hass.metrics.class_sums.ClassSums`.
        parts: further sums.
    """

    def __init__(
        self,
        num_features: int,
        *,
        power: int = 1,
        center: bool = False,
        base: Base = "e",
        eps: float = ENTROPY_EPS,
        keep_rows: bool = False,
        max_classes: int | None = None,
        parts: Sequence[Part] = (),
        **settings: Any,
    ) -> None:
        check_entropy_settings(power, base)
        check_max_classes(max_classes)
        super().__init__(num_features, parts=[*parts, *([RowBuffer(num_features)] if keep_rows else [])], **settings)
        self.power, self.center, self.base, self.eps = power, center, base, eps
        self.keep_rows, self.max_classes = keep_rows, max_classes
        self._row_results: RowResults | None = None

    def eligible(self) -> Classes:
        """Return the classes that class metrics use."""
        return self.classes().eligible(self.min_samples, self.max_classes)

    def row_results(self) -> RowResults:
        """Return what the kept rows tell: of all ranks inside a sync, else of this process."""
        if self._row_results is None:
            rows, ids = self._kept()
            classes = self.eligible()
            wanted = torch.isin(ids, classes.ids)
            entropies = self._entropies(rows[wanted], ids[wanted])
            return RowResults(entropies, self._agreement(rows, ids, classes))
        return self._row_results

    def _after_sync(self, ranks: Ranks) -> None:
        if not self.keep_rows:
            return
        with ranks.together(self.device):
            rows, ids = self._kept()
            classes = self.eligible()
            agreement = self._agreement(rows, ids, classes)
        rows, ids = exchange_by_class(rows, ids, ranks)
        values = torch.zeros(len(classes.ids), 2, dtype=torch.float64, device=self.device)
        with ranks.together(self.device):
            wanted = torch.isin(ids, classes.ids)
            found = self._entropies(rows[wanted], ids[wanted])
            place = torch.searchsorted(classes.ids, found.ids)
            values[place] = torch.stack((found.entropies, found.normalized), dim=1)
        ranks.sum(values)
        if agreement is not None:
            ranks.sum(agreement)
        entropies = GroupedEntropy(classes.ids, classes.counts, values[:, 0], values[:, 1])
        self._row_results = RowResults(entropies, agreement)

    def _kept(self) -> tuple[Tensor, Tensor]:
        return rows_of(self._get(["row_blocks", "row_id_blocks"]), self.num_features, self.device)

    def _entropies(self, rows: Tensor, ids: Tensor) -> GroupedEntropy:
        return grouped_entropy(
            rows,
            ids,
            power=self.power,
            center=self.center,
            base=self.base,
            eps=self.eps,
            min_samples=self.min_samples,
        )

    def _agreement(self, rows: Tensor, ids: Tensor, classes: Classes) -> Tensor | None:
        return None

    def _entropies_of(self, eigenvalues: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Return entropy and normalised entropy of a spectrum of so many rows, by the settings."""
        return bounded_entropy(eigenvalues, rows, self.num_features, self.power, self.center, self.base, self.eps)

    def update(
        self, features: Tensor, token_ids: Tensor, states: Tensor | None = None, paired_features: Tensor | None = None
    ) -> None:
        """See :meth:`~lit_hass.metrics.accumulator.Accumulator.update`."""
        self._row_results = None
        super().update(features, token_ids, states, paired_features)

    def unsync(self, should_unsync: bool = True) -> None:
        """Go back to this process's own sums."""
        super().unsync(should_unsync)
        if should_unsync:
            self._row_results = None

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self._row_results = None
