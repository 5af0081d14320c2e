import gzip
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from lit_hass.data import TextDataModule
from lit_hass.errors import UserError

TEXT = "".join(f"row {i}: {i * 7919 % 1009} apples\n" for i in range(400))


@pytest.fixture
def make(tiny_base, tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes(TEXT.encode())

    def build(rank=0, world=1, step=0, accumulate=1, **arguments):
        arguments = {"train_files": [str(path)], "block_size": 16, "batch_size": 3, **arguments}
        data = TextDataModule(tokenizer=str(tiny_base), **arguments)
        data.setup("fit")
        data.trainer = SimpleNamespace(
            global_rank=rank, world_size=world, global_step=step, accumulate_grad_batches=accumulate
        )
        return data

    return build


def rows(data, count):
    return [tuple(row.tolist()) for b in islice(iter(data.train_dataloader()), count) for row in b.input_ids]


def test_blocks_are_the_text_in_order_with_an_end_behind_each_file(make, tmp_path, tsv_tokenizer) -> None:
    other = tmp_path / "other.txt"
    other.write_bytes("é\r\nlast".encode())
    data = make(train_files=[str(tmp_path / "text.txt"), str(other)], validation_share=0.2)
    ids = []
    for text in (TEXT, "é\nlast"):
        ids += [*tsv_tokenizer(text, add_special_tokens=False)["input_ids"], tsv_tokenizer.eos_token_id]
    full = [tuple(ids[i : i + 16]) for i in range(0, len(ids) // 16 * 16, 16)]
    held_out = round(0.2 * len(full))
    assert [tuple(b.tolist()) for b in data._train] == full[:-held_out]
    assert [tuple(b.tolist()) for b in data._validation] == full[-held_out:]


def test_validation_files_are_read_to_the_last_token(make, tmp_path, tsv_tokenizer) -> None:
    held = tmp_path / "held.txt"
    held.write_text(TEXT[:1001], encoding="utf-8")
    expected = [*tsv_tokenizer(TEXT[:1001], add_special_tokens=False)["input_ids"], tsv_tokenizer.eos_token_id]
    if len(expected) % 16 == 1:
        expected.pop()  # a block of one token predicts nothing
    found = []
    for rank in range(2):
        data = make(rank=rank, world=2, validation_files=[str(held)])
        found += [row.tolist() for batch in data.val_dataloader() for row in batch.input_ids]
    assert sorted(map(tuple, found)) == sorted(tuple(expected[i : i + 16]) for i in range(0, len(expected), 16))


def test_every_token_is_given_as_label(make) -> None:
    batch = next(iter(make().train_dataloader()))
    assert torch.equal(batch.labels, batch.input_ids) and bool(batch.attention_mask.all())
    assert batch.input_ids.shape == (3, 16)


@pytest.mark.parametrize("world", [1, 2])
def test_each_epoch_holds_every_block_once_in_another_order(make, world: int) -> None:
    blocks = sorted(tuple(b.tolist()) for b in make()._train)
    count = len(blocks)
    streams = [rows(make(rank=rank, world=world), 2 * count) for rank in range(world)]
    # the ranks take turns, a batch of 3 each
    joined = [row for i in range(0, len(streams[0]), 3) for stream in streams for row in stream[i : i + 3]]
    first, second = joined[:count], joined[count : 2 * count]
    assert sorted(first) == sorted(second) == blocks
    assert first != second and first != blocks


@pytest.mark.parametrize(("stop", "accumulate"), [(1, 1), (37, 1), (5, 4)])
def test_a_resumed_stream_goes_on_with_the_very_batch(make, stop: int, accumulate: int) -> None:
    whole = rows(make(accumulate=accumulate), 60)
    rest = rows(make(step=stop, accumulate=accumulate), 10)
    assert rest == whole[3 * stop * accumulate : 3 * stop * accumulate + 30]


def test_a_batch_may_be_larger_than_the_text(make) -> None:
    data = make(block_size=512, batch_size=40)
    blocks = {tuple(b.tolist()) for b in data._train}
    assert len(blocks) < 40
    assert set(rows(data, 1)) == blocks


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"train_files": []}, "names no file"),
        ({"block_size": 1}, "data.block_size must be at least 2"),
        ({"batch_size": 0}, "data.batch_size at least 1"),
        ({"validation_share": 0.0}, "between 0 and 1, found 0.0"),
        ({"validation_share": 1.0}, "between 0 and 1, found 1.0"),
        ({"block_size": 100_000}, r"the text has \d+ tokens, too few for blocks of 100000"),
        ({"train_files": ["nowhere.txt"]}, "nowhere.txt: no such text file"),
        ({"train_files": ["."]}, r"\.: is a directory, not a text file"),
    ],
)
def test_bad_settings_are_refused(make, arguments, cause: str) -> None:
    with pytest.raises(UserError, match=cause):
        make(**arguments)


def test_a_file_that_is_not_utf8_is_named(make, tmp_path) -> None:
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(UserError, match=r"latin.txt: not UTF-8 text \(.* at byte 3\)"):
        make(train_files=[str(bad)])


def test_a_compressed_text_is_read_and_a_table_is_not_trained_on_as_prose(make, tmp_path) -> None:
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert rows(make(train_files=[str(tmp_path / "text.txt.gz")]), 4) == rows(make(), 4)
    for name in ("t.csv", "t.tsv", "t.json", "t.jsonl", "t.jsonl.gz", "t.parquet"):
        (tmp_path / name).write_bytes(TEXT.encode())
        with pytest.raises(UserError, match=f"{name}: a table, whose brackets"):
            make(train_files=[str(tmp_path / name)])


def test_fewer_blocks_than_ranks_are_refused(make) -> None:
    data = make(world=1000)
    with pytest.raises(UserError, match="1000 ranks without one"):
        data.val_dataloader()
