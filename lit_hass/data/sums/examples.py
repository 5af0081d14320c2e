"""Sums as multiple-choice questions, with the carrying written out as the rationale.

The numbers are added column by column from the right, and what is asked is the check digit of the result: the last
digit of the sum of its digits, which an error in any column changes. Each digit is written behind its place (k
thousands, h hundreds, t tens, o ones) and a zero is not written, so that a very small model can find a digit by what
stands before it; and the choices are the same in every question. In each column of the rationale stand the two digits,
the carry, the two-digit result, whose first digit is the next column's carry, and the check digit so far::

    Q: h3o7+t5o8
    Options:
    (A) 0 or 5
    (B) 1 or 6
    (C) 2 or 7
    (D) 3 or 8
    (E) 4 or 9
    A: o7+o8+0=15 5; t0+t5+1=06 1; h3+h0+0=03 4; Therefore, the answer is 4 (E).

How long a sum is, is the number of its written digits, those of both numbers together: ``digits=(2, 4)`` draws 7+8 and
h3o7+k5, ``(6, 8)`` draws k1h2t3o4+t5o6 and longer ones. The last column never carries. Which of the splits a pair of
numbers belongs to is decided by a hash of the pair, so that no sum of one occurs in another, in either order.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

from lit_hass.data.commonsense_qa_questions import LABELS, MultipleChoiceQuestion
from lit_hass.data.html_to_tsv.rng import SplitMix

Split = Literal["train", "validation", "test"]

#: The places of a number's digits, from the right.
PLACES = "othk"
#: Of one number.
MOST_DIGITS = len(PLACES)

#: The five choices; each names the two check digits that leave the same remainder by five.
CHOICES = tuple(f"{digit} or {digit + 5}" for digit in range(5))

#: Of 16 hash buckets, which belong to which split.
_BUCKETS: dict[str, range] = {"train": range(0, 12), "validation": range(12, 14), "test": range(14, 16)}


@dataclass(frozen=True)
class Sum:
    """One sum as a question, and the completion that solves it."""

    question: MultipleChoiceQuestion
    completion: str


def split_of(first: int, second: int) -> str:
    """The one split that the sum of these numbers, in either order, belongs to."""
    low, high = sorted((first, second))
    bucket = hashlib.sha256(f"{low}+{high}".encode()).digest()[0] % 16
    return next(name for name, buckets in _BUCKETS.items() if bucket in buckets)


def by_place(number: int) -> str:
    """A number with each digit behind its place and zeros left out: 307 is ``h3o7``."""
    digits = zip(PLACES[len(str(number)) - 1 :: -1], str(number), strict=True)
    return "".join(f"{place}{digit}" for place, digit in digits if digit != "0")


def check_digit(number: int) -> int:
    """The last digit of the sum of a number's digits."""
    return sum(map(int, str(number))) % 10


def carrying(first: int, second: int) -> str:
    """The columns of a sum, from the right: ``o7+o8+0=15 5; t4+t5+1=10 5; h3+h0+1=04 9;``."""
    columns, carry, check = [], 0, 0
    for power, place in enumerate(PLACES[: max(len(str(first)), len(str(second)))]):
        a, b = first // 10**power % 10, second // 10**power % 10
        result = a + b + carry
        check = (check + result % 10) % 10
        columns.append(f"{place}{a}+{place}{b}+{carry}={result:02d} {check};")
        carry = result // 10
    return " ".join(columns)


def make_sum(split: Split, seed: int, index: int, digits: tuple[int, int]) -> Sum:
    """Sum ``index`` of a split: the same on every machine, and cheap to draw in any order.

    Args:
        split: which pairs may be drawn.
        seed: another seed, other sums.
        index: of the sum, from 0.
        digits: fewest and most written digits of both numbers together; each count is equally likely.

    Raises:
        ValueError: there are no such numbers.
    """
    fewest, most = digits
    if not 2 <= fewest <= most <= 2 * MOST_DIGITS:
        raise ValueError(f"digits must be a range within 2-{2 * MOST_DIGITS}, found {fewest}-{most}")
    rng = SplitMix("sums", split, seed, index)
    for _ in range(1000):
        count = rng.between(fewest, most)
        written = set(rng.shuffled(range(2 * MOST_DIGITS))[:count])
        first, second = (
            sum(rng.between(1, 9) * 10**power for power in range(MOST_DIGITS) if power + half in written)
            for half in (0, MOST_DIGITS)
        )
        if not first or not second:
            continue
        longer = max(len(str(first)), len(str(second)))
        if split_of(first, second) == split and len(str(first + second)) == longer:
            break
    else:
        raise ValueError(f"found no sum of {fewest}-{most} digits in the split {split}")
    check = check_digit(first + second)
    answer = LABELS[check % 5]
    question = MultipleChoiceQuestion(
        id=f"sum-{split}-{seed}-{index}",
        stem=f"{by_place(first)}+{by_place(second)}",
        choices=CHOICES,
        answer=answer,
        concept=f"{count} digits",
    )
    return Sum(question, f" {carrying(first, second)} Therefore, the answer is {check} ({answer}).")


def make_sums(n: int, seed: int, digits: tuple[int, int], split: Split = "test") -> list[Sum]:
    """The first ``n`` different sums of a split.

    Raises:
        ValueError: there are too few different sums of so few digits.
    """
    found: dict[str, Sum] = {}
    index = last_new = 0
    # So many draws without a new sum: there are none left, or so few that nobody should wait for them.
    while index - last_new < 2_000:
        one = make_sum(split, seed, index, digits)
        index += 1
        if one.question.stem not in found:
            found[one.question.stem] = one
            last_new = index
            if len(found) == n:
                return list(found.values())
    raise ValueError(f"there are fewer than {n} different sums of {digits[0]}-{digits[1]} digits in the split {split}")
