"""What the singular values of a feature matrix say: entropies, effective ranks, decay.

Everything here is computed from eigenvalues of a Gram matrix, hence from numbers that add up over batches and devices.
The eigenvalues that must be zero by the number of rows, and those within the rounding of the sums, are set to zero:
otherwise their noise, about 1e-8 of the largest singular value each, would count as rank, and a line would be fitted
through it that is another one with each order of the additions.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from lit_hass.errors import UserError

Base = Literal["e", 2, "2"]
#: Added inside the logarithm by the original scripts' entropies.
ENTROPY_EPS = 1e-10
#: Added to the normalised singular values by RankMe.
RANKME_EPS = 1e-7

_EPS64 = torch.finfo(torch.float64).eps


def gram_eigenvalues(gram: Tensor, rows: int, center: bool = False) -> Tensor:
    """Return the eigenvalues of a Gram matrix X'X, largest first, without the noise of those that are zero.

    Args:
        gram: ``[d, d]`` float64, of n rows (already centred if ``center``).
        rows: n. At most min(n, d) eigenvalues, or min(n - 1, d) of centred rows, can differ from zero.
        center: whether the rows were centred.

    Returns:
        ``[d]`` float64, not negative; zero up to max(d, sqrt n) * 2.2e-16 of the largest: the eigenvalues of a matrix
        are not known more exactly, nor its sums of n products, whose rounding grows with the root of n.
    """
    values = torch.linalg.eigvalsh(gram.to(torch.float64)).flip(0).clamp_(min=0)
    values[max(0, min(rows - int(center), values.numel())) :] = 0
    if values.numel():
        values[values <= max(values.numel(), math.sqrt(rows)) * _EPS64 * values[0]] = 0
    return values


def matrix_eigenvalues(rows: Tensor, center: bool = False) -> Tensor:
    """Return the squared singular values of the rows, largest first.

    Args:
        rows: ``[n, d]`` floating; computed in float64.
        center: subtract the mean row first.

    Returns:
        ``[min(n, d)]`` float64; all NaN if the rows are centred and identical up to rounding, for then there is no
        spread whose shape could be described.
    """
    x = rows.to(torch.float64)
    n, d = x.shape
    if n == 0:
        return x.new_zeros(0)
    if center:
        largest = x.square().sum().sqrt()
        x = x - x.mean(0)
    values = gram_eigenvalues(x @ x.T if n <= d else x.T @ x, n, center)
    if center and not has_spread(values[0], largest**2, n, d):
        values.fill_(math.nan)
    return values


def has_spread(largest_centred: Tensor, largest_raw: Tensor, rows: int, features: int) -> bool:
    """Tell whether centred rows differ by more than the rounding of the rows themselves.

    Args:
        largest_centred: largest eigenvalue of the centred Gram matrix.
        largest_raw: that of the raw one, or its trace.
        rows: n.
        features: d.
    """
    return bool(largest_centred > (4 * max(rows, features) * _EPS64) ** 2 * largest_raw)


def distribution(eigenvalues: Tensor, power: int = 1) -> Tensor:
    """Turn eigenvalues ``[..., r]`` into shares that add up to one; NaN where all are zero.

    Args:
        eigenvalues: squared singular values s^2.
        power: 1 takes s / sum s, 2 takes s^2 / sum s^2.
    """
    values = eigenvalues.sqrt() if power == 1 else eigenvalues
    return values / values.sum(-1, keepdim=True)


def entropy(shares: Tensor, base: Base = "e", eps: float = 0.0) -> Tensor:
    """Return -sum p log(p + eps) over the last dimension, not below 0; 0 log 0 is 0.

    Args:
        shares: ``[..., r]`` shares that add up to one.
        base: ``"e"`` for nats, 2 for bits.
        eps: added inside the logarithm (the original scripts: 1e-10).
    """
    logs = torch.where(shares > 0, shares + eps, 1.0).log()
    nats = -(shares * logs).sum(-1)
    return torch.where(nats <= 0, 0.0, nats).div(_unit(base))


def entropy_bound(rows: int | Tensor, features: int, center: bool = False, base: Base = "e") -> Tensor:
    """Return the largest entropy that so many rows can have: log min(n, d), or log min(n - 1, d) of centred rows.

    Args:
        rows: n, one number or a tensor of them.
        features: d.
        center: whether the rows were centred: they add up to zero, so that one direction fewer is free.
        base: ``"e"`` for nats, 2 for bits.

    Returns:
        float64, in the shape of ``rows``; NaN where it would be 0, for there is nothing to be a part of.
    """
    rank = (torch.as_tensor(rows) - int(center)).clamp(max=features).to(torch.float64)
    return torch.where(rank > 1, rank, math.nan).log() / _unit(base)


def bounded_entropy(
    eigenvalues: Tensor,
    rows: int | Tensor,
    features: int,
    power: int = 1,
    center: bool = False,
    base: Base = "e",
    eps: float = ENTROPY_EPS,
) -> tuple[Tensor, Tensor]:
    """Return the entropy of spectra and the same over its bound (see :func:`entropy_bound`).

    Args:
        eigenvalues: ``[..., r]`` squared singular values.
        rows: how many rows are behind each of them, ``[...]``. The entropy of fewer than two is undefined: it would be
            0 whatever they are.
        features: d.
        power: see :func:`spectral_entropy`, as the three after it.
        center: likewise; the eigenvalues are those of centred rows already.
        base: likewise.
        eps: likewise.

    Returns:
        Two float64 tensors ``[...]``, NaN where undefined.
    """
    counts = torch.as_tensor(rows, device=eigenvalues.device)
    value = entropy(distribution(eigenvalues, power), base, eps).masked_fill(counts < 2, math.nan)
    return value, value / entropy_bound(counts, features, center, base)


def spectral_entropy(
    features: Tensor, power: int = 1, center: bool = False, base: Base = "e", eps: float = ENTROPY_EPS
) -> Tensor:
    """Return the SVD entropy of the rows.

    The defaults are the first of the two original definitions; ``power=2, center=True, base=2`` is the second. They
    differ in three switches at once, so their values are not to be compared.

    Args:
        features: ``[n, d]`` floating; computed in float64.
        power: 1 for p = s / sum s, 2 for p = s^2 / sum s^2 (the variances along the principal axes, if centred).
        center: subtract the mean row first.
        base: ``"e"`` for nats, 2 for bits.
        eps: added inside the logarithm; it lowers the entropy by about rank * eps.

    Returns:
        A float64 scalar; NaN with fewer than two rows, with all rows zero, or centred and all rows equal.

    Raises:
        UserError: a setting that does not exist.

    Example:
        >>> import torch
        >>> spectral_entropy(torch.eye(4), eps=0.0)  # ln 4
        tensor(1.3863, dtype=torch.float64)
        >>> spectral_entropy(torch.ones(5, 3), eps=0.0)  # rank 1
        tensor(0., dtype=torch.float64)
    """
    check_entropy_settings(power, base)
    values = matrix_eigenvalues(features, center)
    return bounded_entropy(values, features.shape[0], features.shape[1], power, center, base, eps)[0]


def spectrum_summary(eigenvalues: Tensor, rows: int, center: bool = False) -> dict[str, float]:
    """Describe a spectrum by every measure of this file.

    With s^2 the eigenvalues, p1 = s / sum s and p2 = s^2 / sum s^2:

    * ``entropy_sigma``, ``entropy_sigma2``: -sum p ln p in nats (eps-free), of p1 and p2.
    * ``normalized_sigma``, ``normalized_sigma2``: over their bound, see :func:`entropy_bound`.
    * ``effective_rank``: exp of ``entropy_sigma`` (Roy and Vetterli 2007); ``effective_dimensions``: of
      ``entropy_sigma2``.
    * ``rankme``: exp(-sum q ln q), q = p1 + 1e-7 (Garrido et al. 2023).
    * ``participation_ratio``: 1 / sum p2^2; ``participation_ratio_sigma``: 1 / sum p1^2.
    * ``stable_rank``: sum s^2 / max s^2.
    * ``matrix_entropy_1``, ``matrix_entropy_2``, ``matrix_entropy_inf``: Renyi entropies of p2 in nats.
    * ``top_share``: of the largest s^2; ``condition``: largest over smallest singular value that is not zero.
    * ``numerical_rank``: singular values above max(n, d) * 2.2e-16 of the largest; from a Gram matrix none is known
      below the root of that, see :func:`gram_eigenvalues`.
    * ``sum_sigma``: sum of the singular values (the nuclear norm).
    * ``alpha_req``, ``alpha_req_r2``, ``alpha_req_first``, ``alpha_req_last``: see :func:`power_law`.

    Args:
        eigenvalues: ``[r]`` float64, largest first, as :func:`gram_eigenvalues` returns them.
        rows: n.
        center: whether they are those of centred rows.

    Returns:
        Plain floats; NaN where undefined (fewer than two rows, or all zero).
    """
    d = eigenvalues.numel()
    rank = int((eigenvalues.sqrt() > max(rows, d) * _EPS64 * eigenvalues[0].sqrt()).sum()) if d else 0
    if rows < 2:  # whatever the row is, these would be 0 and 1
        eigenvalues = torch.full_like(eigenvalues, math.nan)
    p1, p2 = distribution(eigenvalues, 1), distribution(eigenvalues, 2)
    sigma, sigma2 = float(entropy(p1)), float(entropy(p2))
    if rows == 0 or d == 0 or not eigenvalues[0] > 0:
        sigma = sigma2 = math.nan
    bound = float(entropy_bound(rows, d, center))
    top = float(p2[0]) if d else math.nan
    participation = float(1 / p2.square().sum())
    return {
        "entropy_sigma": sigma,
        "entropy_sigma2": sigma2,
        "normalized_sigma": sigma / bound,
        "normalized_sigma2": sigma2 / bound,
        "effective_rank": math.exp(sigma),
        "effective_dimensions": math.exp(sigma2),
        "rankme": float(rankme(eigenvalues)),
        "participation_ratio": participation,
        "participation_ratio_sigma": float(1 / p1.square().sum()),
        "stable_rank": 1 / top if top else math.nan,
        "matrix_entropy_1": sigma2,
        "matrix_entropy_2": math.log(participation) if participation < math.inf else math.nan,
        "matrix_entropy_inf": -math.log(top) if top else math.nan,
        "top_share": top,
        "condition": float((eigenvalues[0] / eigenvalues[rank - 1]).sqrt()) if rank else math.nan,
        "numerical_rank": float(rank),
        "sum_sigma": float(eigenvalues.sqrt().sum()) if sigma == sigma else math.nan,
        **power_law(eigenvalues[:rank]),
    }


def rankme(eigenvalues: Tensor) -> Tensor:
    """Return RankMe (Garrido et al. 2023): exp(-sum q ln q) with q = s / sum s + 1e-7."""
    q = distribution(eigenvalues, 1) + RANKME_EPS
    return (-(q * q.log()).sum()).exp() if q.numel() else q.new_full((), math.nan)


def renyi_entropy(eigenvalues: Tensor, order: float = 1.0) -> Tensor:
    """Return the matrix (von Neumann, Renyi) entropy of p = s^2 / sum s^2 in nats.

    Args:
        eigenvalues: ``[r]``.
        order: 1 is von Neumann's -sum p ln p; infinity -ln max p; else ln(sum p^order) / (1 - order).
    """
    p = distribution(eigenvalues, 2)
    if order == 1:
        return entropy(p)
    if math.isinf(order):
        return -p.max().log()
    return (p[p > 0] ** order).sum().log() / (1 - order)


def power_law(eigenvalues: Tensor) -> dict[str, float]:
    """Fit ln eigenvalue = c - alpha ln rank by least squares (alpha-ReQ, Agrawal et al. 2022).

    Args:
        eigenvalues: ``[r]`` positive, largest first. Ranks 11 to min(r, 100) are used if r is at least 50, else all.

    Returns:
        ``alpha_req``, its R^2 and the first and last rank used; NaN with fewer than two eigenvalues.
    """
    r = eigenvalues.numel()
    first, last = (11, min(r, 100)) if r >= 50 else (1, r)
    if r < 2:
        return dict.fromkeys(("alpha_req", "alpha_req_r2", "alpha_req_first", "alpha_req_last"), math.nan)
    x = torch.arange(first, last + 1, dtype=torch.float64, device=eigenvalues.device).log()
    y = eigenvalues[first - 1 : last].log()
    x, y = x - x.mean(), y - y.mean()
    slope = float((x * y).sum() / x.square().sum())
    total = float(y.square().sum())
    r2 = 1 - float((y - slope * x).square().sum()) / total if total > 0 else math.nan
    return {"alpha_req": -slope, "alpha_req_r2": r2, "alpha_req_first": float(first), "alpha_req_last": float(last)}


def check_entropy_settings(power: int, base: Base) -> None:
    """Refuse a power other than 1 and 2 and a base other than e and 2.

    Raises:
        UserError: naming the setting.
    """
    if power not in (1, 2):
        raise UserError(f"power must be 1 or 2, got {power!r}")
    _unit(base)


def _unit(base: Base) -> float:
    if base == "e":
        return 1.0
    if base in (2, "2"):
        return math.log(2)
    raise UserError(f'base must be "e" or 2, got {base!r}')
