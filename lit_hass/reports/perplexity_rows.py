"""A perplexity report as rows of text: what the screen and Markdown both show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lit_hass.metrics.functional.perplexity import exp

NOTHING = "–"

RESULT_COLUMNS = ("protocol", "token PPL", "word PPL", "byte PPL", "bits/byte")
COUNT_COLUMNS = ("protocol", "95% interval", "scored", "dropped", "windows", "T/W", "T/B")
LADDER_COLUMNS = ("rung", "scored", "PPL", "ln contribution", "share")

#: Of a protocol's ``printed`` unit.
UNIT_NAMES = {
    "token_ppl": "token PPL",
    "word_ppl": "word PPL",
    "word_ppl_est": "word PPL, an estimate",
    "mean_text_ppl": "mean of the texts' PPL",
}

#: What the marks in the table mean.
LEGEND = (
    "[number]: what the protocol's original prints, and what the interval (over documents) is of; (number): the same "
    "with a softmax in float32, where the original takes it in half precision and prints another. *: an estimate, "
    "because the protocol does not score every token of the pages. T/W, T/B: tokens per word and byte, the exponents "
    "from token to word and byte perplexity."
)


def number(value: float | None, digits: int = 5) -> str:
    """A number with so many significant digits; `NOTHING` where there is none."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value) or value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    whole = math.floor(math.log10(abs(value))) + 1 if value else 1
    return f"{value:,.{max(digits - whole, 0)}f}"


def interval(bounds: Sequence[float | None] | None) -> str:
    """Two bounds, short enough that a row of counts fits a screen of 80 columns."""
    if bounds is None or any(bound is None or math.isnan(bound) for bound in bounds):
        return NOTHING
    digits = 3 if any(bound and not 1e-4 <= abs(bound) < 1e7 for bound in bounds) else 4
    return f"{number(bounds[0], digits)} – {number(bounds[1], digits)}"


def bracketed(value: float | None, printed: dict[str, Any]) -> str:
    """A number in the marks of what a protocol's original prints, and of what it would print; see `LEGEND`."""
    return f"[{number(value)}]" if printed.get("original", True) else f"({number(value)})"


def result_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per protocol, for `RESULT_COLUMNS`."""
    return [_result_row(name, protocol) for name, protocol in report["protocols"].items()]


def _result_row(name: str, protocol: dict[str, Any]) -> tuple[str, ...]:
    printed = protocol["printed"]["unit"]

    def cell(unit: str) -> str:
        if protocol[unit] is None:
            return number(protocol[f"{unit}_est"]) + "*"
        return bracketed(protocol[unit], protocol["printed"]) if unit == printed else number(protocol[unit])

    mean = protocol["mean_text_ppl"]
    token = cell("token_ppl") + ("" if mean is None else f" [{number(mean)} mean of texts]")
    return name, token, cell("word_ppl"), cell("byte_ppl"), cell("bits_per_byte")


def count_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per protocol, for `COUNT_COLUMNS`."""
    rows: list[tuple[str, ...]] = []
    for name, protocol in report["protocols"].items():
        # A mean of texts has an interval of its own kind, which nobody publishes.
        bounds = protocol.get(f"{protocol['printed']['unit']}_interval")
        counts = (f"{protocol[key]:,}" for key in ("tokens_scored", "tokens_dropped", "windows"))
        ratios = (number(protocol[key], 4) for key in ("tokens_per_word", "tokens_per_byte"))
        rows.append((name, interval(bounds), *counts, *ratios))
    return rows


def ladder_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """One row per rung and one of the whole, for `LADDER_COLUMNS`; none without a ladder."""
    summary = report["ladder_summary"]
    if summary is None:
        return []
    rows: list[tuple[str, ...]] = []
    for rung in report["ladder"]:
        change = rung["contribution"]
        unit = "" if rung["mean"] == "tokens" else " (mean of texts)"
        rows.append(
            (
                rung["switch"] or summary["from"],
                f"{rung['tokens_scored']:,}",
                f"{number(rung['ppl'])} per {rung['unit']}{unit}",
                "" if change is None else f"{change:+.6f}",
                "" if change is None or rung["share"] is None else f"{rung['share']:+.1%}",
            )
        )
    rows.append((f"= {summary['to']}", "", "", f"{summary['sum']:+.6f}", _percent(summary["ln_ratio"])))
    return rows


def _percent(total: float | None) -> str:
    return NOTHING if total is None or not total or math.isnan(total) else "100%"


def answer(report: dict[str, Any]) -> str | None:
    """The one line that says why; the free division into unit and rest where no ladder was climbed."""
    if report["ladder_summary"] is not None:
        return report["ladder_summary"]["answer"]
    if not report["gaps"]:
        return None
    gap = report["gaps"][0]
    return (
        f"{gap['unit_share']:.1%} of the log gap between {gap['from']} and {gap['to']} is the unit, taken on "
        f"{gap['from']}'s own tokens (a ladder takes it on {gap['to']}'s): the unit alone would give "
        f"{number(gap['unit_alone'])} per word, all else multiplies that by {number(exp(gap['rest']), 4)}"
    )


def warning_lines(report: dict[str, Any]) -> list[str]:
    """Each warning in one line."""
    return [f"{w['protocol']}: {w['text']}" if w["protocol"] else w["text"] for w in report["warnings"]]


def about_lines(report: dict[str, Any]) -> list[str]:
    """What was evaluated."""
    text, model, tokenizer = report["text"], report["model"], report["tokenizer"]
    zeros = model.get("zero_weights")
    sparse = f", {zeros:.1%} of the matrices' weights are zero" if zeros and zeros >= 0.001 else ""
    return [
        f"model {model['base']} ({model['dtype']}, context {model['context']}{sparse})",
        f"text {text['name']}: {text['pages']} pages, {text['words']:,} words, {text['bytes']:,} bytes, sha256 "
        f"{text['sha256'][:12]}",
        f"tokenizer of {tokenizer['vocabulary']:,} tokens, BOS {tokenizer['bos_token_id']}, EOS "
        f"{tokenizer['eos_token_id']}, adds {tokenizer['adds_before']} in front and {tokenizer['adds_behind']} behind",
    ]
