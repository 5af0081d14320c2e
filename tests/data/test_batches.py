import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_hass.data.batches import IGNORE, by_length, collate


def test_rows_are_padded_on_the_right_and_questions_are_not_scored() -> None:
    batch = collate([([5, 6, 7], 1), ([8], 0), ([9, 4], 2)])
    assert batch.size == 3
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 0, 0], [9, 4, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.labels.tolist() == [[IGNORE, 6, 7], [8, IGNORE, IGNORE], [IGNORE, IGNORE, IGNORE]]
    assert {t.dtype for t in (batch.input_ids, batch.attention_mask, batch.labels)} == {torch.int64}
    assert IGNORE == torch.nn.CrossEntropyLoss().ignore_index


def test_a_batch_moves_as_a_whole() -> None:
    moved = collate([([5, 6], 1)]).to("meta")
    assert {t.device.type for t in (moved.input_ids, moved.attention_mask, moved.labels)} == {"meta"}


@given(st.lists(st.integers(1, 40)), st.integers(1, 100))
def test_groups_hold_every_row_once_within_the_limit(lengths: list[int], tokens: int) -> None:
    rows = [([i] * n, 0) for i, n in enumerate(lengths)]
    groups = by_length(rows, tokens)
    assert sorted(row[0][0] for group in groups for row in group) == list(range(len(rows)))
    for group in groups:
        padded = len(group) * max(len(row[0]) for row in group)
        assert padded <= tokens or len(group) == 1
    # greedy: the first row of a group had no room in the group before it
    for before, after in zip(groups, groups[1:], strict=False):
        assert len(after[0][0]) * (len(before) + 1) > tokens
