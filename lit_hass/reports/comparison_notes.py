"""What a reader of a comparison must know beside its figures, in sentences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lit_hass.metrics.functional.jackknife import FEWEST_UNITS
from lit_hass.records.answer_files import superseded_note
from lit_hass.reports.comparison_fairness import is_greedy
from lit_hass.reports.comparison_run import PRESETS, ComparedRun

_WHY_NOT_ORIGINAL = (
    "its repetition penalty of {repetition_penalty} and its ban of repeated n-grams of {no_repeat_ngram_size} also see "
    "the prompt, so every token of the question is made less likely, and the answer may not copy even a trigram of it: "
    "such a model answers otherwise, in other lengths, and mostly fails where the task is to copy. It is here for "
    "parity with results of the original scripts, not as an opponent on equal terms"
)


def lossless(
    baseline: ComparedRun, hass: ComparedRun, same_distribution: bool | None, agreement: dict[str, Any]
) -> tuple[bool | None, str | None]:
    """Whether the second run gave the baseline's own tokens, where it had to.

    It has to in float32 (or float64), on the same kind of device, with equal settings, greedy or with equal seeds: the
    noise of sampling is keyed by seed and position.

    Returns:
        The verdict, None where none can be given; then also why.
    """
    if same_distribution is not True:
        return None, "the settings differ or are unknown"
    if agreement["turns"] == 0:
        return None, "the answers' tokens are not in the files"
    if baseline.dtype in (None, "auto"):
        return None, "nobody wrote down which dtype the weights had"
    if baseline.dtype not in ("float32", "float64"):
        return None, f"in {baseline.dtype} rounding turns near-ties, so equal tokens are not to be expected"
    if (baseline.settings or {}).get("device") != (hass.settings or {}).get("device"):
        return None, "the runs were made on different kinds of device, which round differently"
    if not is_greedy(baseline) and baseline.model.get("seed") != hass.model.get("seed"):
        return None, "the answers were sampled with different seeds"
    if agreement["identical_turns"] < agreement["turns"]:
        return False, None
    if agreement["turns_without_tokens"]:
        return None, "the tokens of some answers are not in the files"
    return True, None


def notes(
    baseline: ComparedRun,
    hass: ComparedRun,
    comparison: dict[str, Any],
    unknown_loss: str | None,
) -> Iterable[str]:
    """Warn of what would mislead; ``comparison`` is all but finished."""
    for run, name in ((baseline, "baseline"), (hass, "second run")):
        if run.preset is not None and not (baseline.preset == hass.preset):
            why = _WHY_NOT_ORIGINAL.format(**PRESETS[run.preset])
            yield f'the {name} decodes with the preset "{run.preset}", which is not like for like: {why}.'
    if comparison["lossless"] is False:
        agreement = comparison["agreement"]
        differing = agreement["turns"] - agreement["identical_turns"]
        yield (
            f"NOT LOSSLESS: {differing} of {agreement['turns']} answers differ from the baseline's, though both runs "
            "decode in full precision with the same settings. The speedup is not that of the same model."
        )
    elif unknown_loss is not None:
        yield f"no verdict on losslessness: {unknown_loss}."
    unknown = {each["key"] for each in comparison["differences"] if each["kind"] == "unknown"}
    if "model.attention" in unknown:
        rule = ", and its digests are of another rule, which say nothing of whether the base is the same"
        yield (
            "one run is of an earlier version, which did not write down how attention is computed"
            f"{rule if 'model.base' in unknown else ''}: make it again for a verdict."
        )
    if baseline.drafts and not hass.drafts:
        yield "the first run has a draft and the second has none; the baseline comes first. Are they swapped?"
    if hass.drafts and (hass.model.get("tree") or {}).get("trim"):
        yield (
            "trees are trimmed (tree.trim): an answer's last step drafts no more than the answer can use, and yet "
            "counts as a whole step, so that all acceptance figures are lower than by the published convention."
        )
    break_even = comparison["cost_model"]
    if hass.nodes_per_step == 0:
        yield "the second run's trees are of one token (tree.total_tokens 1), so nothing is drafted: no speedup is due."
    elif break_even["tau"] < break_even["tau_break_even"]:
        lengths = f"{break_even['tau']:.2f} is below what pays ({break_even['tau_break_even']:.2f})"
        yield (
            f"the acceptance length of {lengths}: drafting costs more than it saves here. Try a smaller tree, or look "
            "whether template, dtype and settings are those the draft was trained for."
        )
    for run, name in ((baseline, "baseline"), (hass, "second run")):
        if run.superseded:
            yield f"in the {name}'s file, {superseded_note(run.superseded)}; the last one counts."
        if run.dtype in ("float16", "bfloat16") and (run.settings or {}).get("device") == "cpu":
            yield f"the {name} ran in {run.dtype} on a CPU, where half precision is slow; its speed says little."
        if run.ended_by_context:
            yield (
                f"{run.ended_by_context} answers of the {name} were ended by the model's context, not by "
                "max_new_tokens (--model.context, if the model takes more)."
            )
    if not comparison["speed"]["repeats"] and baseline.path.parent != hass.path.parent:
        yield (
            "the runs were not made in turn, so what else the machine did may have hit one of them alone; "
            "lit-hass evaluate interleaves both methods."
        )
    rows = {run.batch_rows or 1 for run in (baseline, hass)}
    if rows != {1}:
        yield f"up to {max(rows)} answers were decoded together; an answer's seconds are its share of its batch's."
    yield from _of_certainty(comparison)
    yield from _of_originals(comparison)
    if comparison["undefined"]:
        said = "; ".join(f"{reason}: {count}" for reason, count in comparison["undefined"].items())
        yield f"left out or undefined: {said}."


def _of_certainty(comparison: dict[str, Any]) -> Iterable[str]:
    """What the intervals cover, and what the machine did."""
    speed = comparison["speed"]
    measured = (speed["processor"] or speed)["end_to_end"]
    if measured["interval"] is not None:
        yield (
            "intervals are over questions: so far the ratio would vary with other questions of the same kind. What the "
            "machine does is in none of them."
        )
    elif 0 < measured["questions"] < FEWEST_UNITS:
        count = "1 question has" if measured["questions"] == 1 else f"{measured['questions']} questions have"
        yield f"{count} no interval ({FEWEST_UNITS} at least): whether they are typical, so few cannot say."
    few = [name for name, found in comparison["categories"].items() if found["questions"] < FEWEST_UNITS]
    if few and measured["interval"] is not None:
        yield f"categories of fewer than {FEWEST_UNITS} questions have no interval: {', '.join(few)}."
    if speed["clock"] == "processor":
        yield (
            "the headline is by processor time (of all threads together), which other work on the machine hardly "
            "touches; wall time is what a user waits on a machine as busy as this one was."
        )
    loads = {name: load for name, load in comparison["load"].items() if load is not None}
    if loads:
        mean, most = max(load["mean"] for load in loads.values()), max(load["max"] for load in loads.values())
        # Machine and threads are in the statistics, which a run need not have.
        threads = max((load["threads"] for load in loads.values() if load["threads"] is not None), default=None)
        processors = [load["processors"] for load in loads.values() if load["processors"] is not None]
        said = f"the load of the machine was {mean:.1f} on average, at most {most:.1f}"
        said += f", on {processors[0]} processors" if processors else ""
        if threads is not None and mean > threads + 0.5:
            yield f"{said}; this run is {threads} of it, the rest is other work, which wall times suffer from."
        else:
            yield f"{said}, this run included."


def _of_originals(comparison: dict[str, Any]) -> Iterable[str]:
    """One note on what the original scripts would print instead, where the rows do not bear their name."""
    parts = []
    if not comparison["speed"]["original"]["is_original"]:
        parts.append("speed.py counts a baseline's tokens by tokenising its texts again, which these files do not tell")
    lengths = [each for each in comparison["acceptance"].values() if each is not None]
    if lengths and all(each["original"] is None for each in lengths):
        parts.append(
            "acceptance_length.py reads files of a decoder that goes one step beyond an end token that came as a bonus "
            "token, and beyond the limit, and so prints a lower length"
        )
    if parts:
        yield f'"question mean" is the original scripts\' formula, and not what they print: {"; ".join(parts)}.'
