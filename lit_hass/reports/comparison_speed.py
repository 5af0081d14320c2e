"""How much faster one run is than another: ratio of sums, the original definition, and what a step costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_hass.metrics.functional.jackknife import ratio_interval
from lit_hass.reports.answer_turns import Clock, turns_of_choice
from lit_hass.reports.comparison_join import JoinedQuestion
from lit_hass.reports.comparison_run import ComparedRun

_AS_SPEED_PY = "ratio of the means over questions of (tokens of choice 0 / seconds of choice 0), each file by itself"
_ORIGINAL_NOTE = (
    f"{_AS_SPEED_PY}; the baseline's tokens are those of its texts read again by the tokenizer, less one each, which "
    "is what speed.py of the EAGLE family prints of these files"
)
_OURS_NOTE = (
    f"{_AS_SPEED_PY}; speed.py of the EAGLE family counts a baseline's tokens by reading its texts again, which these "
    "files do not tell, so that both files' own new_tokens are used and the number is not what speed.py prints"
)


def speed_comparison(questions: Sequence[JoinedQuestion], clock: Clock = "wall") -> dict[str, Any]:
    """Speedup end to end (prefill included) and decoding only, each with its uncertainty, by one clock.

    Returns:
        for ``end_to_end`` and ``decode_only``: tokens per second of ``baseline`` and ``hass``, ``ratio`` =
        (sum of tokens / sum of seconds) over the same of the baseline, its ``interval`` (95 %, over questions, see
        `lit_hass.metrics.functional.jackknife`; None with fewer than 5), and ``questions``, how many have the times it
        takes.
    """
    pairs = [question.costs[clock] for question in questions if question.timed and clock in question.costs]
    end_to_end = [(hass.tokens, hass.seconds, base.tokens, base.seconds) for base, hass in pairs]
    decode_only = [
        (hass.later_tokens, hass.decode_seconds, base.later_tokens, base.decode_seconds)
        for base, hass in pairs
        if math.isfinite(hass.decode_seconds) and math.isfinite(base.decode_seconds)
    ]
    return {"end_to_end": _ratio(end_to_end), "decode_only": _ratio(decode_only)}


def _ratio(rows: Sequence[tuple[float, float, float, float]]) -> dict[str, Any]:
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4)
    tokens, seconds, base_tokens, base_seconds = columns.sum(axis=0)
    bounds = ratio_interval(columns, _ln_ratio, columns) if (columns >= 0).all() else None
    return {
        "baseline": _over(base_tokens, base_seconds),
        "hass": _over(tokens, seconds),
        "ratio": _over(_over(tokens, seconds), _over(base_tokens, base_seconds)),
        "interval": None if bounds is None else tuple(map(math.exp, bounds)),
        "questions": len(columns),
    }


def _ln_ratio(sums: np.ndarray) -> np.ndarray:
    tokens, seconds, base_tokens, base_seconds = np.log(sums)
    return tokens - seconds - base_tokens + base_seconds


def original_speedup(baseline: ComparedRun, hass: ComparedRun) -> dict[str, Any]:
    """The speeds and their ratio by the formula of the original ``speed.py``; questions without times are left out.

    Returns:
        ``baseline``, ``hass``, ``ratio``, ``questions_left_out``, ``is_original``: whether they are what that script
        prints of these files, which takes the number of tokens of the baseline's texts when they are read again
        (``text_tokens``); else the files' own ``new_tokens`` stand in. ``note`` says it.
    """
    retold = all(
        turn.text_tokens is not None
        for answer in baseline.answered.values()
        for turn in turns_of_choice(answer["choices"][0])
    )
    means = {}
    left_out = 0
    for name, run in (("baseline", baseline), ("hass", hass)):
        speeds = []
        for answer in run.answered.values():
            turns = turns_of_choice(answer["choices"][0])
            again = retold and run is baseline
            tokens = sum((turn.text_tokens or 0) - 1 if again else turn.new_tokens for turn in turns)
            speed = _over(tokens, sum(turn.wall_time for turn in turns))
            if math.isfinite(speed):
                speeds.append(speed)
            else:
                left_out += 1
        means[name] = float(np.mean(speeds)) if speeds else math.nan
    ratio = _over(means["hass"], means["baseline"])
    note = _ORIGINAL_NOTE if retold else _OURS_NOTE
    return {**means, "ratio": ratio, "questions_left_out": left_out, "is_original": retold, "note": note}


def repeats_of(questions: Sequence[JoinedQuestion], clock: Clock = "wall") -> dict[str, Any] | None:
    """What the repetitions say, where every question has the same number of them in both runs.

    Returns:
        ``count``; ``speedups``, one per repetition; and how far the repetitions of a question lie apart, as the median
        over questions of (slowest - fastest) / median, for both runs. None without repetitions.
    """
    pairs = [question.costs[clock] for question in questions if question.timed and clock in question.costs]
    counts = {len(cost.repeats) for pair in pairs for cost in pair}
    if len(counts) != 1 or counts <= {0, 1}:
        return None
    base = np.array([cost.repeats for cost, _ in pairs])
    hass = np.array([cost.repeats for _, cost in pairs])
    per_token = sum(cost.tokens for _, cost in pairs) / max(sum(cost.tokens for cost, _ in pairs), 1)
    return {
        "count": counts.pop(),
        "speedups": [_over(per_token * b, h) for b, h in zip(base.sum(axis=0), hass.sum(axis=0), strict=True)],
        "baseline_spread": _spread(base),
        "hass_spread": _spread(hass),
    }


def _spread(repeats: np.ndarray) -> float:
    middle = np.median(repeats, axis=1)
    known = middle > 0
    return float(np.median(np.ptp(repeats, axis=1)[known] / middle[known])) if known.any() else math.nan


def cost_model(questions: Sequence[JoinedQuestion], tau: float, clock: Clock = "wall") -> dict[str, Any]:
    """What a step costs in plain tokens, hence how many tokens it must give to pay.

    Args:
        questions: joined runs; the second one drafts.
        tau: its acceptance length, micro.
        clock: which seconds.

    Returns:
        ``step_seconds`` (decoding seconds over verification steps), ``token_seconds`` (the baseline's decoding
        seconds over its tokens after the first), ``tau_break_even`` = their ratio, ``tau`` and ``predicted_speedup`` =
        tau / tau_break_even, to be held against the measured decoding-only ratio. NaN without steps or times.
    """
    known = [
        (question, *question.costs[clock])
        for question in questions
        if clock in question.costs and all(math.isfinite(cost.decode_seconds) for cost in question.costs[clock])
    ]
    steps = sum(turn.hass.steps for question, _, _ in known for turn in question.timed)
    step = _over(sum(hass.decode_seconds for _, _, hass in known), steps)
    token = _over(sum(base.decode_seconds for _, base, _ in known), sum(base.later_tokens for _, base, _ in known))
    break_even = _over(step, token)
    return {
        "step_seconds": step,
        "token_seconds": token,
        "tau_break_even": break_even,
        "tau": tau,
        "predicted_speedup": _over(tau, break_even),
    }


def _over(count: float, of: float) -> float:
    return float(count / of) if of > 0 else math.nan
