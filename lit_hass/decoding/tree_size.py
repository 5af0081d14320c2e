"""``total_tokens = -1``: how large a tree is worth its verification on this device, by timing."""

from collections.abc import Callable

from lit_hass.decoding.tree_config import TreeConfig

#: Sizes that are tried, as far as there are candidates for them; 1 drafts nothing.
SIZES = (1, 4, 6, 8, 10, 12, 16, 24, 32, 48, 60)
#: Every size is timed as often, in turn, so that what else the machine does hits all alike.
_ROUNDS = 3


def choose_size(seconds_per_token: Callable[[TreeConfig], float], tree: TreeConfig) -> int:
    """Choose the tree that decodes fastest.

    Tokens per second count, not the seconds of a forward: a larger tree that accepts no more is no gain. The choice
    changes no answer, only its time.

    Args:
        seconds_per_token: Decodes with a tree of a given size and measures.
        tree: Depth and width; its ``total_tokens`` is not used.

    Returns:
        The best ``total_tokens``.
    """
    sizes = sorted({min(size, tree.candidates + 1) for size in SIZES})
    best = dict.fromkeys(sizes, float("inf"))
    seconds_per_token(tree.sized(sizes[-1]))  # the first run of all pays for what is made once
    for _ in range(_ROUNDS):
        for size in sizes:
            best[size] = min(best[size], seconds_per_token(tree.sized(size)))
    return min(sizes, key=lambda size: best[size])
