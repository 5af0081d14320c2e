"""The pure functions against plain formulas, closed forms and invariances."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_hass.errors import UserError
from lit_hass.metrics.functional import (
    Moments,
    cdnv,
    debiased_cka,
    etf_error,
    gnc2,
    gnc2_statistics,
    lidar,
    linear_cka,
    mean_cosine,
    nc4_counts,
    pinv_ratio,
    product_statistics,
    structure_error,
    unc3,
)
from lit_hass.numerics import plain_numbers


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def simplex(k):
    return torch.eye(k, dtype=torch.float64) - 1 / k


def test_moments_merge_to_those_of_all_numbers():
    values = normal(1000) + 5
    merged = Moments()
    for part in values.split([1, 0, 500, 499]):
        merged = merged.merged(Moments.of(part))
    for reduction, expected in (("var", values.var()), ("std", values.std()), ("cov", values.std() / values.mean())):
        assert merged.reduced(reduction) == pytest.approx(float(expected), rel=1e-12)
    assert merged.reduced("var", 0) == pytest.approx(float(values.var(correction=0)), rel=1e-12)
    assert (merged.reduced("min"), merged.reduced("max")) == (float(values.min()), float(values.max()))
    assert Moments.of(torch.tensor([2.0])).reduced("var") == 0
    assert math.isnan(Moments().reduced("mean")) and Moments().reason_undefined("var") == "there are no values"
    assert math.isnan(Moments.of(torch.tensor([1.0, -1.0])).reduced("cov_abs"))
    with pytest.raises(UserError, match="median"):
        merged.reduced("median")


@pytest.mark.parametrize("k", [2, 3, 7, 40])
def test_a_simplex_is_collapsed(k):
    means = simplex(k) * 3 + 11
    found = gnc2_statistics(means, tile=3)
    assert found.moments.mean == pytest.approx(-0.5 * math.log(2 * k / (k - 1)), abs=1e-12)
    assert found.moments.count == k * (k - 1) // 2
    assert found.moments.reduced("std") == pytest.approx(0, abs=1e-12)
    assert float(etf_error(means)) == pytest.approx(0, abs=1e-7)
    assert product_statistics(means).moments.mean == pytest.approx(-1 / (k - 1))
    weights = simplex(k)
    assert float(unc3(means, 5 * weights)) == pytest.approx(0, abs=1e-12)
    assert float(unc3(means, weights, "mean")) == pytest.approx(1)
    assert float(structure_error(weights, means - means.mean(0))) == pytest.approx(0, abs=1e-7)


def plain_kernel(means, kernel=lambda d: -math.log(d) if d else math.inf):
    unit = means - means.mean(0)
    unit = unit / unit.norm(dim=1, keepdim=True)
    return [kernel(float((a - b).norm())) for i, a in enumerate(unit) for b in unit[i + 1 :]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_gnc2_is_the_double_loop(dtype, tolerance):
    means = normal(41, 6)
    means[20:25] = means[:5] + 1e-4 * normal(5, 6, seed=1)  # near: products alone would lose these
    values = torch.tensor(plain_kernel(means), dtype=torch.float64)
    found = gnc2_statistics(means, tile=16, tile_dtype=dtype).moments
    assert found.count == len(values)
    for reduction, expected in (("mean", values.mean()), ("var", values.var()), ("max", values.max())):
        assert found.reduced(reduction) == pytest.approx(float(expected), rel=tolerance, abs=tolerance)
    riesz = gnc2_statistics(means, kernel="riesz", exponent=2, tile=16, tile_dtype=dtype).moments
    expected = torch.tensor(plain_kernel(means, lambda d: d**-2), dtype=torch.float64).mean()
    assert riesz.mean == pytest.approx(float(expected), rel=10 * tolerance)


def test_duplicates_are_counted_never_hidden():
    means = normal(9, 4)
    means[5] = means[2]
    means[7] = means[2] + 1e-9
    others = [v for v in plain_kernel(means) if v < math.log(1e6)]
    for rule, expected in (
        ("skip", sum(others) / 33),
        ("clamp", (sum(others) + 3 * math.log(1e6)) / 36),
        ("inf", math.inf),
    ):
        for tile in (2, 512):
            found = gnc2_statistics(means, duplicates=rule, tile=tile)
            assert found.duplicates == 3 and found.moments.mean == pytest.approx(expected, rel=1e-9)
    assert found.moments.count == 36 and math.isnan(found.moments.reduced("var"))
    same = gnc2_statistics(torch.ones(4, 2) * torch.tensor([1.0, 1.0, -1.0, -1.0])[:, None])
    assert same.duplicates == 2 and same.moments.count == 4
    middle = gnc2_statistics(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]]))
    assert middle.zero_rows == 1 and middle.moments.mean == pytest.approx(-math.log(2))
    for few in (torch.zeros(0, 3), torch.ones(1, 3), torch.ones(5, 3)):
        assert math.isnan(float(gnc2(few)))


def test_no_tensor_of_all_pairs_is_made():
    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor):
                    self.numbers = max(self.numbers, tensor.numel())
            return result

    means = normal(3000, 8)
    with Largest() as largest:
        gnc2_statistics(means)
        product_statistics(means)
    assert largest.numbers <= 512 * 512  # of 9,000,000 entries


def test_invariances():
    means, head = normal(30, 5), normal(30, 5, seed=1)
    turn = torch.linalg.qr(normal(5, 5, seed=2)).Q
    order = torch.randperm(30, generator=torch.Generator().manual_seed(3))
    for changed, weights in (
        (7 * means, head),
        (means @ turn, head @ turn),
        (means + 9, head),
        (means[order], head[order]),
    ):
        assert float(gnc2(changed)) == pytest.approx(float(gnc2(means)), rel=1e-10)
        assert float(unc3(changed, weights)) == pytest.approx(float(unc3(means, head)), rel=1e-10)


def test_cdnv_and_scatter_are_the_plain_formulas():
    means, variances = normal(12, 4), normal(12, seed=4).abs()
    values = [
        float((variances[i] + variances[j]) / 2 / (means[i] - means[j]).square().sum())
        for i in range(12)
        for j in range(i + 1, 12)
    ]
    assert float(cdnv(means, variances)) == pytest.approx(sum(values) / len(values))
    within = normal(20, 4, seed=5).T @ normal(20, 4, seed=5)
    m = means - means.mean(0)
    between = m.T @ m / 12
    assert float(pinv_ratio(within, m)) == pytest.approx(float((torch.linalg.pinv(between) @ within).trace() / 12))
    few = m[:3] - m[:3].mean(0)  # rank 2 of 4
    expected = (torch.linalg.pinv(few.T @ few / 3, rtol=1e-10) @ within).trace() / 3
    assert float(pinv_ratio(within, few)) == pytest.approx(float(expected), rel=1e-9)
    root = torch.linalg.inv(within + 1e-4 * torch.eye(4))
    p = torch.linalg.eigvals(root @ between).real
    p = p / p.sum()
    assert float(lidar(within, m)) == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-9)
    s = few @ normal(3, 4, seed=6).T
    target = simplex(3)
    expected = (s / s.norm() - target / math.sqrt(2)).norm()
    assert float(structure_error(few, normal(3, 4, seed=6))) == pytest.approx(float(expected), abs=1e-12)


def test_nc4_is_counted_row_by_row():
    rows, means, head = normal(200, 5), normal(9, 5, seed=1), normal(15, 5, seed=2)
    class_ids = torch.tensor([0, 2, 3, 5, 7, 8, 11, 12, 14])
    ids = torch.randint(0, 15, (200,), generator=torch.Generator().manual_seed(3))
    expected = torch.zeros(9, 6, dtype=torch.int64)
    for row, token in zip(rows, ids.tolist(), strict=True):
        if token in class_ids.tolist():
            place = class_ids.tolist().index(token)
            nearest = int((row - means).norm(dim=1).argmin())
            linear, vocab = int((head[class_ids] @ row).argmax()), int((head @ row).argmax())
            hits = [
                True,
                linear == nearest,
                vocab == class_ids[nearest],
                nearest == place,
                linear == place,
                vocab == token,
            ]
            expected[place] += torch.tensor(hits, dtype=torch.int64)
    assert torch.equal(nc4_counts(rows, ids, class_ids, means, head[class_ids], head), expected)
    only = nc4_counts(rows, ids, class_ids, means)
    assert torch.equal(only[:, [0, 3]], expected[:, [0, 3]]) and int(only[:, [1, 2, 4, 5]].sum()) == 0


def test_cka_and_mean_cosine_are_the_plain_formulas():
    x = normal(30, 4)
    y = x @ normal(4, 6, seed=1) + normal(30, 6, seed=2) + 3
    k, m = (z @ z.T for z in (x - x.mean(0), y - y.mean(0)))
    assert float(linear_cka(x, y)) == pytest.approx(float((k * m).sum() / k.norm() / m.norm()))

    def hsic(k, m):  # Song et al. 2012, equation 5
        k, m, n = k.clone().fill_diagonal_(0), m.clone().fill_diagonal_(0), len(k)
        product = (k @ m).trace() + k.sum() * m.sum() / (n - 1) / (n - 2) - 2 * (k @ m).sum() / (n - 2)
        return product / n / (n - 3)

    expected = hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()
    assert float(debiased_cka(x, y)) == pytest.approx(float(expected))
    assert math.isnan(float(debiased_cka(x[:3], y[:3]))) and math.isnan(float(linear_cka(x, torch.ones(30, 2))))
    unit = torch.nn.functional.normalize(x)
    cosines = (unit @ unit.T)[torch.ones(30, 30).triu(1).bool()]
    assert float(mean_cosine(torch.cat((x, torch.zeros(3, 4))))) == pytest.approx(float(cosines.mean()))


def test_fast_matrix_products_are_off_only_inside():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        inside = torch.backends.cuda.matmul
        name = "fp32_precision" if hasattr(inside, "fp32_precision") else "allow_tf32"
        outside = getattr(inside, name)
        with plain_numbers():
            assert getattr(inside, name) in ("ieee", False)
        assert getattr(inside, name) == outside and torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
