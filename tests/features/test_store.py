"""Bounded at every moment, each row in exactly one place, and everything let go of at the end."""

import errno
import gc
import os
import weakref

import pytest
import torch

from lit_hass.errors import UserError
from lit_hass.features import CollapseConfig, FeatureStore

WIDTH = 16


class Sums:
    """A sink that adds up what it gets, and fails as it is told."""

    def __init__(self, most=None, error=None):
        self.rows, self.total, self.sizes = 0, torch.zeros(WIDTH, dtype=torch.float64), []
        self.most, self.error = most, error

    def __call__(self, block):
        if self.most is not None and len(block) > self.most:
            raise self.error
        self.rows += len(block)
        self.total += block.features.double().sum(0)
        self.sizes.append(len(block))


def some(n, start=0):
    chance = torch.Generator().manual_seed(start)
    return torch.randn(n, WIDTH, generator=chance), torch.randint(0, 5, (n,), generator=chance)


def test_each_tier_moves_when_it_is_full():
    sums = Sums()
    store = FeatureStore(WIDTH, CollapseConfig(save_every=10, max_buffer_size=30, max_samples_per_class=2), sums)
    seen = []
    for start in range(0, 48, 4):
        store.add_features(*some(4, start))
        held = store.nbytes()
        seen.append((held["device"] > 0, held["host"] > 0, sums.rows))
    assert seen[0] == (True, False, 0) and seen[2] == (False, True, 0) and seen[8][2] == 36
    store.consolidate()
    assert store.nbytes()["device"] == 0 and sums.rows == store.rows_added == 48
    assert store.nbytes()["host"] == store.kept.host_nbytes
    assert sum(len(rows) for rows, _ in store.iter_rows(3)) == 10  # two of each of five classes


def test_budgets_in_bytes_hold_however_many_rows_come_at_once():
    config = CollapseConfig(
        save_every=10**6, max_buffer_size=10**6, device_bytes=4096, host_bytes=2**20, max_samples_per_class=None
    )
    sums, peak = Sums(), {"device": 0, "host": 0}
    store = FeatureStore(WIDTH, config, sums)
    store.flush = lambda flush=store.flush: (
        peak.update({key: max(peak[key], value) for key, value in store.nbytes().items() if key in peak}),
        flush(),
    )
    features, ids = some(50000)
    store.add_features(features, ids)
    store.consolidate()
    # One piece of at most the budget comes on top before it is looked at.
    assert peak["device"] <= 2 * 4096 + 24 * 64 and peak["host"] <= 2**20 * 3 // 8 + 2**16
    assert torch.allclose(sums.total, features.double().sum(0)) and sums.rows == 50000
    assert store.kept.cap is not None and store.kept.host_nbytes <= 2**18


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "auto"])
def test_rows_are_stored_in_the_dtype_that_was_asked_for(dtype):
    seen = []
    store = FeatureStore(WIDTH, CollapseConfig(storage_dtype=dtype), lambda block: seen.append(block.features))
    features, ids = some(50)
    store.add_features(features, ids)
    store.consolidate()
    expected = features.to(store.storage_dtype(features.dtype))
    assert torch.equal(torch.cat(seen), expected)
    assert torch.equal(torch.cat([rows for rows, _ in store.iter_rows()]).sort(0).values, expected.sort(0).values)


def test_views_of_a_batch_do_not_keep_it_alive():
    batch = torch.randn(4, 100, WIDTH)
    alive = weakref.ref(batch)
    store = FeatureStore(WIDTH)
    store.add_features(batch[0, :3], torch.arange(3))
    del batch
    gc.collect()
    assert alive() is None and store.nbytes()["device"] == 3 * (4 * WIDTH + 16)


@pytest.mark.parametrize(
    "error", [MemoryError(), torch.OutOfMemoryError("CUDA"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_too_little_memory_splits_and_at_last_drops_what_is_counted(error):
    sums = Sums(3, error)
    store = FeatureStore(WIDTH, CollapseConfig(), sums)
    features, ids = some(50)
    store.add_features(features, ids)
    store.consolidate()
    assert sums.rows == 50 and max(sums.sizes) <= 3 and store.n_dropped_rows == 0
    assert torch.allclose(sums.total, features.double().sum(0))
    sums.most = 0
    store.add_features(*some(5))
    store.consolidate()
    assert sums.rows == 50 and store.n_dropped_rows == 5 and store.rows_added == 55
    # Dropped rows are not in the sample either.
    assert len(store.kept.index()[0]) == 50


def test_too_little_memory_ends_the_run_where_that_was_asked_for():
    store = FeatureStore(WIDTH, CollapseConfig(on_error="raise"), Sums(3, MemoryError()))
    store.add_features(*some(50))
    with pytest.raises(MemoryError):
        store.consolidate()
    assert store.n_dropped_rows == 50 and store.nbytes()["host"] == store.kept.host_nbytes == 0


def test_too_little_memory_for_the_sample_leaves_the_sums_right(monkeypatch):
    sums = Sums()
    store = FeatureStore(WIDTH, CollapseConfig(), sums)
    with monkeypatch.context() as patch:
        patch.setattr(store.kept, "add", lambda *args: (_ for _ in ()).throw(MemoryError()))
        store.add_features(*some(50))
        store.consolidate()
    store.add_features(*some(8, 1))
    store.consolidate()
    assert sums.rows == 58 and (store.n_dropped_rows, store.n_unsampled_rows) == (0, 50)
    assert len(store.kept.index()[0]) == 8


def test_an_error_of_the_sink_is_raised_and_every_row_is_accounted_for():
    sums = Sums()
    calls = []

    def fails_once(block):
        calls.append(len(block))
        if len(calls) == 2:
            raise ValueError("bad row")
        sums(block)

    store = FeatureStore(WIDTH, CollapseConfig(max_buffer_size=10**9, save_every=1000), fails_once)
    n = 2**20 // WIDTH * 2 + 7
    store.add_features(torch.ones(n, WIDTH), torch.zeros(n, dtype=torch.int64))
    with pytest.raises(ValueError, match="bad row"):
        store.consolidate()
    store.consolidate()
    assert sums.rows + store.n_dropped_rows == store.rows_added == n and store.n_dropped_rows == 2**20 // WIDTH


def test_rows_on_disk_are_all_there_and_leave_with_the_store(tmp_path):
    config = CollapseConfig(max_samples_per_class=None, spill_dir=str(tmp_path / "spill"), max_buffer_size=50)
    with FeatureStore(WIDTH, config) as store:
        for start in range(0, 200, 20):
            store.add_features(*some(20, start))
        store.consolidate()
        held = store.nbytes()
        assert held["host"] == held["device"] == 0 and held["disk"] == 200 * (WIDTH * 4 + 16)
        rows = torch.cat([rows for rows, _ in store.iter_rows(30)])
        assert torch.equal(rows, torch.cat([some(20, start)[0] for start in range(0, 200, 20)]))
    assert not list((tmp_path / "spill").iterdir())


@pytest.mark.parametrize("how", ["budget", "full"])
def test_a_disk_that_ends_turns_all_rows_into_a_sample(tmp_path, monkeypatch, caplog, how):
    budget = 90 * (WIDTH * 4 + 16) if how == "budget" else 2**30
    config = CollapseConfig(
        max_samples_per_class=None, spill_dir=str(tmp_path), max_buffer_size=20, save_every=20, disk_bytes=budget
    )
    store = FeatureStore(WIDTH, config)
    for start in range(0, 200, 20):
        if how == "full" and start == 100:

            def full(file, tensor):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

            monkeypatch.setattr("lit_hass.features.spill._write_all", full)
        store.add_features(*some(20, start))
    store.consolidate()
    assert ("used up" if how == "budget" else "No space left") in store.kept.spill_disabled
    assert "no longer go to the disk" in caplog.text
    rows = torch.cat([rows for rows, _ in store.iter_rows()])
    expected = torch.cat([some(20, start)[0] for start in range(0, 200, 20)])
    assert torch.equal(rows.sort(0).values, expected.sort(0).values)
    store.clear()
    assert not list(tmp_path.iterdir()) and sum(store.nbytes().values()) == 0


def test_an_error_within_lets_go_of_files_and_memory(tmp_path):
    config = CollapseConfig(max_samples_per_class=None, spill_dir=str(tmp_path), max_buffer_size=1)
    with pytest.raises(KeyboardInterrupt), FeatureStore(WIDTH, config) as store:
        store.add_features(*some(30))
        store.consolidate()
        assert list(tmp_path.iterdir())
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir()) and sum(store.nbytes().values()) == 0 and store.rows_added == 0


def test_a_sample_without_keys_says_so_and_ranks_do_not_share_keys():
    a, b = FeatureStore(WIDTH), FeatureStore(WIDTH, rank=1)
    for store in (a, b):
        store.add_features(*some(40))
        store.consolidate()
    assert not a.reproducible and not set(a.kept.index()[1].tolist()) & set(b.kept.index()[1].tolist())
    before = a.kept.index()[1].tolist()
    c = FeatureStore(WIDTH)
    c.merge(*a.state())
    c.add_features(*some(40, 1))
    c.consolidate()
    assert len(set(c.kept.index()[1].tolist())) == 80 > len(before) and not c.reproducible
    c.clear()
    c.add_features(*some(3), keys=torch.arange(3))
    assert c.reproducible


def test_shapes_that_do_not_fit_are_refused_before_anything_is_added():
    store = FeatureStore(WIDTH)
    features, ids = some(4)
    bad = [
        (features[:, :3], ids), (features, ids[:3]), (features.long(), ids), (features, ids.view(2, 2)),
        (features, ids, ids[:2]), (features, ids, None, ids[:1]), (features, ids, None, None, features[:2]),
    ]  # fmt: skip
    for arguments in bad:
        with pytest.raises(ValueError, match="must be"):
            store.add_features(*arguments)
    assert store.rows_added == 0
    store.add_features(features[:0], ids[:0])
    store.consolidate()
    assert [len(groups) for _, groups in store.iter_rows()] == []
    with pytest.raises(UserError, match="num_features"):
        FeatureStore(0)
