"""A bounded sample that depends on the rows alone: not on order, split, or merging."""

import pytest
import torch

from lit_hass.errors import UserError
from lit_hass.features import Reservoir
from lit_hass.features.row_keys import item_number, row_keys, splitmix64

WIDTH = 4


def rows_of(n=500, dtype=torch.float32):
    """Rows whose first number is their place."""
    chance = torch.Generator().manual_seed(n)
    rows = torch.randn(n, WIDTH, generator=chance)
    rows[:, 0] = torch.arange(n)
    groups = torch.multinomial(1 / torch.arange(1.0, 21), n, replacement=True, generator=chance)
    return rows.to(dtype), groups, row_keys(7, 0, n)


def smallest(groups, keys, cap):
    """By brute force: group -> places of the smallest keys."""
    found = {}
    for group in groups.unique().tolist():
        places = (groups == group).nonzero()[:, 0].tolist()
        found[group] = sorted(places, key=lambda place: int(keys[place]))[:cap]
    return found


def kept(reservoir):
    reservoir.prune()
    rows = reservoir.gather(torch.arange(len(reservoir)))
    found = {}
    for group, row in zip(reservoir.groups.tolist(), rows, strict=True):
        found.setdefault(group, []).append(int(row[0]))
    return found


@pytest.mark.parametrize("cap", [1, 5, None])
@pytest.mark.parametrize("parts", [1, 7, 500])
def test_the_smallest_keys_of_each_group_in_any_order(cap, parts):
    rows, groups, keys = rows_of()
    reservoir = Reservoir(WIDTH, cap, 2**20)
    for part in torch.randperm(len(rows), generator=torch.Generator().manual_seed(parts)).chunk(parts):
        reservoir.offer(rows[part], groups[part], keys[part])
    assert kept(reservoir) == smallest(groups, keys, cap)


@pytest.mark.parametrize("caps", [(5, 5, 5), (5, 3, 9), (8, None, 8)])
def test_merging_is_the_same_as_one(caps):
    rows, groups, keys = rows_of()
    parts = torch.arange(len(rows)).chunk(3)
    reservoirs = [Reservoir(WIDTH, cap, 2**20) for cap in caps]
    for reservoir, part in zip(reservoirs, parts, strict=True):
        reservoir.offer(rows[part], groups[part], keys[part])
    expected = smallest(groups, keys, min(cap for cap in caps if cap))
    for order in ((0, 1, 2), (2, 0, 1)):
        whole = Reservoir(WIDTH, None, 2**20)
        for i in order:
            whole.merge(*reservoirs[i].state())
        assert kept(whole) == expected


@pytest.mark.parametrize("parts", [1, 7, 50, 2000])
def test_too_few_bytes_halve_the_cap_exactly(parts):
    rows, groups, keys = rows_of(2000)
    reservoir = Reservoir(WIDTH, 256, 8000)
    for part in torch.randperm(len(rows), generator=torch.Generator().manual_seed(parts)).chunk(parts):
        reservoir.offer(rows[part], groups[part], keys[part])
        assert len(reservoir) * (4 * WIDTH + 24) <= 8000
    # By brute force: the largest halved cap whose rows have room; how the rows came does not matter.
    sizes = {cap: sum(map(len, smallest(groups, keys, cap).values())) for cap in (2, 4, 8, 16, 32, 64, 128, 256)}
    cap = max(cap for cap, size in sizes.items() if size * (4 * WIDTH + 24) <= 8000)
    assert reservoir.bounds == {"per_group": cap, "halvings": 0}
    assert kept(reservoir) == smallest(groups, keys, cap)


@pytest.mark.parametrize("parts", [1, 9, 400])
def test_more_classes_than_room_leave_out_whole_ones_and_never_one_row_of_a_class(parts):
    """800 groups of 400 classes, 8 rows of each, and room for 200 rows: 100 groups of 2."""
    groups = torch.arange(6400) % 800
    rows, keys = torch.randn(6400, WIDTH), row_keys(3, 0, 6400)
    rows[:, 0] = torch.arange(6400)
    room = 200 * (4 * WIDTH + 24)
    whole, ranks = Reservoir(WIDTH, 256, room), [Reservoir(WIDTH, cap, room) for cap in (None, 256, 3)]
    for part in torch.randperm(6400, generator=torch.Generator().manual_seed(parts)).chunk(parts):
        whole.offer(rows[part], groups[part], keys[part])
    for reservoir, part in zip(ranks, torch.arange(6400).chunk(3), strict=True):
        reservoir.offer(rows[part], groups[part], keys[part])
    chosen = kept(whole)
    assert whole.per_group == 2 and {len(places) for places in chosen.values()} == {2}
    # Rows of a token in prompts and in answers stay or go together; half, a quarter, an eighth of the classes.
    assert {group ^ 1 for group in chosen} == set(chosen)
    mixed = [splitmix64(torch.tensor([group // 2])).item() % 2**64 >> 1 for group in range(800)]
    assert set(chosen) == {group for group in range(800) if mixed[group] < 2 ** (63 - whole.halvings)}
    fewer = sum(value < 2 ** (64 - whole.halvings) for value in mixed)
    assert len(chosen) * 2 <= 200 < fewer * 2  # no more than there is room for, and with one halving less there is none
    assert chosen == {group: places for group, places in smallest(groups, keys, 2).items() if group in chosen}
    for order in ((0, 1, 2), (2, 0, 1)):  # in the end the bounds of the whole, whoever holds what
        merged = Reservoir(WIDTH, None, room)
        for i in order:
            merged.merge(*ranks[i].state())
        assert merged.bounds == whole.bounds and kept(merged) == chosen


def test_rows_that_would_be_pushed_out_at_once_take_no_room():
    """Two classes of 3,000 rows, offered at once: room for 2,048 is enough for 256 of each."""
    groups, keys = torch.arange(6000) % 2 * 2, row_keys(5, 0, 6000)
    rows = torch.randn(6000, WIDTH)
    rows[:, 0] = torch.arange(6000)
    reservoir = Reservoir(WIDTH, 256, 2048 * (4 * WIDTH + 24))
    reservoir.offer(rows, groups, keys)
    assert reservoir.bounds == {"per_group": 256, "halvings": 0}
    assert kept(reservoir) == smallest(groups, keys, 256)


def test_a_sample_of_an_earlier_version_is_taken_in():
    """It had caps of one row and of none, and left out no classes."""
    reservoir = Reservoir(WIDTH, 4, 2**20)
    reservoir.offer(*rows_of())
    tensors, _ = reservoir.state()
    older = Reservoir(WIDTH, 256, 2**20)
    older.merge(tensors, {"per_group": 1})
    assert {len(places) for places in kept(older).values()} == {1}
    older.merge(tensors, {"per_group": 0})
    older.offer(*rows_of())
    assert kept(older) == {}


def test_memory_is_that_of_the_kept_rows():
    reservoir = Reservoir(512, 4, 2**26)
    for start in range(0, 40000, 1000):
        reservoir.offer(torch.randn(1000, 512), torch.arange(1000) % 10, row_keys(1, start, 1000))
    assert reservoir.nbytes <= 2 * 2**22 * 3 and len(reservoir.state()[0]["rows"]) == 40


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_rows_keep_their_dtype(dtype):
    rows, groups, keys = rows_of(50, dtype)
    reservoir = Reservoir(WIDTH, None, 2**20)
    reservoir.offer(rows, groups, keys)
    tensors, _ = reservoir.state()
    assert tensors["rows"].dtype == dtype
    assert torch.equal(tensors["rows"][:, 0].sort().values, rows[:, 0].sort().values)


def test_groups_below_zero_are_passed_over_and_nonsense_is_refused():
    reservoir = Reservoir(WIDTH, 2, 2**20)
    reservoir.offer(torch.randn(3, WIDTH), torch.tensor([-1, 0, -2]), row_keys(1, 0, 3))
    assert reservoir.groups.tolist() == [0]
    with pytest.raises(ValueError, match="of 2 rows a group cannot become one of 3"):
        reservoir.shrink_to(3)
    for bad in ((0, 2, 10), (4, -1, 10), (4, 2, 0)):
        with pytest.raises(UserError, match="no reservoir"):
            Reservoir(*bad)


def test_keys_are_those_of_splitmix64_and_of_the_place_alone():
    # The first outputs of the published generator from seed 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    gamma = 0x9E3779B97F4A7C15
    seeds = torch.tensor([(i * gamma + 2**63) % 2**64 - 2**63 for i in range(3)])
    assert [value % 2**64 for value in splitmix64(seeds).tolist()] == expected
    item = item_number("question", 0, 1)
    assert torch.equal(row_keys(item, 0, 9)[4:], row_keys(item, 4, 5)) and bool((row_keys(item, 0, 999) >= 0).all())
    assert not torch.equal(row_keys(item, 0, 9), row_keys(item, 0, 9, salt=1))
    assert len(row_keys(item, 0, 10000).unique()) == 10000
    shares = (row_keys(item, 0, 20000).double() / 2**63 * 10).long().bincount(minlength=10) / 20000
    assert bool(((shares - 0.1).abs() < 0.01).all())
