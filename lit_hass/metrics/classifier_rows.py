"""The rows of an output layer, read when they are needed and never owned by a metric."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lit_hass.errors import UserError

Classifier = Tensor | Callable[[], Tensor]


class ClassifierRows:
    """Gives the float64 rows of an output layer's weight ``[V, d]``.

    A weight that is an attribute of a Metric would become its parameter: saved, moved and cast with it. It is held in
    here instead, by reference: a weight in training is read as it is at that moment. A copy of the metric keeps the
    reference; a pickle keeps a tensor, and loses a function, which often cannot be pickled.

    Args:
        classifier: the weight, or a function that returns it; None where it must be given later.
        num_features: d, to refuse a weight of another width at once; a function is asked when the weight is needed.

    Raises:
        UserError: it is neither, or has another width.
    """

    def __init__(self, classifier: Classifier | None, num_features: int | None = None) -> None:
        if classifier is not None and not isinstance(classifier, Tensor) and not callable(classifier):
            raise UserError(f"classifier must be a tensor or a function, got a {type(classifier).__name__}")
        self._held = classifier
        if isinstance(classifier, Tensor) and num_features is not None:
            self.weight(num_features)

    def __getstate__(self) -> dict[str, Tensor | None]:
        return {"_held": self._held.detach() if isinstance(self._held, Tensor) else None}

    def __deepcopy__(self, memo: dict[int, object]) -> ClassifierRows:
        return ClassifierRows(self._held)

    def weight(self, num_features: int) -> Tensor:
        """Return the whole weight as it is, ``[V, d]``.

        Raises:
            UserError: there is none (any more), or its width is not that of the features.
        """
        if self._held is None:
            raise UserError(
                "there is no classifier; a function does not survive pickling: give it to set_classifier again"
            )
        weight = self._held if isinstance(self._held, Tensor) else self._held()
        if weight.ndim != 2 or weight.shape[1] != num_features:
            raise UserError(f"the classifier must be [V, {num_features}], got {tuple(weight.shape)}")
        return weight.detach()

    def rows(self, ids: Tensor, num_features: int) -> Tensor:
        """Return the rows of some ids, ``[K, d]`` float64, on their device.

        Raises:
            ValueError: an id is beyond the last row.
            UserError: see :meth:`weight`.
        """
        weight = self.weight(num_features)
        if ids.numel() and int(ids.max()) >= len(weight):
            raise ValueError(f"token id {int(ids.max())} has no row in a classifier of {len(weight)} rows")
        return weight[ids.to(weight.device)].to(ids.device, torch.float64)


def why_no_classifier(bad_rows: int) -> str:
    """Say why nothing follows from a classifier with so many rows that are not finite; empty without any."""
    return f"{bad_rows} rows of the classifier are not finite" if bad_rows else ""
