"""Acceptance length and its kin, from the numbers of accepted draft tokens. numpy only.

A step of speculative decoding commits the token it starts from (its root) and the ``a >= 0`` draft tokens that the base
accepted. All functions take those ``a``; every length here is with the root, as in HASS and EAGLE. What is undefined
(no steps) is NaN.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def tau_micro(accepted: Iterable[int]) -> float:
    """Mean number of tokens that a step commits: ``sum(a + 1) / steps``, every step weighing the same.

    Args:
        accepted: accepted draft tokens of each step, over all questions, choices and turns.

    Returns:
        the length, from 1 on; NaN without steps.

    Raises:
        ValueError: a number is negative or not whole.
    """
    lengths = _lengths(accepted)
    return float(lengths.mean()) + 1 if lengths.size else float("nan")


def tau_original(questions: Iterable[Sequence[int]]) -> tuple[float, int]:
    """The mean over questions of each question's own mean, plus 1: ``acceptance_length.py`` of the EAGLE family.

    Every question weighs the same, however long its answer is; hand over the steps of choice 0 only, all turns
    together, as that script does. A question without steps makes it divide by zero; here it is left out and counted.

    Args:
        questions: for each question the accepted draft tokens of its steps.

    Returns:
        the length (NaN when no question has a step), and how many questions were left out.

    Raises:
        ValueError: a number is negative or not whole.
    """
    means, without = [], 0
    for question in questions:
        lengths = _lengths(question)
        if lengths.size:
            means.append(float(lengths.mean()))
        else:
            without += 1
    return (float(np.mean(means)) + 1 if means else float("nan")), without


def tokens_per_step(new_tokens: int, steps: int) -> float:
    """New tokens, cut at stop tokens and limits, over steps; NaN without steps.

    It counts the first token too, which comes with the prompt and not with a step, and so may exceed `tau_micro` where
    answers are short; what is cut from last steps makes it less.
    """
    return new_tokens / steps if steps > 0 else float("nan")


def acceptance_by_depth(accepted: Iterable[int]) -> list[float]:
    """How often a step that reached depth ``d - 1`` also had a token accepted at depth ``d``.

    Args:
        accepted: accepted draft tokens of each step.

    Returns:
        ``#(a >= d) / #(a >= d - 1)`` for d = 1, 2, ... up to the deepest acceptance (d = 1 always); empty without
        steps. Beyond it nothing was ever accepted, be it refused or not drafted.

    Raises:
        ValueError: a number is negative or not whole.
    """
    counts = np.bincount(_lengths(accepted))
    if counts.size == 0:
        return []
    reached = counts[::-1].cumsum()[::-1]  # [d] = number of steps with a >= d
    reached = np.append(reached, 0) if reached.size == 1 else reached
    return [float(share) for share in reached[1:] / reached[:-1]]


def accepted_histogram(accepted: Iterable[int]) -> list[int]:
    """How many steps had 0, 1, 2, ... draft tokens accepted, up to the most; empty without steps.

    Raises:
        ValueError: a number is negative or not whole.
    """
    return [int(count) for count in np.bincount(_lengths(accepted))]


def node_acceptance_rate(accepted: Iterable[int], nodes_per_step: int) -> float:
    """The share of drafted tree nodes that were accepted: ``sum(a) / (steps * nodes_per_step)``.

    Args:
        accepted: accepted draft tokens of each step.
        nodes_per_step: drafted nodes of a tree, the root not counted (``total_tokens - 1``).

    Returns:
        a number from 0 to 1; NaN without steps or without nodes.

    Raises:
        ValueError: a number is negative or not whole.
    """
    lengths = _lengths(accepted)
    drafted = lengths.size * nodes_per_step
    return float(lengths.sum()) / drafted if drafted > 0 else float("nan")


def _lengths(accepted: Iterable[int]) -> np.ndarray:
    values = np.array(list(accepted))
    if values.size == 0:
        return np.zeros(0, dtype=np.int64)
    if values.dtype.kind not in "iu" or values.ndim != 1 or values.min() < 0:
        raise ValueError("accepted draft tokens must be whole numbers, 0 or more")
    return values.astype(np.int64)
