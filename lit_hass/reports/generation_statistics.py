"""What a file of answers says about speed, length, acceptance and correctness."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from lit_hass.metrics.functional.acceptance import (
    acceptance_by_depth,
    accepted_histogram,
    node_acceptance_rate,
    tau_micro,
    tau_original,
    tokens_per_step,
)
from lit_hass.records import is_failed
from lit_hass.reports.answer_turns import AnswerTurn, turns_of


def generation_statistics(
    answers: Sequence[dict[str, Any]],
    categories: dict[Any, str | None] | None = None,
    nodes_per_step: int | None = None,
) -> dict[str, Any]:
    """Summarise answer lines, ours or the original scripts'.

    All rates are ratios of sums over every turn of every choice of every answered question. Times are shares of the
    batch a turn was decoded in (``time_share``), so that they add up to the time spent at any batch size. What a file
    does not say of a turn is left out of that figure and counted under ``unknown``.

    Args:
        answers: lines of an answer file (``read_answers``).
        categories: question id -> category, for the matches by category.
        nodes_per_step: drafted nodes of a tree, the root not counted, where there was a draft and it is known.

    Returns:
        a JSON-ready dict. What is undefined is NaN (null once written): a rate without time, a share of nothing.

        * ``questions``: total, answered, failed.
        * ``turns``, ``choices``: how many answers that makes.
        * ``new_tokens``: total, and their distribution per turn.
        * ``prompt_tokens``: the same.
        * ``tokens_per_second``: ``end_to_end`` (prefill included) and ``decode_only`` (the tokens after each
          first one over the seconds after it).
        * ``tokens_per_processor_second``: the same over the seconds of the process's processors, which other work on
          the machine hardly touches; of runs on a CPU.
        * ``load``: of the machine while it answered, ``mean`` and ``max`` (see `AnswerRecord`); None where unknown.
        * ``acceptance``: None where nothing was drafted, else the acceptance length as ``micro`` (every step weighs
          the same), ``mean_of_questions`` (choice 0, every question weighs the same: the formula of EAGLE's script),
          ``original`` (the same of a file that the original scripts wrote: what their script prints; None of ours,
          because their decoder goes one step beyond an end token that came as the bonus token) and ``tokens_per_step``;
          ``by_depth``, ``histogram`` (steps with 0, 1, ... accepted tokens), ``node_acceptance_rate``,
          ``nodes_per_step``, ``steps``, and ``reasons`` for what is undefined or left out, with counts.
        * ``seconds``: total, prefill, decode; ``wall_time``: their distribution per turn.
        * ``stop_reasons``: how many answers ended with a stop token, how many were cut by ``max_new_tokens``
          (``length``) and how many by the end of the model's context (``context``).
        * ``exact_match``: matched, of (turns with a reference), share; ``by_category``.
        * ``peak_memory_bytes``.
        * ``collected_features``: answers during which features were copied: their times are no measure of speed.
        * ``unknown``: name -> turns of which the file does not say it.
    """
    answered = [answer for answer in answers if not is_failed(answer)]
    turns = [turn for answer in answered for turn in turns_of(answer)]
    new_tokens = [turn.new_tokens for turn in turns]
    total, prefill = _sum_known(t.seconds for t in turns), _sum_known(t.prefill_seconds for t in turns)
    return {
        "questions": {"total": len(answers), "answered": len(answered), "failed": len(answers) - len(answered)},
        "choices": sum(len(answer["choices"]) for answer in answered),
        "turns": len(turns),
        "new_tokens": {"total": sum(new_tokens), **distribution(new_tokens)},
        "prompt_tokens": _distribution_known(turn.prompt_tokens for turn in turns),
        "tokens_per_second": {
            "end_to_end": _speed(new_tokens, [turn.seconds for turn in turns]),
            "decode_only": _speed([turn.later_tokens for turn in turns], [turn.decode_seconds for turn in turns]),
        },
        "tokens_per_processor_second": {
            "end_to_end": _speed(new_tokens, [turn.processor_seconds for turn in turns]),
            "decode_only": _speed(
                [turn.later_tokens for turn in turns],
                [turn.processor_seconds - turn.processor_prefill_seconds for turn in turns],
            ),
        },
        "load": machine_load(answered),
        "acceptance": _acceptance(answered, nodes_per_step),
        "seconds": {"total": total, "prefill": prefill, "decode": _sum_known(t.decode_seconds for t in turns)},
        "wall_time": _distribution_known(turn.wall_time for turn in turns),
        "stop_reasons": _stop_reasons(turns),
        "exact_match": {
            **_matches(turns),
            "by_category": _by(answered, lambda answer: (categories or {}).get(answer["question_id"])),
        },
        "peak_memory_bytes": max((a["peak_memory"] for a in answered if a.get("peak_memory")), default=None),
        "collected_features": sum(bool(answer.get("collected_features")) for answer in answered),
        "unknown": _unknown(turns),
    }


def machine_load(answers: Sequence[dict[str, Any]]) -> dict[str, float] | None:
    """``mean`` and ``max`` of the machine's load that answer lines wrote down; None where they did not."""
    loads = [answer["load"] for answer in answers if answer.get("load") is not None]
    return {"mean": float(np.mean(loads)), "max": float(max(loads))} if loads else None


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


def _acceptance(answers: Sequence[dict[str, Any]], nodes_per_step: int | None) -> dict[str, Any] | None:
    """See `generation_statistics`; None where nothing was drafted."""
    choices = [choice for answer in answers for choice in answer["choices"]]
    accepted = [a for choice in choices for a in choice.get("accept_length", ())]
    if not accepted:
        return None
    mean, left_out = tau_original(answer["choices"][0].get("accept_length", ()) for answer in answers)
    # The original scripts write no lists by turn.
    original = not any(choice.get("accept_lengths") for choice in choices)
    new_tokens = sum(sum(choice["new_tokens"]) for choice in choices)
    reasons = {}
    if left_out:
        reasons["questions without a step, left out of mean_of_questions"] = left_out
    if nodes_per_step is None or nodes_per_step < 1:
        why = "the number of drafted nodes is not known" if nodes_per_step is None else "no nodes are drafted"
        reasons[f"{why}, so node_acceptance_rate is undefined"] = 1
    return {
        "micro": tau_micro(accepted),
        "mean_of_questions": mean,
        "original": mean if original else None,
        "tokens_per_step": tokens_per_step(new_tokens, len(accepted)),
        "by_depth": acceptance_by_depth(accepted),
        "histogram": accepted_histogram(accepted),
        "node_acceptance_rate": node_acceptance_rate(accepted, nodes_per_step or 0),
        "nodes_per_step": nodes_per_step,
        "steps": len(accepted),
        "reasons": reasons,
    }


def _speed(tokens: Sequence[int], seconds: Sequence[float]) -> float:
    """Tokens over seconds of the turns whose seconds are known."""
    known = [(n, t) for n, t in zip(tokens, seconds, strict=True) if math.isfinite(t)]
    count = sum(n for n, _ in known)
    # Without tokens the seconds are the rounding error of a difference, and 0 would be no speed.
    return _ratio(count, sum(t for _, t in known)) if count else float("nan")


def _sum_known(values: Iterable[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(sum(known)) if known else float("nan")


def _distribution_known(values: Iterable[float | None]) -> dict[str, float]:
    return distribution([value for value in values if value is not None and math.isfinite(value)])


def _stop_reasons(turns: Sequence[AnswerTurn]) -> dict[str, float]:
    known = [turn.stop_reason for turn in turns if turn.stop_reason is not None]
    nobody_knows = bool(turns) and not known
    return {name: float("nan") if nobody_knows else known.count(name) for name in ("stop", "length", "context")}


def _unknown(turns: Sequence[AnswerTurn]) -> dict[str, int]:
    missing = {
        "seconds": sum(not math.isfinite(turn.seconds) for turn in turns),
        "prefill_seconds": sum(not math.isfinite(turn.prefill_seconds) for turn in turns),
        "prompt_tokens": sum(turn.prompt_tokens is None for turn in turns),
        "stop_reason": sum(turn.stop_reason is None for turn in turns),
    }
    return {name: count for name, count in missing.items() if count}


def _ratio(count: float, of: float) -> float:
    return count / of if of > 0 else float("nan")


def _matches(turns: Sequence[AnswerTurn]) -> dict[str, Any]:
    judged = [turn.exact_match for turn in turns if turn.exact_match is not None]
    return {"matched": sum(judged), "of": len(judged), "share": _ratio(sum(judged), len(judged))}


def _by(answers: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], str | None]) -> dict[str, Any]:
    groups: dict[str, list[AnswerTurn]] = {}
    for answer in answers:
        name = key(answer)
        if name is not None:
            groups.setdefault(name, []).extend(turns_of(answer))
    return {name: _matches(groups[name]) for name in sorted(groups)}
