"""What is known of features and classes without keeping the rows, as a metric of its own."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lit_hass.metrics.class_sums import ClassSums
from lit_hass.metrics.plots import plot_counts


class ClassStatistics(ClassSums):
    """Counts, means and variances per class, and the scatter of all rows; exact, in one pass, merged by addition.

    Memory is that of the classes seen (``[K, d]`` float64) and of one ``[d, d]`` float64 matrix, or one per state once
    states are given; the cost of a row does not depend on the rows before it.

    Args:
        num_features: d.
        gram: keep the ``[d, d]`` Gram matrix of all rows (and of each state).
        settings: see :class:`~lit_hass.metrics.accumulator.Accumulator`: ``ignore_ids``, ``min_samples``,
            ``num_classes``, ``nan_strategy``, ``state_names``, ``exclude_states``, and those of torchmetrics.

    Example:
        >>> import torch
        >>> from lit_hass.metrics import ClassStatistics
        >>> statistics = ClassStatistics(num_features=2, ignore_ids=[0])
        >>> rows = torch.tensor([[1.0, 0.0], [3.0, 0.0], [9.0, 9.0], [2.0, 2.0]])
        >>> statistics.update(rows, torch.tensor([5, 5, 0, 8]))
        >>> result = statistics.compute()
        >>> result["class_ids"].tolist(), result["class_counts"].tolist(), result["class_means"].tolist()
        ([5, 8], [2, 1], [[2.0, 0.0], [2.0, 2.0]])
        >>> result["class_variances"].tolist()
        [1.0, 0.0]
        >>> statistics.compute_details()["n_special"]
        1
    """

    def __init__(self, num_features: int, gram: bool = True, **settings: Any) -> None:
        super().__init__(num_features, gram=gram, **settings)
        self._with_gram = gram

    def compute(self) -> dict[str, Tensor]:
        """Return the statistics of all rows.

        Returns:
            ``class_ids``, ``class_counts`` (``[K]`` int64, ascending ids), ``class_means`` (``[K, d]``),
            ``class_variances`` (``[K]``, mean squared distance from the mean), and if the Gram matrix is kept
            ``num_rows`` (int64 scalar), ``mean`` (``[d]``), ``scatter`` (``[d, d]``, the centred Gram matrix).
            The shapes are these for a single class, too.
        """
        undefined: dict[str, str] = {}
        classes = self.classes()
        result = {"class_ids": classes.ids, "class_counts": classes.counts, "class_means": classes.means}
        result["class_variances"] = classes.variances
        if self._with_gram:
            rows, sums, gram = self.text_sums()
            if not rows:
                undefined["mean"] = "there are no rows"
            n = rows if rows else math.nan
            result["num_rows"] = torch.tensor(rows, device=self.device)
            result["mean"] = self.shift + sums / n
            result["scatter"] = gram - torch.outer(sums, sums) / n
        self._finish({}, undefined)
        return result

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        """Undo what torchmetrics does to results, where it makes a scalar of any tensor with one element."""
        inner = super()._wrap_compute(compute)

        @functools.wraps(inner)
        def shaped() -> dict[str, Tensor]:
            shapes = {"class_means": (-1, self.num_features), "scatter": (-1, self.num_features), "num_rows": ()}
            return {name: x.view(shapes.get(name, (-1,))) for name, x in inner().items()}

        return shaped

    def plot(self, val: dict[str, Tensor] | None = None, ax: Any = None) -> Any:
        """Draw the rows of each class by rank, most frequent first, on logarithmic axes.

        Args:
            val: a result of :meth:`compute`; computed where none is given.
            ax: matplotlib axes to draw on.

        Returns:
            The figure and the axes.

        Example:
            >>> import torch
            >>> from lit_hass.metrics import ClassStatistics
            >>> statistics = ClassStatistics(num_features=2)
            >>> statistics.update(torch.rand(9, 2), torch.arange(9) % 3)
            >>> figure, axes = statistics.plot()
        """
        return plot_counts(val if val is not None else self.compute(), ax)
