"""Two runs of the same questions, compared: speed, acceptance, agreement, correctness."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from lit_hass.errors import UserError
from lit_hass.metrics.functional.acceptance import tau_micro
from lit_hass.records import QuestionId, to_jsonable
from lit_hass.reports.answer_turns import Clock
from lit_hass.reports.comparison_fairness import Difference, find_differences, unknown_distribution
from lit_hass.reports.comparison_join import JoinedQuestion, headline_clock, join
from lit_hass.reports.comparison_notes import lossless, notes
from lit_hass.reports.comparison_run import ComparedRun, read_categories, read_run
from lit_hass.reports.comparison_speed import cost_model, original_speedup, repeats_of, speed_comparison
from lit_hass.reports.generation_statistics import generation_statistics, machine_load
from lit_hass.reports.token_agreement import token_agreement

log = logging.getLogger(__name__)


def compare_runs(
    baseline_folder: str | os.PathLike[str],
    hass_folder: str | os.PathLike[str],
    allow_differences: bool = False,
    categories: Mapping[QuestionId, str] | None = None,
) -> dict[str, Any]:
    """Compare a run with a draft to the baseline's, question by question.

    Args:
        baseline_folder: folder of the run without a draft, or an answer file (of the original scripts, say).
        hass_folder: the same for the run with a draft.
        allow_differences: compare an unfair pair too; the result names what differs. Where the two do not draw from the
            same distribution there is no headline.
        categories: question id -> category; None looks into the question file that the runs name.

    Returns:
        plain JSON values, null for what is undefined:

        * ``runs``: path, model, draft, tree, preset and counts of ``baseline`` and ``hass``.
        * ``headline``: speedup end to end and decoding only with their intervals, and by which ``clock``; None where
          the runs' distributions differ or are unknown.
        * ``same_distribution``: true, false, or null where settings are unknown; ``differences``: what is unfair about
          the pair (see `Difference`); ``lossless``: whether the tokens are the baseline's own, null where nothing can
          be said; ``notes``: sentences.
        * ``speed``: ``end_to_end`` and ``decode_only`` by wall time (see `speed_comparison`); ``processor``: the same
          by the processors' time, null where not all answers know it; ``clock``: which of both is the headline's, and
          that of ``repeats`` (`repeats_of`), ``cost_model``, ``categories`` and ``questions``; ``original``
          (`original_speedup`); ``level``. ``load``: of the machine while each run's answers were timed.
        * ``acceptance``: of both runs, null without a draft (see `generation_statistics`).
        * ``agreement``: see `token_agreement`. ``exact_match``: of both runs, and of how many answers both, one or the
          other match. ``cost_model``: see there.
        * ``collapse``: of both runs ``svd_entropy``, ``gnc2``, ``unc3`` and ``cka`` of the draft's features with the
          base's, from their ``collapse_metrics.json``; null where there is none.
        * ``categories``: the main figures by category; ``category_source``.
        * ``questions``: the same by question. ``joined``: how many questions, choices and turns that are.
        * ``undefined``: reason -> count, for what was left out.

    Raises:
        UserError: a run cannot be read, nothing was answered by both, or the pair is unfair and that is not allowed;
            the message names what differs.
    """
    baseline, hass = read_run(baseline_folder), read_run(hass_folder)
    if baseline.path.resolve() == hass.path.resolve():
        raise UserError(f"{baseline.path}: a run cannot be compared with itself")
    differences = find_differences(baseline, hass)
    if differences and not allow_differences:
        named = "; ".join(map(str, differences))
        pair = f"{baseline.path} and {hass.path} are no fair pair"
        raise UserError(f"{pair}: {named} (--allow-differences compares them all the same)")
    found, source = (dict(categories), "the caller") if categories is not None else read_categories((baseline, hass))
    questions = join(baseline, hass, found)
    if not questions:
        raise UserError(f"{baseline.path} and {hass.path} have no answered question in common")
    return to_jsonable(_compare(baseline, hass, questions, differences, source))


def _compare(
    baseline: ComparedRun,
    hass: ComparedRun,
    questions: Sequence[JoinedQuestion],
    differences: Sequence[Difference],
    category_source: str | None,
) -> dict[str, Any]:
    same = _same_distribution(differences)
    clock = headline_clock(questions)
    processor = speed_comparison(questions, "processor") if clock == "processor" else None
    speed: dict[str, Any] = {**speed_comparison(questions), "processor": processor}
    agreement = token_agreement(questions)
    verdict, unknown_loss = lossless(baseline, hass, same, agreement)
    comparison = {
        "runs": {"baseline": _about(baseline), "hass": _about(hass)},
        "headline": _headline(processor or speed, clock) if same else None,
        "same_distribution": same,
        "lossless": verdict,
        "differences": [difference.to_dict() for difference in differences],
        "joined": {
            "questions": len(questions),
            "choices": sum(len({turn.choice for turn in q.turns}) for q in questions),
            "turns": sum(len(q.turns) for q in questions),
        },
        "speed": {
            **speed,
            "clock": clock,
            "original": original_speedup(baseline, hass),
            "repeats": repeats_of(questions, clock),
            "level": 0.95,
        },
        "load": {"baseline": _load(baseline), "hass": _load(hass)},
        "acceptance": {"baseline": _acceptance(baseline), "hass": _acceptance(hass)},
        "agreement": agreement,
        "exact_match": _exact_match(questions),
        "collapse": {"baseline": _collapse(baseline), "hass": _collapse(hass)},
        "cost_model": cost_model(questions, tau_micro(a for q in questions for a in q.accepted), clock),
        "categories": _by_category(questions, clock),
        "category_source": category_source,
        "questions": [_question(question, clock) for question in questions],
        "undefined": _undefined(questions),
    }
    return {**comparison, "notes": list(notes(baseline, hass, comparison, unknown_loss))}


def _same_distribution(differences: Sequence[Difference]) -> bool | None:
    if any(d.kind == "distribution" for d in differences):
        return False
    return None if unknown_distribution(differences) else True


def _headline(speed: dict[str, Any], clock: Clock) -> dict[str, Any]:
    return {
        "clock": clock,
        "speedup": speed["end_to_end"]["ratio"],
        "interval": speed["end_to_end"]["interval"],
        "decode_only_speedup": speed["decode_only"]["ratio"],
        "decode_only_interval": speed["decode_only"]["interval"],
    }


def _about(run: ComparedRun) -> dict[str, Any]:
    ids = [answer["model_id"] for answer in run.answered.values()]
    return {
        "path": str(run.path),
        "model_id": ids[0] if ids else None,
        "draft": run.model.get("draft"),
        "tree": run.model.get("tree"),
        "preset": run.preset,
        "dtype": run.dtype,
        "device": (run.settings or {}).get("device"),
        "batch_rows": run.batch_rows,
        "questions": len(run.answers),
        "failed": len(run.failed),
        "model": run.model,
        "environment": run.environment,
    }


def _acceptance(run: ComparedRun) -> dict[str, Any] | None:
    return generation_statistics(run.answers, nodes_per_step=run.nodes_per_step)["acceptance"]


def _collapse(run: ComparedRun) -> dict[str, Any] | None:
    if run.collapse is None:
        return None
    overall, family = run.collapse.get("overall_metrics") or {}, run.collapse.get("family") or {}
    return {
        **{name: overall.get(name) for name in ("svd_entropy", "gnc2", "unc3")},
        "cka": (family.get("answer") or {}).get("cka/linear"),
    }


def _exact_match(questions: Sequence[JoinedQuestion]) -> dict[str, Any]:
    judged = [
        (turn.baseline.exact_match, turn.hass.exact_match)
        for question in questions
        for turn in question.turns
        if turn.baseline.exact_match is not None and turn.hass.exact_match is not None
    ]
    matched = [sum(pair[i] for pair in judged) for i in (0, 1)]
    both = sum(one and other for one, other in judged)
    return {
        "of": len(judged),
        "baseline": {"matched": matched[0], "share": _share(matched[0], len(judged))},
        "hass": {"matched": matched[1], "share": _share(matched[1], len(judged))},
        "both": both,
        "baseline_only": matched[0] - both,
        "hass_only": matched[1] - both,
    }


def _load(run: ComparedRun) -> dict[str, Any] | None:
    """Of the machine, over a run's answers; None where nobody wrote it down."""
    load, environment = machine_load(list(run.answered.values())), run.environment or {}
    if load is None:
        return None
    return {**load, "processors": environment.get("cpu_count"), "threads": environment.get("cpu_threads")}


def _by_category(questions: Sequence[JoinedQuestion], clock: Clock) -> dict[str, Any]:
    groups: dict[str, list[JoinedQuestion]] = {}
    for question in questions:
        if question.category is not None:
            groups.setdefault(question.category, []).append(question)
    return {name: _category(groups[name], clock) for name in sorted(groups)}


def _category(group: Sequence[JoinedQuestion], clock: Clock) -> dict[str, Any]:
    speed, agreement = speed_comparison(group, clock), token_agreement(group)
    return {
        "questions": len(group),
        "speedup": speed["end_to_end"]["ratio"],
        "interval": speed["end_to_end"]["interval"],
        "decode_only_speedup": speed["decode_only"]["ratio"],
        "acceptance_length": tau_micro(a for question in group for a in question.accepted),
        "exact_match": _exact_match(group),
        "identical_turn_share": agreement["identical_turn_share"],
    }


def _question(question: JoinedQuestion, clock: Clock) -> dict[str, Any]:
    # Without a timed turn there is no clock, and nothing on the wall's.
    one, other = question.costs.get(clock) or question.costs["wall"]
    agreement = token_agreement([question])
    return {
        "question_id": question.question_id,
        "category": question.category,
        "baseline": {"tokens": one.tokens, "seconds": one.seconds, "tokens_per_second": one.speed},
        "hass": {"tokens": other.tokens, "seconds": other.seconds, "tokens_per_second": other.speed},
        "speedup": other.speed / one.speed if one.speed > 0 else float("nan"),
        "acceptance_length": tau_micro(question.accepted),
        "identical": agreement["identical_turns"] == agreement["turns"] if agreement["turns"] else None,
        "same_text": agreement["identical_texts"] == len(question.turns),
    }


def _undefined(questions: Sequence[JoinedQuestion]) -> dict[str, int]:
    counts = {
        "answers without a recorded time, left out of all speeds": sum(len(q.turns) - len(q.timed) for q in questions),
        "answers without the time of their first token, left out of decoding only": sum(
            turn.baseline.prefill_seconds != turn.baseline.prefill_seconds
            or turn.hass.prefill_seconds != turn.hass.prefill_seconds
            for q in questions
            for turn in q.turns
        ),
        "answers without tokens in the file, left out of the agreement": sum(
            turn.baseline.output_ids is None or turn.hass.output_ids is None for q in questions for turn in q.turns
        ),
        "answers without a verdict on their reference": sum(
            turn.baseline.exact_match is None or turn.hass.exact_match is None for q in questions for turn in q.turns
        ),
        "questions of the second run without a verification step": sum(not q.accepted for q in questions),
    }
    return {reason: count for reason, count in counts.items() if count}


def _share(count: int, of: int) -> float:
    return count / of if of else float("nan")
