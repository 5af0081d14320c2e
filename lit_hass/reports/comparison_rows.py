"""The figures of a comparison as words, the same on the screen, in Markdown and in HTML."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lit_hass.reports.html_page import NOTHING

#: Columns of `figure_rows`.
FIGURE_COLUMNS = ("", "baseline", "hass", "ratio", "95% interval")
#: Columns of `category_rows`.
CATEGORY_COLUMNS = (
    "category", "questions", "speedup", "95% interval", "decoding only", "acceptance", "exact match", "identical",
)  # fmt: skip
_MOST_DEPTHS = 4
_SECOND = {"wall": "second", "processor": "processor second"}
_COLLAPSE = {"SVD entropy": "svd_entropy", "GNC2": "gnc2", "UNC3": "unc3", "CKA of draft and base": "cka"}


class FigureRow(NamedTuple):
    """One figure of both runs."""

    label: str
    baseline: str = NOTHING
    hass: str = NOTHING
    ratio: str = ""
    interval: str = ""


def headline(comparison: dict[str, Any]) -> str:
    """The result in one sentence, or why there is none."""
    found = comparison["headline"]
    if found is None:
        if comparison["same_distribution"] is None:
            return "No headline: the runs' settings are not recorded, so nobody knows whether they are alike."
        return "No headline: the runs do not draw from the same distribution (see the differences)."
    text = f"{times(found['speedup'])} the baseline's tokens per {_SECOND[found['clock']]} end to end"
    if found["interval"] is not None:
        text += f" (95% interval over questions {interval(found['interval'])})"
    text += f", {times(found['decode_only_speedup'])} decoding only"
    if found["clock"] == "processor":
        text += f"; by the clock on the wall {times(comparison['speed']['end_to_end']['ratio'])}"
    acceptance = comparison["acceptance"]["hass"]
    if acceptance is not None:
        text += f", at an acceptance length of {number(acceptance['micro'])}"
    return text + "."


def verdict(comparison: dict[str, Any]) -> str:
    """Whether the answers are the baseline's own."""
    agreement, lossless = comparison["agreement"], comparison["lossless"]
    count = f"{agreement['identical_turns']} of {agreement['turns']} answers have the baseline's tokens"
    if lossless is True:
        return f"Lossless: {count}."
    return f"NOT LOSSLESS: only {count}." if lossless is False else f"Losslessness not judged: {count}."


def difference_texts(comparison: dict[str, Any]) -> list[str]:
    """What is unfair about the pair, one line each."""
    return [
        f"{d['key']} ({d['kind']}): {_plain(d['baseline'])} against {_plain(d['hass'])}"
        for d in comparison["differences"]
    ]


def figure_rows(comparison: dict[str, Any]) -> list[FigureRow]:
    """The main table."""
    speed, match, agreement = comparison["speed"], comparison["exact_match"], comparison["agreement"]
    rows = []
    if speed["processor"] is not None:
        rows += [
            _speed_row("tokens/CPU s end to end", speed["processor"]["end_to_end"]),
            _speed_row("tokens/CPU s decoding", speed["processor"]["decode_only"]),
        ]
    name = "(original)" if speed["original"]["is_original"] else "question mean"
    rows += [
        _speed_row("tokens/s end to end", speed["end_to_end"]),
        _speed_row("tokens/s decoding only", speed["decode_only"]),
        _speed_row(f"tokens/s {name}", {**speed["original"], "interval": None}),
    ]
    if speed["repeats"] is not None:
        repeats = speed["repeats"]
        label = f"spread of {repeats['count']} repetitions"
        each = "each: " + ", ".join(map(times, repeats["speedups"]))
        rows.append(FigureRow(label, share(repeats["baseline_spread"]), share(repeats["hass_spread"]), "", each))
    rows += _acceptance_rows(comparison)
    cost = comparison["cost_model"]
    if cost["tau_break_even"] is not None:
        rows.append(FigureRow("ms a token / a step", *_milliseconds(cost), number(cost["tau_break_even"]) + "x"))
        rows.append(FigureRow("break-even length", "", number(cost["tau_break_even"])))
    if match["of"]:
        found = [
            f"{share(match[run]['share'])} ({match[run]['matched']}/{match['of']})" for run in ("baseline", "hass")
        ]
        rows.append(FigureRow("exact match", *found))
    if agreement["turns"]:
        identical = f"{share(agreement['identical_turn_share'])} ({agreement['identical_turns']}/{agreement['turns']})"
        rows.append(FigureRow("identical answers", "", identical))
        rows.append(FigureRow("identical tokens", "", share(agreement["identical_token_share"])))
    else:
        rows.append(FigureRow("identical texts", "", share(agreement["identical_text_share"])))
    return rows + _collapse_rows(comparison["collapse"])


def _collapse_rows(collapse: dict[str, Any]) -> list[FigureRow]:
    """Of the features behind prompts and answers, where they were collected."""
    found = [collapse[run] or {} for run in ("baseline", "hass")]
    return [
        FigureRow(label, *(number(each.get(key), 4) for each in found))
        for label, key in _COLLAPSE.items()
        if any(each.get(key) is not None for each in found)
    ]


def _speed_row(label: str, speed: dict[str, Any]) -> FigureRow:
    found = (number(speed["baseline"], 1), number(speed["hass"], 1), times(speed["ratio"]))
    return FigureRow(label, *found, NOTHING if speed["interval"] is None else interval(speed["interval"]))


def _acceptance_rows(comparison: dict[str, Any]) -> list[FigureRow]:
    found = [comparison["acceptance"][run] for run in ("baseline", "hass")]
    if found == [None, None]:
        return [FigureRow("acceptance length")]

    def row(label: str, key: str) -> FigureRow:
        return FigureRow(label, *(NOTHING if each is None else number(each[key]) for each in found))

    rows = [
        row("acceptance length", "micro"),
        row("· question mean", "mean_of_questions")
        if all(each is None or each["original"] is None for each in found)
        else row("· (original)", "original"),
        row("· tokens per step", "tokens_per_step"),
        FigureRow("· % accepted, depth 1..", *(NOTHING if a is None else depths(a["by_depth"]) for a in found)),
    ]
    rates = [None if each is None else each["node_acceptance_rate"] for each in found]
    if rates != [None, None]:
        rows.append(FigureRow("· nodes accepted", *map(share, rates)))
    return rows


def _milliseconds(cost: dict[str, Any]) -> tuple[str, str]:
    return number(cost["token_seconds"] * 1e3), number(cost["step_seconds"] * 1e3)


def category_rows(comparison: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table by category; empty where nobody knows the categories."""
    return [
        (
            name,
            str(found["questions"]),
            times(found["speedup"]),
            interval(found["interval"]),
            times(found["decode_only_speedup"]),
            number(found["acceptance_length"]),
            " / ".join(share(found["exact_match"][run]["share"], 0) for run in ("baseline", "hass")),
            share(found["identical_turn_share"], 0),
        )
        for name, found in comparison["categories"].items()
    ]


def number(value: float | None, digits: int = 2) -> str:
    """A figure, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}f}"


def times(value: float | None) -> str:
    """A ratio, or a dash."""
    return NOTHING if value is None else f"{value:.2f}x"


def share(value: float | None, digits: int = 1) -> str:
    """A share in per cent, or a dash."""
    return NOTHING if value is None else f"{value:.{digits}%}"


def interval(bounds: Sequence[float] | None) -> str:
    """Two bounds, or a dash."""
    return NOTHING if bounds is None else f"{bounds[0]:.2f} to {bounds[1]:.2f}"


def depths(by_depth: Sequence[float]) -> str:
    """Acceptance by depth in per cent; the first few."""
    more = "…" if len(by_depth) > _MOST_DEPTHS else ""
    return " ".join(f"{value * 100:.0f}" for value in by_depth[:_MOST_DEPTHS]) + more


def _plain(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:48]}...{text[-49:]}"
