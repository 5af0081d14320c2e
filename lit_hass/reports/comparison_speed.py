"""How much faster one run is than another: ratio of sums, the original definition, and what a step costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_hass.reports.bootstrap import bootstrap_interval
from lit_hass.reports.comparison_join import JoinedQuestion
from lit_hass.reports.comparison_run import ComparedRun

_ORIGINAL_NOTE = (
    "ratio of the means over questions of (tokens of choice 0 / seconds of choice 0), as speed.py of the EAGLE family "
    "computes it, over each file by itself; that script counts a baseline's tokens by tokenising its texts again, "
    "here both files' own new_tokens are used"
)


def speed_comparison(questions: Sequence[JoinedQuestion], resamples: int, seed: int) -> dict[str, Any]:
    """Speedup end to end (prefill included) and decoding only, each with its uncertainty.

    Returns:
        for ``end_to_end`` and ``decode_only``: tokens per second of ``baseline`` and ``hass``, ``ratio`` =
        (sum of tokens / sum of seconds) over the same of the baseline, its ``interval`` (95 %, paired bootstrap over
        questions; None with fewer than 2), and ``questions``, how many have the times it takes.
    """
    end_to_end = [(q.hass.tokens, q.hass.seconds, q.baseline.tokens, q.baseline.seconds) for q in questions if q.timed]
    decode_only = [
        (q.hass.later_tokens, q.hass.decode_seconds, q.baseline.later_tokens, q.baseline.decode_seconds)
        for q in questions
        if q.timed and math.isfinite(q.hass.decode_seconds) and math.isfinite(q.baseline.decode_seconds)
    ]
    return {
        "end_to_end": _ratio(end_to_end, resamples, seed),
        "decode_only": _ratio(decode_only, resamples, seed),
    }


def _ratio(rows: Sequence[tuple[float, float, float, float]], resamples: int, seed: int) -> dict[str, Any]:
    columns = np.array(rows, dtype=np.float64).reshape(-1, 4)
    tokens, seconds, base_tokens, base_seconds = columns.sum(axis=0)
    return {
        "baseline": _over(base_tokens, base_seconds),
        "hass": _over(tokens, seconds),
        "ratio": _over(_over(tokens, seconds), _over(base_tokens, base_seconds)),
        "interval": bootstrap_interval(columns, lambda s: (s[0] / s[1]) / (s[2] / s[3]), resamples, seed),
        "questions": len(columns),
    }


def original_speedup(baseline: ComparedRun, hass: ComparedRun) -> dict[str, Any]:
    """The speeds and their ratio as the original ``speed.py`` defines them; questions without times are left out."""
    means = {}
    left_out = 0
    for name, run in (("baseline", baseline), ("hass", hass)):
        speeds = []
        for answer in run.answered.values():
            choice = answer["choices"][0]
            seconds = [math.nan if t is None else t for t in choice["wall_time"]]
            speed = _over(sum(choice["new_tokens"]), sum(seconds))
            if math.isfinite(speed):
                speeds.append(speed)
            else:
                left_out += 1
        means[name] = float(np.mean(speeds)) if speeds else math.nan
    ratio = _over(means["hass"], means["baseline"])
    return {**means, "ratio": ratio, "questions_left_out": left_out, "note": _ORIGINAL_NOTE}


def repeats_of(questions: Sequence[JoinedQuestion]) -> dict[str, Any] | None:
    """What the repetitions say, where every question has the same number of them in both runs.

    Returns:
        ``count``; ``speedups``, one per repetition; and how far the repetitions of a question lie apart, as the median
        over questions of (slowest - fastest) / median, for both runs. None without repetitions.
    """
    timed = [q for q in questions if q.timed]
    counts = {len(cost.repeats) for q in timed for cost in (q.baseline, q.hass)}
    if len(counts) != 1 or counts <= {0, 1}:
        return None
    base = np.array([q.baseline.repeats for q in timed])
    hass = np.array([q.hass.repeats for q in timed])
    per_token = sum(q.hass.tokens for q in timed) / max(sum(q.baseline.tokens for q in timed), 1)
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


def cost_model(questions: Sequence[JoinedQuestion], tau: float) -> dict[str, Any]:
    """What a step costs in plain tokens, hence how many tokens it must give to pay.

    Args:
        questions: joined runs; the second one drafts.
        tau: its acceptance length, micro.

    Returns:
        ``step_seconds`` (decoding seconds over verification steps), ``token_seconds`` (the baseline's decoding
        seconds over its tokens after the first), ``tau_break_even`` = their ratio, ``tau`` and ``predicted_speedup`` =
        tau / tau_break_even, to be held against the measured decoding-only ratio. NaN without steps or times.
    """
    known = [q for q in questions if math.isfinite(q.hass.decode_seconds) and math.isfinite(q.baseline.decode_seconds)]
    steps = sum(turn.hass.steps for q in known for turn in q.timed)
    step = _over(sum(q.hass.decode_seconds for q in known), steps)
    token = _over(sum(q.baseline.decode_seconds for q in known), sum(q.baseline.later_tokens for q in known))
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
