"""A million rows within a budget, and every streaming metric as a float64 reference of plain sums has it."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from tests.features.million_rows import CLASSES, WIDTH, blocks, classifier

BUDGET = 2**28


def measured(rows, folder, **settings):
    command = [sys.executable, "-m", "tests.features.million_rows", str(rows), str(folder), json.dumps(settings)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def reference(rows):
    """Sums in float64, block by block, and what follows from them."""
    gram, counts = np.zeros((WIDTH, WIDTH)), np.zeros(CLASSES)
    sums, squares = np.zeros((CLASSES, WIDTH)), 0.0
    for features, ids in blocks(rows):
        x, y = features.double().numpy(), ids.numpy()
        gram += x.T @ x
        counts += np.bincount(y, minlength=CLASSES)
        sums += _summed(x, y)
        squares += (x**2).sum()
    chosen = counts >= 2
    means = sums[chosen] / counts[chosen, None]
    centred = means - means.mean(0)
    norms = np.linalg.norm(centred, axis=1)
    units = centred / norms[:, None]
    upper = np.triu_indices(len(units), 1)
    logs = -0.5 * np.log(2 - 2 * (units @ units.T)[upper])
    w = classifier().double().numpy()[chosen]
    cosines = (w * units).sum(1) / np.linalg.norm(w, axis=1)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    p = values / values.sum()
    return {
        "svd_entropy/overall": -(p * np.log(p + 1e-10)).sum(),
        "gnc2/mean": logs.mean(),
        "gnc2/std": logs.std(ddof=1),
        "unc3/mean": cosines.mean(),
        "unc3/std": cosines.std(ddof=1),
        "nc2/norm_mean": norms.mean(),
        "nc2/equinorm": norms.std(ddof=1) / norms.mean(),
        "nc1/within_trace": (squares - (sums**2).sum(1) @ (1 / counts.clip(1))) / counts[chosen].sum(),
        "nc1/between_trace": (centred**2).sum() / len(means),
    }, counts[chosen]


def _summed(x, y):
    order = y.argsort(kind="stable")
    found, starts = np.unique(y[order], return_index=True)
    table = np.zeros((CLASSES, WIDTH))
    table[found] = np.add.reduceat(x[order], starts)
    return table


def check(found, rows):
    expected, counts = reference(rows)
    assert found["total_tokens"] == rows and found["count"] == counts.tolist()
    for name, value in expected.items():
        # GNC2's pairs are taken in float32.
        tolerance = 1e-6 if name.startswith("gnc2") else 1e-9
        assert math.isclose(found["family"]["overall"][name], value, rel_tol=tolerance, abs_tol=tolerance), name
    assert found["counts"]["n_dropped_rows"] == 0 and found["held"]["host"] <= BUDGET


def test_some_rows(tmp_path):
    check(measured(6000, "", host_bytes=2**24), 6000)


@pytest.mark.slow
def test_a_million_rows_of_512_within_256_megabytes():
    found = measured(10**6, "", host_bytes=BUDGET)
    print({name: found[name] for name in ("peak_collecting", "peak", "held")})
    assert found["peak"] < BUDGET
    check(found, 10**6)


@pytest.mark.slow
def test_all_of_many_rows_on_disk_within_256_megabytes(tmp_path):
    found = measured(2 * 10**5, tmp_path / "spill", host_bytes=BUDGET, max_samples_per_class=None)
    print({name: found[name] for name in ("peak_collecting", "peak", "held")})
    assert found["held"]["disk"] == 2 * 10**5 * (WIDTH * 4 + 16) and found["peak"] < BUDGET
    check(found, 2 * 10**5)
    assert found["sampled"] == {str(i): int(n) for i, n in enumerate(found["count"])}
    assert not list((tmp_path / "spill").iterdir())
