"""How good the rationales of one pass over the questions are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_hass.metrics.functional.token_lengths import LengthHistogram
from lit_hass.records.predictions import Prediction


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """The score interval of a share (Wilson 1927), 95 % by default; NaN without trials."""
    if not n:
        return math.nan, math.nan
    share, square = successes / n, z * z / n
    centre = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def rationale_statistics(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Accuracy, rates and lengths of a pass.

    Hinted predictions are no answers: of a hinted pass there is no accuracy, only how many were made right.

    Returns:
        ``n``; ``accuracy`` of the strict reading with ``standard_error`` and ``interval`` (95 %, Wilson),
        ``accuracy_loose`` of the original scripts' reading, ``readings_differ`` (the share of predictions for which the
        two name different choices, or only one names any), ``parse_rate`` (share with a strict answer), ``cut_rate``,
        ``kept`` (right and not cut), ``hinted``, ``lengths`` of prompts, completions and both, ``seconds`` (of all
        batches) and ``tokens_per_second``. What is undefined is None.
    """
    n = len(predictions)
    hinted = sum(one.hinted for one in predictions)
    correct = sum(one.correct for one in predictions)
    seconds = sum(one.seconds for one in predictions)
    tokens = sum(one.gen_tokens for one in predictions)

    def share(count: int) -> float | None:
        return count / n if n else None

    measured = n > 0 and not hinted
    accuracy = correct / n if measured else None
    cut = [one.cut for one in predictions]
    lengths = {
        "prompt": LengthHistogram.of([one.prompt_tokens for one in predictions]),
        "completion": LengthHistogram.of([one.gen_tokens for one in predictions], cut),
        "total": LengthHistogram.of([one.prompt_tokens + one.gen_tokens for one in predictions], cut),
    }
    return {
        "n": n,
        "correct": correct,
        "hinted": hinted,
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / n) if accuracy is not None else None,
        "interval": list(wilson_interval(correct, n)) if measured else None,
        "accuracy_loose": share(sum(one.loose == one.key for one in predictions)) if measured else None,
        "readings_differ": share(sum(one.answer != one.loose for one in predictions)),
        "parse_rate": share(sum(one.answer is not None for one in predictions)),
        "cut_rate": share(sum(cut)),
        "kept": sum(one.kept for one in predictions),
        "lengths": {name: histogram.summary() for name, histogram in lengths.items()},
        "seconds": seconds,
        "tokens_per_second": tokens / seconds if seconds else None,
    }


def rationale_summary(statistics: dict[str, Any]) -> list[str]:
    """The figures in a few lines for people."""
    n, correct = statistics["n"], statistics["correct"]
    if statistics["accuracy"] is None:
        first = f"{correct} of {n} answered right with the answer as a hint (no accuracy)"
    else:
        low, high = statistics["interval"]
        first = (
            f"accuracy {statistics['accuracy']:.1%} ({correct} of {n}; 95% {low:.1%} to {high:.1%}), "
            f"by the loose reading {statistics['accuracy_loose']:.1%}"
        )
    return [first, f"{statistics['kept']} to train on; {rates(statistics)}"]


def rates(statistics: dict[str, Any]) -> str:
    """Parse and cut rate in words: what to look at when little or nothing is correct."""
    if not statistics["n"]:
        return "nothing was asked"
    return f"{statistics['parse_rate']:.1%} name an answer, {statistics['cut_rate']:.1%} hit the limit of new tokens"
