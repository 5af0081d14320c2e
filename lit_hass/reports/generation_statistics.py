"""What a file of answers says about speed, length and correctness."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lit_hass.records import is_failed


def generation_statistics(
    answers: Sequence[dict[str, Any]], categories: dict[Any, str | None] | None = None
) -> dict[str, Any]:
    """Summarise answer lines.

    All rates are ratios of sums over every turn of every choice of every answered question. Times are shares of the
    batch a turn was decoded in (``time_share``), so that they add up to the time spent at any batch size.

    Args:
        answers: lines of an answer file (``read_answers``).
        categories: question id -> category, for the matches by category.

    Returns:
        a JSON-ready dict. What is undefined is NaN (null once written): a rate without time, a share of nothing.

        * ``questions``: total, answered, failed.
        * ``turns``, ``choices``: how many answers that makes.
        * ``new_tokens``: total, and their distribution per turn.
        * ``prompt_tokens``: the same.
        * ``tokens_per_second``: ``end_to_end`` (prefill included) and ``decode_only`` (the tokens after each
          first one over the seconds after it).
        * ``seconds``: total, prefill, decode; ``wall_time``: their distribution per turn.
        * ``stop_reasons``: how many answers ended with a stop token and how many were cut.
        * ``exact_match``: matched, of (turns with a reference), share; ``by_category``.
        * ``peak_memory_bytes``.
    """
    answered = [answer for answer in answers if not is_failed(answer)]
    turns = [turn for answer in answered for turn in _turns(answer)]
    new_tokens = np.array([turn["new_tokens"] for turn in turns], dtype=np.int64)
    total_seconds = _sum(turns, "time_share")
    prefill = float(sum(turn["prefill_time"] / turn["batch_rows"] for turn in turns))
    later_tokens = int(np.maximum(new_tokens - 1, 0).sum())
    return {
        "questions": {"total": len(answers), "answered": len(answered), "failed": len(answers) - len(answered)},
        "choices": sum(len(answer["choices"]) for answer in answered),
        "turns": len(turns),
        "new_tokens": {"total": int(new_tokens.sum()), **distribution(new_tokens)},
        "prompt_tokens": _distribution_of(turns, "prompt_tokens"),
        "tokens_per_second": {
            "end_to_end": _ratio(int(new_tokens.sum()), total_seconds),
            # Without later tokens the seconds are the rounding error of a difference, and 0 would be no speed.
            "decode_only": _ratio(later_tokens, total_seconds - prefill) if later_tokens else float("nan"),
        },
        "seconds": {"total": total_seconds, "prefill": prefill, "decode": total_seconds - prefill},
        "wall_time": _distribution_of(turns, "wall_time"),
        "stop_reasons": {reason: sum(turn["stop_reason"] == reason for turn in turns) for reason in ("stop", "length")},
        "exact_match": {
            **_matches(turns),
            "by_category": _by(answered, lambda answer: (categories or {}).get(answer["question_id"])),
        },
        "peak_memory_bytes": max((a["peak_memory"] for a in answered if a.get("peak_memory")), default=None),
    }


def distribution(values: Sequence[float] | np.ndarray) -> dict[str, float]:
    """Mean, minimum, quantiles and maximum of the values; NaN when there are none."""
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return dict.fromkeys(("mean", "min", "p50", "p90", "p99", "max"), float("nan"))
    p50, p90, p99 = np.quantile(array, (0.5, 0.9, 0.99))
    return {
        "mean": float(array.mean()),
        "min": float(array.min()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(array.max()),
    }


def _turns(answer: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a line, which are lists by turn, as one dict per turn."""
    keys = (
        "new_tokens",
        "prompt_tokens",
        "wall_time",
        "prefill_time",
        "time_share",
        "batch_rows",
        "stop_reason",
        "exact_match",
    )
    return [
        {key: choice[key][i] for key in keys} for choice in answer["choices"] for i in range(len(choice["new_tokens"]))
    ]


def _sum(turns: Sequence[dict[str, Any]], key: str) -> float:
    return float(sum(turn[key] for turn in turns))


def _distribution_of(turns: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    return distribution([turn[key] for turn in turns])


def _ratio(count: float, of: float) -> float:
    return count / of if of > 0 else float("nan")


def _matches(turns: Sequence[dict[str, Any]]) -> dict[str, Any]:
    judged = [turn["exact_match"] for turn in turns if turn["exact_match"] is not None]
    return {"matched": sum(judged), "of": len(judged), "share": _ratio(sum(judged), len(judged))}


def _by(answers: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str | None]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        name = key(answer)
        if name is not None:
            groups.setdefault(name, []).extend(_turns(answer))
    return {name: _matches(groups[name]) for name in sorted(groups)}
