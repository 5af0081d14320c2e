"""Uniform NC3 as a metric that merges over devices."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.metrics.class_sums import ClassSums
from lit_hass.metrics.class_table import Classes, check_max_classes
from lit_hass.metrics.classifier_rows import Classifier, ClassifierRows, why_no_classifier
from lit_hass.metrics.functional.moments import Moments, check_reduction
from lit_hass.metrics.functional.neural_collapse import similarities
from lit_hass.metrics.gnc2 import GlobalMean, centred_means, check_global_mean, why_no_pairs


class UNC3(ClassSums):
    """How unequally classifier rows and class means are aligned over classes (uniform duality, Wu and Papyan 2024).

    The spread over eligible classes of cos(w_c, m_c): w_c is the output layer's row of class c, m_c its centred mean.

    Args:
        num_features: d.
        classifier: the output layer's weight ``[V, d]``, or a function that returns it; read at :meth:`compute`.
            ``"class_means"`` puts the class means in its place, as the original scripts do by mistake.
        reduction: ``"cov_abs"`` (std / abs(mean)), ``"mean"``, ``"var"``, ``"std"``, ``"cov"``, ``"min"`` or ``"max"``;
            all of them are in the details.
        similarity: ``"cos"``, or ``"dot"`` for w_c.m_c.
        global_mean: the mean of the class means, or of all rows of the eligible classes (``"weighted"``).
        correction: of the variance; 1 is unbiased, 0 the population's.
        max_classes: use the most frequent eligible classes only.
        settings: see :class:`~lit_hass.metrics.accumulator.Accumulator`: ``ignore_ids``, ``min_samples``,
            ``num_classes``, ``nan_strategy``, ``state_names``, ``exclude_states``, and those of torchmetrics.

    Raises:
        UserError: a setting that does not exist.

    Example:
        >>> import torch
        >>> from lit_hass.metrics import UNC3
        >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        >>> head = torch.cat((torch.zeros(4, 2), means * 3))  # the rows of token ids 4 to 7 point where the means do
        >>> metric = UNC3(num_features=2, classifier=head, min_samples=1)
        >>> metric.update(means, torch.tensor([4, 5, 6, 7]))
        >>> metric.compute()
        tensor(0., dtype=torch.float64)
        >>> metric.compute_details()["mean"]
        1.0
        >>> figure, axes = metric.plot()
    """

    plot_lower_bound = 0.0

    def __init__(
        self,
        num_features: int,
        classifier: Classifier | Literal["class_means"],
        reduction: str = "cov_abs",
        similarity: Literal["cos", "dot"] = "cos",
        global_mean: GlobalMean = "unweighted",
        correction: int = 1,
        max_classes: int | None = None,
        **settings: Any,
    ) -> None:
        check_reduction(reduction, correction)
        check_global_mean(global_mean)
        check_max_classes(max_classes)
        if similarity not in ("cos", "dot"):
            raise UserError(f'similarity must be "cos" or "dot", got {similarity!r}')
        super().__init__(num_features, gram=False, **settings)
        self.reduction, self.similarity, self.global_mean = reduction, similarity, global_mean
        self.correction, self.max_classes = correction, max_classes
        self._wrong_classifier = isinstance(classifier, str)
        if isinstance(classifier, str) and classifier != "class_means":
            raise UserError(f'classifier must be a tensor, a function or "class_means", got {classifier!r}')
        self._rows = ClassifierRows(None if isinstance(classifier, str) else classifier, num_features)

    def set_classifier(self, classifier: Classifier) -> None:
        """Give the classifier again, after pickling has lost a function."""
        self._rows, self._wrong_classifier = ClassifierRows(classifier, self.num_features), False
        self._computed = None

    def _before_sync(self) -> None:
        if not self._wrong_classifier:
            self._rows.weight(self.num_features)

    def compute(self) -> Tensor:
        """Return the reduction over eligible classes of all ranks, a float64 scalar; NaN where undefined.

        Classes at the global mean and classes whose classifier row is zero have no cosine; they are left out and
        counted as ``n_zero_mean`` and ``n_zero_classifier``. With a classifier row that is not finite
        (``n_nonfinite_classifier``) nothing is defined.
        """
        classes = self.classes()
        eligible = classes.eligible(self.min_samples, self.max_classes)
        centred, rows = centred_means(eligible, self.global_mean), self._classifier_of(eligible)
        values = similarities(rows, centred, self.similarity)
        zero_mean, zero_row = (int((x == 0).all(1).sum()) for x in (centred, rows))
        bad_rows = int((~rows.isfinite().all(1)).sum())
        moments = Moments.of(values[~values.isnan()])
        if len(eligible.ids) < 2 or bad_rows:
            moments = Moments()  # one class is its own centre
        value = moments.reduced(self.reduction, self.correction)
        undefined = {}
        if reason := moments.reason_undefined(self.reduction):
            undefined["value"] = why_no_classifier(bad_rows) or why_no_pairs(
                len(eligible.ids), len(classes.ids), reason
            )
        details = {
            "value": value,
            **moments.as_dict(self.correction),
            "classes_seen": len(classes.ids),
            "classes_eligible": len(eligible.ids),
            "n_zero_mean": zero_mean,
            "n_zero_classifier": zero_row,
            "n_nonfinite_classifier": bad_rows,
        }
        self._finish(details, undefined)
        return self._number(value)

    def _classifier_of(self, classes: Classes) -> Tensor:
        return classes.means if self._wrong_classifier else self._rows.rows(classes.ids, self.num_features)
