"""Collapse metrics by their definitions, in numpy float64, from all rows at once; nothing of the package is used."""

import math

import numpy as np


def entropy(rows) -> float:
    """Of p = s / sum s, in nats, uncentred."""
    values = np.linalg.svd(np.asarray(rows, dtype=np.float64), compute_uv=False)
    p = values / values.sum()
    return max(0.0, float(-(p * np.log(p + 1e-10)).sum()))


def plain_metrics(features, ids, head=None, special=(), least=2) -> dict:
    """Values by the names of `CollapseMetrics.compute`, and ``tokens``: class -> (rows, entropy).

    Args:
        features: ``[n, d]``.
        ids: ``[n]``.
        head: ``[V, d]``.
        special: ids whose rows are left out.
        least: rows of a class that counts.
    """
    x, y = np.asarray(features, dtype=np.float64), np.asarray(ids)
    kept = ~np.isin(y, list(special))
    x, y = x[kept], y[kept]
    classes = [c for c in np.unique(y) if (y == c).sum() >= least]
    found = {"total_tokens": len(y), "svd_entropy/overall": entropy(x) if len(x) else math.nan}
    found["tokens"] = {int(c): (int((y == c).sum()), entropy(x[y == c])) for c in classes}
    if len(classes) < 2:
        return found
    means = np.stack([x[y == c].mean(0) for c in classes])
    centred = means - means.mean(0)
    norms = np.linalg.norm(centred, axis=1)
    units = centred / norms[:, None]
    within = np.array([((x[y == c] - mean) ** 2).sum(1).mean() for c, mean in zip(classes, means, strict=True)])
    logs, ratios, cosines = [], [], []
    for i in range(len(classes)):
        for j in range(i):
            distance = np.linalg.norm(units[i] - units[j])
            if distance >= 1e-6:
                logs.append(-math.log(distance))
            ratios.append((within[i] + within[j]) / 2 / ((means[i] - means[j]) ** 2).sum())
            cosines.append(units[i] @ units[j])
    found |= {"gnc2/mean": np.mean(logs), "gnc2/min": np.min(logs), "gnc2/max": np.max(logs)}
    found |= {"nc1/cdnv": np.mean(ratios), "nc2/cos_mean": np.mean(cosines), "nc2/norm_mean": norms.mean()}
    if len(logs) > 1:
        found["gnc2/std"] = np.std(logs, ddof=1)
        found["gnc2/cov_abs"] = np.std(logs, ddof=1) / abs(np.mean(logs))
    found["nc2/equinorm"] = norms.std(ddof=1) / norms.mean()
    rows = np.isin(y, classes)
    spread = x[rows] - means[np.searchsorted(classes, y[rows])]
    found["nc1/within_trace"] = (spread**2).sum() / rows.sum()
    found["nc1/between_trace"] = (centred**2).sum() / len(classes)
    nearest = ((x[rows][:, None] - means[None]) ** 2).sum(2).argmin(1)
    found["nc4/nearest_accuracy"] = (nearest == np.searchsorted(classes, y[rows])).mean()
    if head is not None:
        w = np.asarray(head, dtype=np.float64)[classes]
        similarity = (w * units).sum(1) / np.linalg.norm(w, axis=1)
        found["unc3/mean"] = similarity.mean()
        found["unc3/cov_abs"] = similarity.std(ddof=1) / abs(similarity.mean())
        found["nc4/agreement"] = ((x[rows] @ w.T).argmax(1) == nearest).mean()
    return found


def assert_plain(metrics: dict, scope: str, expected: dict, tolerance: float = 1e-6) -> None:
    """``metrics`` of a run against `plain_metrics`."""
    found = metrics["family"][scope]
    names = set(expected) - {"total_tokens", "tokens"}
    for name in names:
        ours = math.nan if found[name] is None else found[name]
        same = math.isnan(ours) and math.isnan(expected[name])
        # The rounding of a mean near zero is amplified by the coefficient of variation once more.
        allowed = tolerance * max(1, abs(expected[name])) * (max(1, abs(expected[name])) if "cov" in name else 1)
        assert same or abs(ours - expected[name]) <= allowed, (scope, name, ours, expected[name])
    if scope == "overall":
        assert metrics["total_tokens"] == expected["total_tokens"]
        assert {int(token) for token in metrics["token_metrics"]} == set(expected["tokens"])
        for token, (rows, value) in expected["tokens"].items():
            one = metrics["token_metrics"][str(token)]
            assert one["num_samples"] == rows and abs(one["svd_entropy"] - value) <= tolerance
        if "gnc2/mean" in expected:
            chief = metrics["overall_metrics"]
            assert abs(chief["gnc2"] - expected["gnc2/mean"]) <= tolerance
            assert abs(chief["svd_entropy"] - expected["svd_entropy/overall"]) <= tolerance
            if "unc3/cov_abs" in expected:
                assert abs(chief["unc3"] - expected["unc3/cov_abs"]) <= tolerance * max(1, chief["unc3"] ** 2)
