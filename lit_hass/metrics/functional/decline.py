"""Names for a fall of the entropy along a text. Standard library only, so that reports can use it at once."""

from __future__ import annotations

import math


def decline_pattern(first_minus_last: float) -> str:
    """Name a fall of the entropy as the original scripts do; their limits are untested."""
    if math.isnan(first_minus_last):
        return "undefined"
    for limit, name in ((0.5, "strong_decline"), (0.1, "moderate_decline"), (0.01, "weak_decline")):
        if first_minus_last > limit:
            return name
    return "no_decline"
