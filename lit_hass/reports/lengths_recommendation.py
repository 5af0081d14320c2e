"""From measured lengths to ``gen_length``, ``max_length`` and a batch that fits."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

from lit_hass.errors import RunError, UserError
from lit_hass.metrics.functional.token_lengths import LengthHistogram, show_length
from lit_hass.models.memory_estimate import ModelSizes, estimate_memory

#: Lengths are rounded up to a multiple of this.
MULTIPLE = 8
#: Share of the memory that is planned with; the rest is for what no formula knows.
USABLE = 0.9
#: No batch larger than this is recommended.
MOST_ROWS = 65536

_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "T": 1000**4}
_BINARY = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Lengths:
    """Limits in tokens that cover the share wanted.

    Attributes:
        prompt: budget of the prompt.
        gen_length: greatest number of new tokens; None where no answers were measured.
        max_length: both together.
    """

    prompt: int
    gen_length: int | None
    max_length: int


class CensoredError(RunError):
    """Too many answers were cut for their true lengths to be known."""


def recommend_lengths(
    prompts: LengthHistogram,
    answers: LengthHistogram | None,
    coverage: float,
    limit: int | None = None,
    gen_length: int | None = None,
    context: int | None = None,
) -> Lengths:
    """The smallest limits that the share ``coverage`` of prompts, and of answers, keeps to; rounded up.

    Args:
        prompts: measured.
        answers: measured, all that were generated; None where there are none.
        coverage: the share, above 0, at most 1.
        limit: the limit that the answers were generated with.
        gen_length: given by the user; answers need not be measured then.
        context: greatest number of tokens the model takes.

    Raises:
        CensoredError: more than ``1 - coverage`` of the answers hit their limit; says what to run again.
        RunError: what the data needs is more than the model's context.
        UserError: ``gen_length`` leaves no room for prompts.
    """
    prompt = _round_up(prompts.percentile(coverage))
    if gen_length is None and answers is not None and answers.n:
        wanted = answers.coverage_length(coverage)
        if math.isinf(wanted):
            raise CensoredError(_censored(answers, coverage, limit, prompt, context))
        gen_length = _round_up(wanted)
    whole = prompt + (gen_length or 0)
    if context is not None and whole > context:
        if gen_length is not None and gen_length >= context:
            raise UserError(f"gen_length {gen_length} leaves no room for a prompt in the model's context of {context}")
        share = 1 - prompts.truncation_rate(context - (gen_length or 0))
        raise RunError(
            f"prompts of {prompt} and answers of {gen_length or 0} tokens are {whole}, more than the model's context "
            f"of {context}; with such answers {share:.2%} of the prompts fit: lower --coverage, drop shots, or take a "
            "model with a longer context (--context N where it takes more than its configuration says)"
        )
    return Lengths(prompt, gen_length, whole)


def _censored(answers: LengthHistogram, coverage: float, limit: int | None, prompt: int, context: int | None) -> str:
    hit = limit if limit is not None else int(answers.cut.nonzero()[0].max())
    held, ended = "", answers.ended.nonzero()[0]
    if len(ended):
        # Read off, not asked for as a percentile: 1 - cut_rate is rounded, and may be a share that nothing reaches.
        longest = show_length(ended[-1] if ended[-1] <= answers.cap else math.inf, answers.cap)
        held = f"; {1 - answers.cut_rate:.1%} ended by themselves, in {longest} tokens or fewer"
    twice = 2 * hit
    if context is not None and prompt + twice > context:
        room = context - prompt
        again = (
            f"rerun with gen_length {room}, all that the context of {context} leaves"
            if room > hit
            else f"the model's context of {context} leaves no room for more: its answers do not end"
        )
    else:
        again = f"rerun with gen_length {twice} (--model.max_new_tokens {twice})"
    return (
        f"gen_length {hit} too small: {answers.cut_rate:.1%} of {answers.n} generations hit the limit, "
        f"{1 - coverage:.2%} may for a coverage of {coverage:g}; {again}{held}"
    )


def context_text(report: dict[str, Any]) -> str:
    """What a report's recommendation reckons with, and where that comes from."""
    text = f"the model's context: {report['context']}"
    if not report["context_given"]:
        return text
    own = report["context_of_model"]
    return f"{text}, given by --context; its configuration says {'nothing' if own is None else own}"


def _round_up(length: float) -> int:
    return max(MULTIPLE, -(-int(length) // MULTIPLE) * MULTIPLE)


def largest_batch(sizes: ModelSizes, prompt: int, answer: int, element: int, memory: int, on_cpu: bool = False) -> int:
    """The most rows whose memory by formula is at most `USABLE` of ``memory``.

    Raises:
        RunError: not even one row fits; says what it needs.
    """

    def fits(rows: int) -> bool:
        return estimate_memory(sizes, rows, prompt, answer, element, on_cpu).total <= USABLE * memory

    if not fits(1):
        need = estimate_memory(sizes, 1, prompt, answer, element, on_cpu).total
        raise RunError(
            f"one row of {prompt} + {answer} tokens needs {show_bytes(need)} and {USABLE:.0%} of "
            f"{show_bytes(memory)} is {show_bytes(int(USABLE * memory))}: give more memory, a smaller dtype or model"
        )
    low, high = 1, MOST_ROWS + 1  # low fits; the estimate grows with the rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``24GiB``, ``24 GB`` or ``500M`` (``B`` may be left out; ``Gi`` is 2^30, ``G`` 10^9).

    Raises:
        UserError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if found is None or (found[3] and not found[2]) or not float(found[1]):
        raise UserError(f"--memory {text!r} is no size; write 24GiB, 80GB, ...")
    unit = found[2].upper()
    return int(float(found[1]) * (_BINARY if found[3] else _UNITS)[unit])


def show_bytes(count: int) -> str:
    """A size for people, in powers of 1024."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} B" if unit == "B" else f"{value:.2f} {unit}"
