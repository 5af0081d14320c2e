"""Sums with the carrying written out: a task on which the generate, keep, train loop can be watched on a CPU."""

from lit_hass.data.sums.examples import (
    MOST_DIGITS,
    PLACES,
    Split,
    Sum,
    by_place,
    carrying,
    check_digit,
    make_sum,
    make_sums,
    split_of,
)

__all__ = (
    "MOST_DIGITS",
    "PLACES",
    "Split",
    "Sum",
    "by_place",
    "carrying",
    "check_digit",
    "make_sum",
    "make_sums",
    "split_of",
)
