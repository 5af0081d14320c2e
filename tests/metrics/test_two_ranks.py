"""Two or three gloo processes give the numbers of one, whoever has the rows. Each case takes some seconds."""

import pytest

from tests.metrics.ranks import run_ranks
from tests.metrics.reference import needs_reference

pytestmark = pytest.mark.ddp

SAME = """
from lit_hass.metrics import CollapseMetrics, ClassStatistics, GNC2, SVDEntropy, UNC3
from tests.metrics.synthetic import make, part, CLASSES, PAIRED, SPECIAL, WIDTH

data = make(offset=30.0)
# who has which rows: uneven shares, in batches; the last rank may have none
SHARES = {"uneven": [[(0, 17), (17, 400)], [(400, 600)]], "empty": [[(0, 300), (300, 600)], []],
    "empty_first": [[], [(0, 600)], [(0, 0)]]}

def metrics():
    head, common = data["lm_head"], dict(num_features=WIDTH, ignore_ids=SPECIAL)
    everything = dict(keep_rows=True, nc4_vocabulary=True, num_paired_features=PAIRED)
    made = [CollapseMetrics(classifier=head, **everything, **common), CollapseMetrics(**common, min_samples=4),
        CollapseMetrics(classifier=lambda: head, max_classes=9, keep_rows=True, center=True, power=2, **common),
        GNC2(**common), UNC3(classifier=head, **common), SVDEntropy(**common), SVDEntropy(center=True, **common),
        SVDEntropy(**common, method="tsqr"), SVDEntropy(**common, method="tsqr", center=True),
        SVDEntropy(**common, scope="class"), ClassStatistics(**common)]
    return made

def feed(metric, start, stop):
    paired = isinstance(metric, CollapseMetrics) and metric._paired is not None
    names = ["features", "token_ids", "states"] + ["paired_features"] * paired
    metric.update(**part(data, slice(start, stop), *names))

def tensors_of(metric):
    states = metric.metric_state.values()
    return [x.clone() for v in states for x in ([v] if isinstance(v, torch.Tensor) else v)]

def flat(value):
    value = value if isinstance(value, dict) else {"value": value}
    return {k: v.double() for k, v in value.items()}

def same(ours, theirs, tolerance=1e-9):
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        a, b = ours[key].reshape(-1), value.reshape(-1)
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance, equal_nan=True), (key, a, b)

def work(rank):
    for name, shares in SHARES.items():
        if len(shares) != size:
            continue
        for metric, alone in zip(metrics(), metrics()):
            feed(alone, 0, 600)
            alone.sync_on_compute = alone._to_sync = False
            for start, stop in shares[rank]:
                feed(metric, start, stop)
            before = tensors_of(metric)
            expected = flat(alone.compute())
            same(flat(metric.compute()), expected)
            details = alone.compute_details()
            for key in ("n_rows", "n_ignored", "n_special", "classes_seen", "classes_eligible", "nc4"):
                assert metric.compute_details().get(key) == details.get(key), key
            # what this rank holds is its own again
            assert all(torch.equal(a, b) for a, b in zip(before, tensors_of(metric), strict=True))
            # the rows that come later count once
            for m, rows in ((metric, slice(rank * 200, (rank + 1) * 200)), (alone, slice(0, size * 200))):
                feed(m, rows.start, rows.stop)
            same(flat(metric.compute()), flat(alone.compute()))
            metric.reset(); alone.reset()
            feed(alone, 0, 100)
            if rank == 0:
                feed(metric, 0, 100)
            same(flat(metric.compute()), flat(alone.compute()))
"""

COUNTED = """
from lit_hass.metrics import CollapseMetrics
from tests.metrics.synthetic import make, part, CLASSES, PAIRED, SPECIAL, WIDTH

calls = []
def counted(name):
    real = getattr(dist, name)
    def call(tensor, *args, **kwargs):
        calls.append((name, tensor.numel() if isinstance(tensor, torch.Tensor) else len(tensor)))
        return real(tensor, *args, **kwargs)
    setattr(dist, name, call)

def work(rank):
    for name in ("all_reduce", "all_gather", "broadcast", "all_gather_object", "gather"):
        counted(name)
    data = make()
    metric = CollapseMetrics(num_features=WIDTH, classifier=data["lm_head"], ignore_ids=SPECIAL)
    metric.update(**part(data, slice(0, 50) if rank else slice(50, 600), "features", "token_ids"))
    assert not calls  # no collective in update: a rank may have no rows
    metric.compute()
    metric.compute_details()
    metric.compute()
    ids = data["token_ids"]
    seen = ids[ids > 1].unique().numel()
    vocabulary = int(ids.max()) + 1
    agree, shift, counters = 3 + 3, WIDTH + 1, 4
    table, grams, units = [seen, seen * WIDTH, seen], [1, WIDTH, WIDTH * WIDTH], [WIDTH, 2]
    expected = [agree, shift, counters, vocabulary, *table, *grams, *units]
    assert calls == [("all_reduce", n) for n in expected], calls

    del calls[:]
    metric = CollapseMetrics(num_features=WIDTH, ignore_ids=SPECIAL, keep_rows=True)
    metric.update(**part(data, slice(0, 50) if rank else slice(50, 600), "features", "token_ids"))
    metric.compute()
    # every rank's rows once, and then two columns per class, and the agreement of the classifiers
    rows = [int((ids[s] > 1).sum()) for s in (slice(50, 600), slice(0, 50))]
    sent = [n for name, n in calls if name == "broadcast"]
    assert sent == [rows[0] * WIDTH * 4, rows[0] * 8, rows[1] * WIDTH * 4, rows[1] * 8], sent
    assert not [name for name, _ in calls if name not in ("all_reduce", "broadcast")]
"""

FAILING = """
import contextlib
import pytest
from lit_hass.errors import RunError, UserError
from lit_hass.metrics import CollapseMetrics, GNC2, UNC3

def head():
    raise OSError("the head is gone")

def work(rank):
    rows, ids = torch.eye(4), torch.arange(4) // 2
    metric = UNC3(num_features=4, classifier=head if rank else torch.eye(4))
    metric.update(rows, ids)
    with pytest.raises(OSError if rank else RunError, match="gone" if rank else "another rank"):
        metric.compute()
    # its own sums are still its own
    metric.set_classifier(torch.eye(4))
    metric.compute()
    assert metric.compute_details()["n_rows"] == 4 * size

    metric = CollapseMetrics(num_features=4, keep_rows=True, classifier=torch.eye(4)[: 4 if rank else 1])
    metric.update(rows, ids)
    with pytest.raises(RunError if rank else ValueError, match="another rank" if rank else "no row in a classifier"):
        metric.compute()
    metric.set_classifier(torch.eye(4))
    metric.compute()
    assert metric.compute_details()["n_rows"] == 4 * size

    # compute() itself fails on one rank, inside torchmetrics' sync
    metric = CollapseMetrics(num_features=4, classifier=torch.eye(4)[: 4 if rank else 1])
    metric.update(rows, ids)
    with pytest.raises(ValueError, match="no row in a classifier") if not rank else contextlib.nullcontext():
        metric.compute()
    assert metric.row_counts.tolist() == [4, 0, 0, 0] and not metric._is_synced
    metric.set_classifier(torch.eye(4))
    metric.compute()
    assert metric.compute_details()["n_rows"] == 4 * size

    for metric in (GNC2(num_features=3 + rank), GNC2(num_features=3, ignore_ids=[rank])):
        with pytest.raises(RunError, match="different metrics or settings"):
            metric.compute()
"""

REFERENCE = """
from lit_hass.metrics import CollapseMetrics
from tests.metrics.reference import check, load

def work(rank):
    tensors, expected = load()
    for shares in ([range(0, 1100), range(1100, 1500)], [range(1500), range(0)], [range(0), range(1500)]):
        special, head = (0, 1, 2, 3), tensors["lm_head"]
        metrics = CollapseMetrics(num_features=32, classifier=head, ignore_ids=special, keep_rows=True,
            nc4_vocabulary=True)
        for rows in torch.tensor(shares[rank], dtype=torch.int64).split(450):
            metrics.update(tensors["features"][rows], tensors["token_ids"][rows])
        assert check(expected, metrics.compute(), metrics.compute_details()) > 300
"""


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_give_the_numbers_of_one_process(tmp_path, size):
    run_ranks(SAME, tmp_path, size)


def test_one_sync_moves_each_state_once(tmp_path):
    run_ranks(COUNTED, tmp_path)


def test_a_failing_rank_fails_everywhere_and_changes_nothing(tmp_path):
    run_ranks(FAILING, tmp_path)


@needs_reference
def test_reference_values_on_two_ranks(tmp_path):
    run_ranks(REFERENCE, tmp_path)
