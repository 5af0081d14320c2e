"""Either the old file or the whole new one; spilled rows can be cut back to what a snapshot knows."""

import errno
import os

import pytest
import torch

from lit_hass.errors import RunError
from lit_hass.features.snapshot import read_snapshot, write_snapshot
from lit_hass.features.spill import SpillShard

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def test_it_comes_back_as_it_was(tmp_path):
    base = torch.arange(12.0).view(3, 4)
    tensors = {"a": base, "b": base.T, "same": base, "none": torch.empty(0, 4, dtype=torch.bfloat16)}
    plain = {"x": [1, None, "é"], "y": {"z": 1.5}}
    size = write_snapshot(tmp_path / "s", tensors, plain)
    assert size == (tmp_path / "s").stat().st_size and list(tmp_path.iterdir()) == [tmp_path / "s"]
    found, again = read_snapshot(tmp_path / "s")
    assert again == plain and all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert found["none"].dtype == torch.bfloat16


def test_there_is_no_limit_to_what_it_says_of_many_answers(tmp_path):
    plain = {"chunks": ["x" * 1000] * 101_000}  # more than the format's header may have
    assert write_snapshot(tmp_path / "s", {"a": torch.ones(3)}, plain) > 10**8
    assert read_snapshot(tmp_path / "s")[1] == plain


def test_a_full_disk_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "s"
    write_snapshot(path, {"a": torch.ones(3)}, {"n": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match="No space left"):
            write_snapshot(path, {"a": torch.zeros(3)}, {"n": 2})
    assert read_snapshot(path)[1] == {"n": 1} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_cut_file_is_named(tmp_path, keep):
    path = tmp_path / "s"
    write_snapshot(path, {"a": torch.ones(30)}, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunError, match="s: is damaged or cut off"):
        read_snapshot(path)
    path.unlink()
    with pytest.raises(RunError, match="s: is gone"):
        read_snapshot(path)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_spilled_rows_come_back_bit_by_bit(tmp_path, dtype):
    shard = SpillShard(tmp_path, "kept", 5, dtype, 2**20)
    rows = torch.randn(7, 5).to(dtype)
    shard.append(rows[:3], torch.arange(3), torch.arange(3) - 9)
    shard.append(rows[3:], torch.arange(3, 7), torch.arange(3, 7) - 9)
    groups, keys = shard.index()
    for index in ([], [6], [2, 3, 4, 0, 6, 6, 5], list(range(7))):
        assert torch.equal(shard.gather(torch.tensor(index, dtype=torch.int64)), rows[index])
    assert torch.equal(shard.rows(), rows) and groups.tolist() == list(range(7)) and keys.tolist()[0] == -9
    assert shard.nbytes == 7 * (5 * rows.element_size() + 16) == sum(p.stat().st_size for p in tmp_path.iterdir())
    # What came after a snapshot is cut off.
    again = SpillShard(tmp_path, "kept", 5, dtype, 2**20)
    again.resume(4)
    assert torch.equal(again.rows(), rows[:4]) and len(again.index()[0]) == 4
    again.append(rows[:1], torch.tensor([8]), torch.tensor([8]))
    assert torch.equal(again.rows()[4], rows[0])
    with pytest.raises(RunError, match=r"kept.rows: is shorter than when it was written \(\d+ of \d+ bytes\)"):
        SpillShard(tmp_path, "kept", 5, dtype, 2**20).resume(6)
    again.rows_path.write_bytes(again.rows_path.read_bytes()[:-1])
    with pytest.raises(RunError, match="kept.rows: was cut off while the run went on"):
        again.gather(torch.tensor([4]))
    again.remove()
    assert not list(tmp_path.iterdir())


def test_a_write_that_stops_half_way_leaves_no_half_row(tmp_path, monkeypatch):
    shard = SpillShard(tmp_path, "kept", 5, torch.float32, 2**20)
    rows = torch.randn(4, 5)
    shard.append(rows[:2], torch.arange(2), torch.arange(2))

    def torn(file, tensor):
        file.write(b"abc")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("lit_hass.features.spill._write_all", torn)
        with pytest.raises(OSError, match="No space"):
            shard.append(rows[2:], torch.arange(2), torch.arange(2))
    assert len(shard) == 2 and torch.equal(shard.rows(), rows[:2])
    shard.append(rows[2:], torch.arange(2, 4), torch.arange(2, 4))
    assert torch.equal(shard.rows(), rows) and shard.index()[0].tolist() == [0, 1, 2, 3]


def test_the_budget_is_known_before(tmp_path):
    shard = SpillShard(tmp_path, "kept", 5, torch.float32, 36 * 10)
    assert shard.room(10) and not shard.room(11)
