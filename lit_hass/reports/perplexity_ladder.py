"""The gap between two protocols, one setting at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_hass.errors import RunError
from lit_hass.metrics.functional.perplexity import exp, ratio
from lit_hass.reports.perplexity_rows import UNIT_NAMES, number

#: How far the parts may be from the whole: float64 rounding and nothing else.
_TOLERANCE = 1e-9


def climb(
    ladder: dict[str, Any] | None, outcomes: Sequence[dict[str, Any]], protocols: dict[str, dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Evaluate every rung.

    Args:
        ladder: of a run's description; None has no rungs.
        outcomes: of the plan's recipes.
        protocols: the report's, whose printed numbers the ladder leads from and to.

    Returns:
        The rungs (``switch``, ``nll``, ``tokens_scored``, ``windows``, ``unit``, ``ppl``, ``ln_ppl``, ``contribution``
        in nats, ``share`` of the whole), and the summary: ``from``, ``to``, ``ln_ratio``, ``sum``, ``unit_share``,
        ``order`` and one line of ``answer``.

    Raises:
        RunError: the contributions do not add up to the logarithm of the ratio of what the two protocols print.
    """
    if ladder is None:
        return [], None
    rungs = [_rung(rung, outcomes[rung["plan"]]) for rung in ladder["rungs"]]
    start, goal = (protocols[ladder[end]]["printed"] for end in ("from", "to"))
    total = math.log(goal["value"]) - math.log(start["value"]) if _finite(start, goal) else math.nan
    for before, rung in zip([None, *rungs], rungs, strict=False):
        rung["contribution"] = None if before is None else rung["ln_ppl"] - before["ln_ppl"]
        rung["share"] = None if before is None else ratio(rung["contribution"], total)
    found = math.fsum(rung["contribution"] for rung in rungs[1:])
    if _finite(start, goal) and not abs(found - total) <= _TOLERANCE * max(1.0, abs(total)):
        raise RunError(
            f"the ladder from {ladder['from']} to {ladder['to']} adds up to {found!r}, and the logarithm of the ratio "
            f"is {total!r}"
        )
    unit = math.fsum(r["contribution"] for b, r in zip(rungs, rungs[1:], strict=False) if b["unit"] != r["unit"])
    summary = {
        "from": ladder["from"],
        "to": ladder["to"],
        "ln_ratio": total,
        "sum": found,
        "unit": unit,
        "unit_share": ratio(unit, total),
        "order": [rung["switch"] for rung in rungs[1:]],
        "answer": _answer(ladder, start, goal, unit, total),
    }
    return rungs, summary


def _finite(*ends: dict[str, Any]) -> bool:
    return all(end["value"] is not None and 0 < end["value"] < math.inf for end in ends)


def _rung(rung: dict[str, Any], outcome: dict[str, Any]) -> dict[str, Any]:
    nll, scored, words = outcome["nll"], outcome["tokens_scored"], outcome["words"]
    estimated = rung["unit"] == "word" and not rung["whole_text"]
    tokens = rung["text_tokens"] if estimated else scored
    if rung["mean"] == "texts":
        value = outcome["mean_document_ppl"]
        logarithm = math.log(value) if value > 0 else math.nan
    elif estimated:  # as if the tokens that are not scored were as hard as the others; so is what is printed
        logarithm = ratio(nll, scored) * ratio(tokens, words)
    else:
        logarithm = ratio(nll, words if rung["unit"] == "word" else scored)
    return {
        "switch": rung["switch"],
        "nll": nll,
        "tokens_scored": scored,
        "windows": outcome["windows"],
        "unit": rung["unit"],
        "mean": rung["mean"],
        "tokens_per_word": ratio(tokens, words),
        "ppl": exp(logarithm),
        "ln_ppl": logarithm,
    }


def _answer(ladder: dict[str, Any], start: dict[str, Any], goal: dict[str, Any], unit: float, total: float) -> str:
    ends = f"{ladder['from']} {_shown(start)} and {ladder['to']} {_shown(goal)}"
    if not math.isfinite(total):
        return f"the gap between {ends} is no finite number, and what the unit is of it cannot be said"
    if not total:
        return f"between {ends} there is no gap to explain"
    if not unit:
        return f"{ends} are in one unit; their gap of {total:+.4f} in ln PPL is all protocol"
    return (
        f"{unit / total:.1%} of the log gap between {ends} is the unit (tokens to words); all else is "
        f"{1 - unit / total:+.1%}"
    )


def _shown(printed: dict[str, Any]) -> str:
    return f"({UNIT_NAMES[printed['unit']]} {number(printed['value'])})"
