"""Windows against independent formulations: token lists as the originals cut them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_hass.data.perplexity_windows import (
    Window,
    disjoint_windows,
    rolling_windows,
    second_half_windows,
    strided_windows,
)


def cut(tokens: list, windows: list[Window]) -> list[tuple[list, list]]:
    """Inputs and targets of windows."""
    found = []
    for window in windows:
        inputs = tokens[window.start : window.stop]
        if window.first is not None:
            inputs[0] = window.first
        found.append((inputs, [tokens[i] for i in window.targets]))
    return found


def harness(ids: list, length: int, prefix: object = "P") -> list[tuple[list, list]]:
    """The harness's windows said in words: every ``length`` targets are a group, read behind what precedes them.

    All groups but the first read ``length`` tokens that end one before the group's last token.
    """
    groups = [ids[i : i + length] for i in range(0, len(ids), length)]
    found, done = [], 0
    for number, group in enumerate(groups):
        done += len(group)
        history = [prefix, *ids][:done]  # everything before the last target
        found.append((history if number == 0 else history[-length:], group))
    return found


@pytest.mark.parametrize("length", [7, 256, 1024])
def test_rolling_windows_of_all_lengths(length: int) -> None:
    for count in range(1, 1101):
        ids = list(range(count))
        assert cut(["P", *ids], rolling_windows(count + 1, length)) == harness(ids, length), (count, length)


def test_worked_plans() -> None:
    t = [f"t{i}" for i in range(10)]
    assert cut(["P", *t], rolling_windows(11, 4)) == [
        (["P", "t0", "t1", "t2"], ["t0", "t1", "t2", "t3"]),
        (["t3", "t4", "t5", "t6"], ["t4", "t5", "t6", "t7"]),
        (["t5", "t6", "t7", "t8"], ["t8", "t9"]),
    ]
    x = [f"x{i}" for i in range(11)]
    assert cut(x, disjoint_windows(11, 4)) == [
        (["x0", "x1", "x2"], ["x1", "x2", "x3"]),
        (["x4", "x5", "x6"], ["x5", "x6", "x7"]),
    ]
    assert [targets for _, targets in cut(x, strided_windows(11, 4, 2))] == [
        ["x1", "x2", "x3"], ["x4", "x5"], ["x6", "x7"], ["x8", "x9"], ["x10"]
    ]  # fmt: skip
    assert strided_windows(11, 4, 2)[-1] == Window(8, 10, 1)
    assert [targets for _, targets in cut(x, second_half_windows(11, 4))] == [["x3"], ["x7"]]
    assert cut(x, second_half_windows(11, 4, first="B"))[1] == (["B", "x5", "x6"], ["x7"])


def loop(tokens: int, length: int, stride: int) -> list[tuple[int, int]]:
    """Documentation's loop: for each window the (position, window start) of what its labels keep, by masks."""
    found, before = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        labels = [i if i >= end - (end - before) else None for i in range(begin, end)]
        found += [(i, begin) for i in labels[1:] if i is not None]  # the shift drops the first
        before = end
        if end == tokens:
            break
    return found


@given(st.integers(1, 300), st.integers(1, 40), st.data())
@settings(max_examples=300, deadline=None)
def test_strided_windows(tokens: int, length: int, data) -> None:
    stride = data.draw(st.integers(1, length))
    windows = strided_windows(tokens, length, stride)
    assert [(i, window.start) for window in windows for i in window.targets] == loop(tokens, length, stride)
    assert all(window.read <= length for window in windows)


@given(st.integers(1, 300), st.integers(2, 40))
@settings(max_examples=300, deadline=None)
def test_each_token_is_scored_at_most_once_and_the_rest_is_known(tokens: int, length: int) -> None:
    whole = tokens // length
    plans = {
        "disjoint": (disjoint_windows(tokens, length), {i for i in range(whole * length) if i % length}),
        "tail": (disjoint_windows(tokens, length, True), {i for i in range(tokens) if i % length}),
        "rolling": (rolling_windows(tokens, length), set(range(1, tokens))),
        "half": (second_half_windows(tokens, length), {i for i in range(whole * length) if i % length > length // 2}),
        "half tail": (second_half_windows(tokens, length, None, True), {
            i for i in range(tokens) if i % length > length // 2}),
    }  # fmt: skip
    for name, (windows, scored) in plans.items():
        targets = [i for window in windows for i in window.targets]
        assert len(targets) == len(set(targets)) and set(targets) == scored, name
        assert all(0 <= window.start and window.stop < tokens and window.scored <= window.read for window in windows)


def test_a_stride_that_passes_over_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="stride of 5"):
        strided_windows(20, 4, 5)
