import json
import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
from lightning.pytorch import seed_everything
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import LlamaModel

from lit_hass.data.batches import collate
from lit_hass.errors import UserError
from lit_hass.models import load_base
from lit_hass.modules.feature_cache import FeatureCache, FeatureCacheConfig, base_digest
from lit_hass.modules.frozen_base import FrozenBase
from tests.door.conftest import ROOT, door  # noqa: F401  # fixture
from tests.modules.test_draft_training import _Data, module, trainer

BIG = 2**30


def sequences(count, seed=0, width=8):
    """Pairs of ids and features, no two alike."""
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        ids = torch.randint(3, 500, (5 + i % 7,), generator=generator)
        yield ids, torch.randn(len(ids), width, generator=generator)


def filled(folder, pairs, base="a base", **more):
    cache = FeatureCache(folder, base, **{"max_bytes": BIG, **more})
    for ids, features in pairs:
        cache.add(ids, features)
    cache.close()
    return cache


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_what_is_read_is_what_was_added(tmp_path, dtype):
    pairs = [(ids, features.to(dtype)) for ids, features in sequences(40)]
    cache = FeatureCache(tmp_path, "a base", BIG, shard_bytes=4000, dtype=dtype)
    for ids, features in pairs:
        assert cache.get(ids) is None
        cache.add(ids, features)
        assert torch.equal(cache.get(ids), features)  # also while it is in memory only
    cache.close()
    assert len(shards(tmp_path)) > 1
    for again in (cache, FeatureCache(tmp_path, "a base", BIG, dtype=dtype)):
        assert len(again) == 40
        for ids, features in pairs:
            found = again.get(ids)
            assert found.dtype == dtype and torch.equal(found, features)
            assert again.get(ids[:-1]) is None


def test_a_narrower_dtype_rounds_and_is_another_cache(tmp_path):
    (ids, features), *_ = pairs = list(sequences(3))
    narrow = filled(tmp_path, pairs, dtype=torch.float16)
    assert torch.equal(narrow.get(ids), features.half())
    assert FeatureCache(tmp_path, "a base", BIG, dtype=torch.float32).get(ids) is None


def test_a_shard_is_written_when_it_is_full_and_the_memory_let_go(tmp_path):
    cache = FeatureCache(tmp_path, "a base", BIG, shard_bytes=3000)
    for ids, features in sequences(60):
        cache.add(ids, features)
        assert sum(row.nbytes for row in cache._pending.values()) < 3000
    sizes = [path.stat().st_size for path in shards(tmp_path)]
    assert len(sizes) > 5 and max(sizes) < 2 * 3000


@pytest.mark.parametrize("shard", [3000, 64 * 2**20])  # the bound may lie below a shard
def test_the_bound_holds_and_is_said_once(tmp_path, caplog, shard):
    pairs = list(sequences(200))
    with caplog.at_level(logging.WARNING):
        cache = filled(tmp_path, pairs, max_bytes=20_000, shard_bytes=shard)
    assert 15_000 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000
    assert [record.message for record in caplog.records if "used up" in record.message] == [
        f"feature cache {tmp_path}: its 0.00 GiB are used up; {len(cache)} sequences stay in use, nothing more is added"
    ]
    assert 20 < len(cache) < 200
    kept = [torch.equal(found, features) for ids, features in pairs if (found := cache.get(ids)) is not None]
    assert len(kept) == len(cache) and all(kept)
    # A run that finds it full reads it, and leaves it as it is.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    again = filled(tmp_path, pairs, max_bytes=20_000)
    assert len(again) == len(cache) and {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_two_writers_keep_the_bound_together(tmp_path):
    one, two = (FeatureCache(tmp_path, "a base", 20_000, shard_bytes=3000, rank=rank) for rank in (0, 1))
    for mine, others in zip(sequences(200, seed=1), sequences(200, seed=2), strict=True):
        one.add(*mine)
        two.add(*others)
    one.close()
    two.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000
    assert len(one) > 10 and len(two) > 10


def test_two_writers_share_a_folder(tmp_path):
    mine, others = list(sequences(20, seed=1)), list(sequences(20, seed=2))
    one, two = (FeatureCache(tmp_path, "a base", BIG, shard_bytes=2000, rank=rank) for rank in (0, 1))
    for a, b in zip(mine, others, strict=True):
        one.add(*a)
        one.add(*b)  # both may have the same sequence
        two.add(*b)
    one.close()
    two.close()
    assert two.get(mine[0][0]) is None  # what was not there at start is not seen
    after = FeatureCache(tmp_path, "a base", BIG)
    assert len(after) == 40
    assert all(torch.equal(after.get(ids), features) for ids, features in mine + others)


# Killed between the whole temporary file of its third shard and its move into place.
KILLED = """
import os, signal, sys
from tests.modules.test_feature_cache import FeatureCache, sequences
replace, moves = os.replace, []
def once_more(source, target):
    moves.append(target)
    if len(moves) == 3:
        os.truncate(source, os.path.getsize(source) // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = once_more
cache = FeatureCache(sys.argv[1], "a base", 2**30, shard_bytes=3000)
for pair in sequences(100):
    cache.add(*pair)
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_killed_in_the_middle_and_resumed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False)
    assert process.returncode == -signal.SIGKILL
    (half,), written = tmp_path.glob(".features-*"), shards(tmp_path)
    before = [path.read_bytes() for path in written]
    # That of a process that lives is not touched: this one's, and one of another host until it is old.
    alive = tmp_path / half.name.replace(f".{half.name.split('@')[0].rsplit('.', 1)[1]}@", f".{os.getpid()}@")
    elsewhere = tmp_path / half.name.replace("@", "@elsewhere-")
    old = tmp_path / half.name.replace("@", "@long-ago-")
    for path in (alive, elsewhere, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    cache = FeatureCache(tmp_path, "a base", BIG, shard_bytes=3000)
    assert set(tmp_path.glob(".features-*")) == {alive, elsewhere}
    assert (known := len(cache)) == sum(len(load_file(path)) for path in written) >= 10
    pairs = list(sequences(100))
    assert all(torch.equal(cache.get(ids), features) for ids, features in pairs[:known])
    for ids, features in pairs:
        cache.add(ids, features)
    cache.close()
    after = FeatureCache(tmp_path, "a base", BIG)
    assert len(after) == 100 and all(torch.equal(after.get(ids), features) for ids, features in pairs)
    assert len(before) == 2 and [path.read_bytes() for path in written] == before
    assert sum(len(load_file(path)) for path in shards(tmp_path)) == 100


def test_another_base_is_refused(tmp_path):
    filled(tmp_path, sequences(3))
    with pytest.raises(UserError, match=r"rank0-.*safetensors: holds features of another base \(a base\).*\(b base\)"):
        FeatureCache(tmp_path, "b base", BIG)


@pytest.mark.parametrize("damage", ["cut", "header", "empty"])
def test_a_damaged_shard_is_named(tmp_path, damage):
    filled(tmp_path, sequences(3))
    (path,) = shards(tmp_path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-10], "header": b"\xff" * 20 + data[20:], "empty": b""}[damage])
    with pytest.raises(UserError, match="damaged") as caught:
        FeatureCache(tmp_path, "a base", BIG)
    assert str(path) in str(caught.value)


def test_a_folder_of_something_else(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="model.safetensors: not a shard of a feature cache"):
        FeatureCache(tmp_path, "a base", BIG)


def test_pads_are_never_kept(tiny_base, tmp_path):
    ids = [list(range(10, 10 + length)) for length in (12, 7, 3)]
    batch = collate([(row, 0) for row in ids])
    base = FrozenBase(load_base(tiny_base), FeatureCache(tmp_path, "a base", BIG))
    lengths = batch.attention_mask.sum(1)
    features = base.features(batch.input_ids, lengths)
    base.cache.close()
    (path,) = shards(tmp_path)
    with safe_open(path, framework="pt") as shard:
        assert sorted(shard.get_slice(key).get_shape() for key in shard.keys()) == [[3, 32], [7, 32], [12, 32]]  # noqa: SIM118
    # Other pads do not make it another sequence, and what is read is padded with zeros.
    wide = torch.nn.functional.pad(batch.input_ids[1:], (0, 4), value=9)
    again = base.features(wide, lengths[1:])
    assert again.shape == (2, 16, 32) and bool((again[0, 7:] == 0).all()) and bool((again[1, 3:] == 0).all())
    assert torch.equal(again[0, :7], features[1, :7]) and torch.equal(again[1, :3], features[2, :3])


def test_a_batch_of_known_and_new_sequences(tiny_base, tmp_path):
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 500, (length,), generator=generator).tolist() for length in (30, 21, 9, 25, 4)]
    plain = FrozenBase(load_base(tiny_base))
    base = FrozenBase(load_base(tiny_base), FeatureCache(tmp_path, "a base", BIG))
    first, mixed = collate([(row, 0) for row in ids[:3]]), collate([(row, 0) for row in ids[1:]])
    assert torch.equal(base.features(first.input_ids, first.attention_mask.sum(1)), plain.features(first.input_ids))
    found = base.features(mixed.input_ids, mixed.attention_mask.sum(1))
    wanted = plain.features(mixed.input_ids)
    real = mixed.attention_mask.bool()
    assert (found - wanted)[real].abs().max() <= 1e-6 * wanted[real].abs().max()
    assert len(base.cache) == 5


@pytest.mark.parametrize("leak", [False, True])
def test_whole_batches_train_to_the_same_weights(tiny_base, tmp_path, leak):
    """Without a cache, with a cold one and with a warm one, to the bit; also with noise and with pads."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(10, 500, (5 + 3 * i,), generator=generator).tolist() for i in range(6)]
    batches = [collate([(row, 2) for row in rows[i : i + 2]]) for i in (0, 2, 4)]

    def weights(cache):
        seed_everything(5)
        model = module(tiny_base, feature_noise=0.1, feature_cache=cache, reference_softmax_leak=leak)
        trainer(tmp_path, max_steps=6, val_check_interval=3).fit(model, datamodule=_Data(batches))
        return model.draft.state_dict()

    config = FeatureCacheConfig(str(tmp_path / "features"), 0.1)
    without, cold, warm = weights(None), weights(config), weights(config)
    assert len(shards(tmp_path / "features")) == 1
    for key, value in without.items():
        assert torch.equal(value, cold[key]) and torch.equal(value, warm[key]), key


def test_the_digest_tells_bases_apart(tiny_base):
    model = load_base(tiny_base)
    known = base_digest(str(tiny_base), model)
    assert known == base_digest(str(tiny_base), load_base(tiny_base))
    assert known != base_digest(str(tiny_base), load_base(tiny_base, dtype="bfloat16"))
    with torch.no_grad():  # a merged adapter: one matrix, by little, and the file on the disk is not asked
        model.model.layers[1].self_attn.q_proj.weight += 1e-6
    assert known != base_digest(str(tiny_base), model)


@pytest.mark.parametrize(
    "values", [{"max_gib": 0}, {"max_gib": float("nan")}, {"max_gib": float("inf")}, {"folder": ""}]
)
def test_settings_that_are_refused(tmp_path, values):
    with pytest.raises(UserError, match="model.feature_cache"):
        FeatureCacheConfig(**{"folder": str(tmp_path), **values})


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(tiny_base, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into folder"):
        module(tiny_base, feature_cache=FeatureCacheConfig(str(tmp_path / "file/cache"))).check()


def test_a_second_run_through_the_door_computes_nothing(door, tiny_base, tmp_path, monkeypatch):  # noqa: F811
    talk = [{"question_id": i, "turns": [f"{i}?", "and?"], "reference": [f"{i}.", "no."]} for i in range(30)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in talk))
    calls = []
    forward = LlamaModel.forward

    def counted(self, *args, **kwargs):
        calls.append(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", counted)
    FrozenBase(load_base(tiny_base))
    self_test = len(calls)  # what choosing the decoder's forward takes

    def fit(*more):
        calls.clear()
        result = door(
            "fit", "-c", ROOT / "configs/train_draft.yaml", "--model.base", tiny_base, "--model.validation_prompts", 2,
            "--data", "ConversationDataModule", "--data.path", tmp_path / "talk.jsonl", "--data.validation_share", 0.2,
            "--trainer.max_steps", 3, "--trainer.val_check_interval", 3, "--trainer.enable_progress_bar", "false",
            *more,
        )  # fmt: skip
        assert result.status == 0, result.err
        return len(calls) - self_test

    cache = ("--model.feature_cache.folder", tmp_path / "features", "--model.feature_cache.max_gib", 1)
    without, first, second = fit(), fit(*cache), fit(*cache)
    assert without == first > 3 and second == 0
    drafts = [load_file(f"logs/train_draft/version_{i}/draft/model.safetensors") for i in range(3)]
    for key, value in drafts[0].items():
        assert torch.equal(value, drafts[1][key]) and torch.equal(value, drafts[2][key]), key
