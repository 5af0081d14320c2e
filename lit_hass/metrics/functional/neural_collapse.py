"""The neural-collapse family from class means: NC1, NC2, GNC2, NC3 and UNC3 (Papyan et al. 2020; Wu and Papyan 2024).

Means are ``[K, d]``, one row per class; they are centred by the unweighted mean of the classes unless another global
mean is given. A matrix of all pairs of classes never exists.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lit_hass.metrics.functional.moments import Moments
from lit_hass.metrics.functional.pair_statistics import cdnv_statistics, centre, gnc2_statistics


def gnc2(class_means: Tensor, reduction: str = "mean", correction: int = 1, **settings: object) -> Tensor:
    """Return generalised NC2, hyperspherical uniformity of the class means (Wu and Papyan 2024).

    Over unordered pairs: ln(1 / norm(u - u')), with u the centred and normalised class means.

    Args:
        class_means: ``[K, d]`` floating.
        reduction: see :meth:`Moments.reduced`. The mean is negative for ordinary features, so a signed relative spread
            changes its sign and diverges where the mean crosses zero.
        correction: likewise.
        settings: of :func:`~lit_hass.metrics.functional.pair_statistics.gnc2_statistics`.

    Returns:
        A float64 scalar; NaN with fewer than two classes that have a direction.

    Example:
        >>> import torch
        >>> gnc2(torch.eye(3))  # a simplex: all directions sqrt(3) apart
        tensor(-0.5493, dtype=torch.float64)
    """
    found = gnc2_statistics(class_means, **settings).moments  # type: ignore[arg-type]
    return _scalar(found.reduced(reduction, correction), class_means)


def cdnv(class_means: Tensor, class_variances: Tensor, reduction: str = "mean", exponent: float = 1.0) -> Tensor:
    """Return the class-distance normalised variance, NC1 (Galanti et al. 2021), over unordered pairs.

    Args:
        class_means: ``[K, d]`` floating.
        class_variances: ``[K]``, mean squared distance of a class's rows from their mean (divisor n).
        reduction: see :meth:`Moments.reduced`.
        exponent: of the squared distance.

    Example:
        >>> import torch
        >>> cdnv(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1.0, 3.0]))
        tensor(0.5000, dtype=torch.float64)
    """
    found = cdnv_statistics(class_means, class_variances, exponent=exponent).moments
    return _scalar(found.reduced(reduction), class_means)


def similarities(classifier: Tensor, centred_means: Tensor, similarity: str = "cos") -> Tensor:
    """Return cos(w_c, m_c) or w_c.m_c per class.

    Args:
        classifier: ``[K, d]``, the classifier's row of each class.
        centred_means: ``[K, d]``.
        similarity: ``"cos"`` or ``"dot"``.

    Returns:
        ``[K]`` float64; a cosine with a zero row is NaN.
    """
    w, m = classifier.to(torch.float64), centred_means.to(torch.float64)
    dots = (w * m).sum(1)
    if similarity == "dot":
        return dots
    lengths = torch.linalg.vector_norm(w, dim=1) * torch.linalg.vector_norm(m, dim=1)
    return torch.where(lengths > 0, dots / lengths, math.nan)


def unc3(
    class_means: Tensor,
    classifier: Tensor,
    reduction: str = "cov_abs",
    similarity: str = "cos",
    correction: int = 1,
    global_mean: Tensor | None = None,
) -> Tensor:
    """Return uniform NC3: how unequal the alignment of classifier rows and class means is (Wu and Papyan 2024).

    Args:
        class_means: ``[K, d]`` floating.
        classifier: ``[K, d]``, the output layer's row of each class. (The original scripts put the class means here,
            which measures something else.)
        reduction: see :meth:`Moments.reduced`.
        similarity: ``"cos"`` or ``"dot"``.
        correction: see :meth:`Moments.reduced`.
        global_mean: ``[d]``; the mean of the class means where none is given.

    Example:
        >>> import torch
        >>> means = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0], [0.0, -2.0]])
        >>> unc3(means, 3 * means)  # rows that point where the means point: perfectly uniform
        tensor(0., dtype=torch.float64)
    """
    values = similarities(classifier, centre(class_means, global_mean), similarity)
    return _scalar(Moments.of(values[~values.isnan()]).reduced(reduction, correction), class_means)


def structure_error(a: Tensor, b: Tensor) -> Tensor:
    """Return the distance of A B' from a simplex equiangular tight frame, both scaled to length 1.

    norm(S / norm(S) - (I - 11'/K) / sqrt(K - 1)) with S = A B', in closed form: S is never formed.

    Args:
        a: ``[K, d]``: the centred class means (ETF error, NC2) or the classifier's rows (self-duality, NC3).
        b: ``[K, d]``, the centred class means.

    Returns:
        A float64 scalar; NaN for fewer than two classes or a zero matrix.
    """
    a, b = a.to(torch.float64), b.to(torch.float64)
    k = len(a)
    if k < 2:
        return a.new_full((), math.nan)
    trace, total = (a * b).sum(), a.sum(0) @ b.sum(0)
    size = ((a.T @ a) * (b.T @ b)).sum().clamp(min=0).sqrt()
    cosine = (trace - total / k) / (math.sqrt(k - 1) * size)
    return (2 - 2 * cosine).clamp(min=0).sqrt()


def etf_error(class_means: Tensor) -> Tensor:
    """Return how far the centred class means are from a simplex equiangular tight frame (NC2).

    Example:
        >>> import torch
        >>> etf_error(torch.eye(5)) < 1e-7
        tensor(True)
    """
    centred = centre(class_means)
    return structure_error(centred, centred)


def papyan_distance(classifier: Tensor, centred_means: Tensor) -> Tensor:
    """Return norm(W / norm(W) - M / norm(M)) in Frobenius norms: self-duality as Papyan et al. (2020) measure it."""
    w, m = classifier.to(torch.float64), centred_means.to(torch.float64)
    return torch.linalg.norm(w / torch.linalg.norm(w) - m / torch.linalg.norm(m))


def duality_distances(classifier: Tensor, centred_means: Tensor) -> Tensor:
    """Return norm(w_c / norm(w_c) - m_c / norm(m_c)) per class, ``[K]`` float64; NaN with a zero row."""
    w, m = classifier.to(torch.float64), centred_means.to(torch.float64)
    w, m = (x / torch.linalg.vector_norm(x, dim=1, keepdim=True) for x in (w, m))
    return torch.linalg.vector_norm(w - m, dim=1)


def pinv_ratio(within: Tensor, centred_means: Tensor) -> Tensor:
    """Return tr(pinv(S_B) S_W) / K, NC1 as Papyan et al. (2020) measure it.

    Args:
        within: ``[d, d]``, S_W: the scatter of the rows around their class means over the number of rows.
        centred_means: ``[K, d]``; S_B = M'M / K has rank K - 1 at most, and what is above that is rounding.
    """
    m = centred_means.to(torch.float64)
    k, d = m.shape
    values, vectors = torch.linalg.eigh(m.T @ m / k)
    keep = values > values[-1] * max(k, d) * torch.finfo(torch.float64).eps
    keep[: max(0, d - (k - 1))] = False
    along = (vectors[:, keep].T @ within.to(torch.float64) * vectors[:, keep].T).sum(1)
    return (along / values[keep]).sum() / k


def lidar(within: Tensor, centred_means: Tensor, delta: float = 1e-4) -> Tensor:
    """Return LiDAR, the effective rank of the between-class scatter as the within-class scatter sees it.

    exp H(p), p the normalised eigenvalues of (S_W + delta I)^-1/2 S_B (S_W + delta I)^-1/2 (Thilak et al. 2023). There
    a class is one picture and its rows its augmentations; here it is one token and its contexts.

    Args:
        within: ``[d, d]``, S_W.
        centred_means: ``[K, d]``.
        delta: keeps S_W invertible.
    """
    m = centred_means.to(torch.float64)
    k, d = m.shape
    values, vectors = torch.linalg.eigh(within.to(torch.float64))
    whitened = (m @ vectors) / (values.clamp(min=0) + delta).sqrt()
    found = torch.linalg.eigvalsh(whitened.T @ whitened).flip(0).clamp(min=0)[: min(k - 1, d)]
    p = found / found.sum()
    return (-(p[p > 0] * p[p > 0].log()).sum()).exp() if bool(found.sum() > 0) else m.new_full((), math.nan)


def _scalar(value: float, like: Tensor) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device=like.device)
