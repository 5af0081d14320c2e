"""States: precision, growth, reset, copies, pickles, saved states, inference mode, bad input."""

import copy
import logging
import math
import pickle

import pytest
import torch
from torch import nn

from lit_hass.decoding import TokenState
from lit_hass.errors import UserError
from lit_hass.metrics import GNC2, UNC3, ClassStatistics, CollapseMetrics, SVDEntropy
from lit_hass.metrics.accumulator import STATE_NAMES
from tests.metrics.synthetic import CLASSES, PAIRED, SPECIAL, WIDTH, make, part

COMMON = {"num_features": WIDTH, "ignore_ids": SPECIAL}


def everything(**more) -> CollapseMetrics:
    head = make()["lm_head"]
    return CollapseMetrics(**COMMON, classifier=head, keep_rows=True, num_paired_features=PAIRED, **more)


def numbers(metric) -> dict[str, float]:
    return {name: float(value) for name, value in metric.compute().items()}


def fed(metric, *slices):
    data = make()
    for rows in slices or (slice(0, 600),):
        metric.update(**part(data, rows))
    return metric


def same(ours, theirs, tolerance=1e-9):
    assert ours.keys() == theirs.keys() and len(theirs) > 60
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), name


def test_state_codes_are_those_of_the_decoders():
    assert tuple(state.name.lower() for state in TokenState) == STATE_NAMES


def test_statistics_are_the_plain_ones():
    data = make(offset=1000.0)
    metric = ClassStatistics(**COMMON)
    for rows in torch.arange(600).split(37):
        metric.update(**part(data, rows, "features", "token_ids"))
    result = metric.compute()
    keep = data["token_ids"] > max(SPECIAL)
    x, ids = data["features"][keep].double(), data["token_ids"][keep]
    assert result["class_ids"].tolist() == sorted(set(ids.tolist()))
    for row, token in enumerate(result["class_ids"].tolist()):
        rows = x[ids == token]
        assert int(result["class_counts"][row]) == len(rows)
        torch.testing.assert_close(result["class_means"][row], rows.mean(0), rtol=1e-12, atol=0)
        spread = rows.sub(rows.mean(0)).square().sum(1).mean()
        torch.testing.assert_close(result["class_variances"][row], spread, rtol=1e-9, atol=1e-9)
    centred = x - x.mean(0)
    torch.testing.assert_close(result["scatter"], centred.T @ centred, rtol=1e-11, atol=1e-9)
    torch.testing.assert_close(result["mean"], x.mean(0), rtol=1e-13, atol=0)
    assert int(result["num_rows"]) == len(x)


def test_batches_and_order_do_not_matter():
    whole = numbers(fed(everything()))
    same(numbers(fed(everything(), slice(0, 1), slice(1, 1), slice(1, 590), slice(590, 600))), whole)
    data, order = make(), torch.randperm(600, generator=torch.Generator().manual_seed(1))
    shuffled = everything()
    shuffled.update(**part(data, order))
    same(numbers(shuffled), whole, 1e-8)


def test_merging_far_parts_of_different_shift():
    data = make(offset=500.0)
    whole, parts = everything(), [everything() for _ in range(3)]
    whole.update(**part(data, slice(0, 600)))
    for metric, rows in zip(parts, (slice(0, 3), slice(3, 3), slice(3, 600)), strict=True):
        metric.update(**part(data, rows))
    parts[1].merge_state(parts[0])
    parts[1].merge_state(parts[2])
    ours, theirs = numbers(parts[1]), numbers(whole)
    same(ours, theirs, 1e-8)
    assert parts[1].compute_details()["n_rows"] == whole.compute_details()["n_rows"]
    with pytest.raises(ValueError, match="cannot take in"):
        whole.merge_state(GNC2(**COMMON))
    with pytest.raises(ValueError, match="not the states"):
        whole.merge_state(GNC2(**COMMON).metric_state)


@pytest.mark.parametrize("cast", [lambda m: m.to(torch.bfloat16), lambda m: m.bfloat16(), lambda m: m.half()])
def test_float64_survives_every_cast(cast):
    holder = nn.Module()
    holder.layer, holder.metric = nn.Linear(2, 2), everything()
    fed(holder.metric, slice(0, 300))
    cast(holder)
    assert holder.layer.weight.dtype != torch.float32
    fed(holder.metric, slice(300, 600))
    dtypes = {v.dtype for v in holder.metric.metric_state.values() if isinstance(v, torch.Tensor)}
    assert dtypes == {torch.float64, torch.int64}
    same(numbers(holder.metric), numbers(fed(everything())))
    holder.metric.reset()
    cast(holder)
    same(numbers(fed(holder.metric)), numbers(fed(everything())))


def test_half_precision_rows_are_their_values():
    data = make()
    low = {**data, "features": data["features"].bfloat16(), "paired_features": data["paired_features"].bfloat16()}
    high = {**low, "features": low["features"].double(), "paired_features": low["paired_features"].double()}
    one, two = everything(), everything()
    one.update(**part(low, slice(0, 600)))
    two.update(**part(high, slice(0, 600)))
    same(numbers(one), numbers(two))
    assert {block.dtype for block in one.row_blocks} == {torch.bfloat16}


def test_reset_leaves_nothing():
    metric = fed(everything())
    metric.compute()
    metric.reset()
    assert sum(v.numel() for v in metric.metric_state.values() if isinstance(v, torch.Tensor)) < 60
    left = {name: value for name, value in metric._copy_state_dict().items() if name != "rules_code"}
    assert not metric.row_blocks and not any(float(v.sum()) for v in left.values() if len(v))
    data = make(seed=5)
    other = everything()
    for m in (metric, other):
        m.update(**part(data, slice(0, 300)))
    same(numbers(metric), numbers(other))


def test_copies_and_pickles():
    head = make()["lm_head"]
    metric = fed(CollapseMetrics(**COMMON, classifier=lambda: head, keep_rows=True, num_paired_features=PAIRED))
    whole = numbers(metric)
    clone = metric.clone()
    again = pickle.loads(pickle.dumps(metric))
    metric.reset()
    same(numbers(clone), whole)
    again._computed = None
    with pytest.raises(UserError, match="set_classifier"):
        again.compute()
    again.set_classifier(head)
    same(numbers(again), whole)
    fed(clone)
    assert clone.compute_details()["n_rows"] == 2 * again.compute_details()["n_rows"]
    kept = pickle.loads(pickle.dumps(fed(everything())))
    same(numbers(kept), whole)
    assert copy.deepcopy(kept)._rows._held is not None and not list(kept.parameters())


def test_resumed_from_a_state_dict():
    metric = fed(everything(), slice(0, 250))
    assert not metric.state_dict()  # like every torchmetrics state, only when asked for
    metric.persistent(True)
    saved = metric.state_dict()
    fresh = everything()
    fresh.load_state_dict(dict(saved))
    fed(fresh, slice(250, 600))
    same(numbers(fresh), numbers(fed(everything())))
    assert int(metric.row_counts[0]) < 250  # the saved tensors are copies
    with pytest.raises(UserError, match="another number of features"):
        GNC2(num_features=3).load_state_dict({k: v for k, v in saved.items() if k.startswith("class_")})


def test_inference_mode_and_forward():
    metric = everything()
    with torch.inference_mode():
        metric.reset()
        fed(metric, slice(0, 300))
        metric.compute()
    fed(metric, slice(300, 600))
    same(numbers(metric), numbers(fed(everything())))
    data, gnc2 = make(), GNC2(**COMMON)
    first = gnc2(**part(data, slice(0, 300), "features", "token_ids"))
    second = gnc2(**part(data, slice(300, 600), "features", "token_ids"))
    for value, rows in ((first, slice(0, 300)), (second, slice(300, 600)), (gnc2.compute(), slice(0, 600))):
        alone = GNC2(**COMMON)
        alone.update(**part(data, rows, "features", "token_ids"))
        assert float(value) == pytest.approx(float(alone.compute()), abs=1e-12)


def test_rows_that_do_not_count_are_counted(caplog):
    data = make()
    data["features"][3, 2], data["features"][7, 0], data["paired_features"][11, 1] = math.nan, math.inf, -math.inf
    data["token_ids"][[3, 7, 11]] = 9
    metric = everything(min_samples=1)
    with caplog.at_level(logging.WARNING):
        metric.update(**part(data, slice(0, 300)))
        metric.update(**part(data, slice(300, 600)))
    assert sum("not finite" in message for message in caplog.messages) == 1
    details = metric.compute_details()
    ids = data["token_ids"]
    special, ignored = int(torch.isin(ids, torch.tensor(SPECIAL)).sum()), int((ids == -100).sum())
    assert (details["n_nonfinite"], details["n_special"], details["n_ignored"]) == (3, special, ignored)
    assert details["n_rows"] + 3 + special + ignored == 600
    good = torch.ones(600, dtype=torch.bool)
    good[[3, 7, 11]] = False
    clean = everything(min_samples=1)
    clean.update(**part(data, good))
    same(numbers(metric), numbers(clean))
    strict = everything(nan_strategy="error")
    with pytest.raises(ValueError, match="3 feature rows"):
        strict.update(**part(data, slice(0, 300)))
    assert strict.row_counts.sum() == 0


def test_a_first_batch_of_bad_rows():
    metric = GNC2(num_features=2, min_samples=1)
    metric.update(torch.full((3, 2), math.nan), torch.tensor([1, 2, 3]))
    metric.update(torch.full((0, 2), 1.0), torch.zeros(0, dtype=torch.int64))
    metric.update(torch.eye(2), torch.tensor([1, 2]))
    assert float(metric.compute()) == pytest.approx(-math.log(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": torch.zeros(4, 3)}, "features must be"),
        ({"features": torch.zeros(4, WIDTH, dtype=torch.int64)}, "floating"),
        ({"token_ids": torch.zeros(3, dtype=torch.int64)}, "token_ids must be"),
        ({"token_ids": torch.zeros(4)}, "token_ids must be"),
        ({"token_ids": torch.zeros(4, dtype=torch.bool)}, "token_ids must be"),
        ({"token_ids": torch.zeros(4, dtype=torch.complex64)}, "token_ids must be"),
        ({"token_ids": [5, 6, 5, 6]}, "token_ids must be a tensor, got list"),
        ({"features": None}, "features must be a tensor"),
        ({"token_ids": torch.tensor([1, 2, -1, 3])}, "out of range: -1"),
        ({"token_ids": torch.tensor([1, 2, CLASSES, 3])}, f"out of range: {CLASSES}"),
        ({"states": torch.tensor([0, 0, 5, 0])}, "a state is out of range: 5"),
        ({"states": torch.tensor([0, 0])}, "states must be"),
        ({"paired_features": torch.zeros(4, 2)}, "paired_features must be"),
    ],
)
def test_bad_rows_are_refused_and_change_nothing(change, message):
    rows = {"features": torch.ones(4, WIDTH), "token_ids": torch.tensor([5, 6, 5, 6])}
    metric = everything(num_classes=CLASSES)
    with pytest.raises(ValueError, match=message):
        metric.update(**{**rows, **change})
    assert int(metric.row_counts.sum()) == 0 and not metric.row_blocks


def test_bad_settings_are_refused():
    for make_one in (
        lambda: GNC2(2, reduction="median"),
        lambda: GNC2(2, kernel="gauss"),
        lambda: GNC2(2, duplicates="drop"),
        lambda: GNC2(2, global_mean="median"),
        lambda: GNC2(0),
        lambda: UNC3(2, classifier="means"),
        lambda: UNC3(2, classifier=3),
        lambda: UNC3(2, classifier=torch.eye(2), similarity="euclid"),
        lambda: SVDEntropy(2, power=3),
        lambda: SVDEntropy(2, base=10),
        lambda: SVDEntropy(2, method="power"),
        lambda: SVDEntropy(2, scope="token"),
        lambda: CollapseMetrics(2, nan_strategy="ignore"),
        lambda: CollapseMetrics(2, duplicates="none"),
        lambda: CollapseMetrics(2, correction=2),
        lambda: CollapseMetrics(2, max_classes=0),
        lambda: CollapseMetrics(2, num_classes=0),
        lambda: CollapseMetrics(2, exclude_states=("dropped",)),
        lambda: CollapseMetrics(2, state_names=("a", "a")),
        lambda: GNC2(2, correction=-1),
        lambda: UNC3(2, classifier=torch.eye(2), max_classes=-1),
        lambda: SVDEntropy(2, scope="class", method="tsqr"),
    ):
        with pytest.raises(UserError):
            make_one()
    with pytest.raises(ValueError, match="takes no paired_features"):
        GNC2(2).update(torch.eye(2), torch.arange(2), paired_features=torch.eye(2))
    for make_one in (lambda w: UNC3(2, classifier=w), lambda w: CollapseMetrics(2, classifier=w)):
        with pytest.raises(UserError, match="must be"):
            make_one(torch.eye(3))
        wrong = make_one(lambda: torch.eye(3))
        wrong.update(torch.rand(8, 2), torch.arange(8) % 2)
        with pytest.raises(UserError, match="must be"):
            wrong.compute()
    short = UNC3(3, classifier=torch.eye(3))
    short.update(torch.rand(8, 3), torch.arange(8) % 4)
    with pytest.raises(ValueError, match="token id 3 has no row"):
        short.compute()


def test_memory_does_not_grow_with_rows():
    metric = CollapseMetrics(num_features=8)
    ids, rows = torch.arange(500) % 50, torch.randn(500, 8)
    sizes = []
    for _ in range(40):
        metric.update(rows, ids)
        sizes.append(sum(v.numel() for v in metric.metric_state.values()))
    assert len(set(sizes)) == 1 and sizes[0] < 50 * 8 + 8 * 8 + 250
