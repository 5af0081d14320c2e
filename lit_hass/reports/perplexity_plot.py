"""The ladder as a waterfall."""

from __future__ import annotations

import io
import textwrap
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_hass.reports.perplexity_rows import number

_END, _UP, _DOWN, _FAINT = "#7a869a", "#d1242f", "#1a7f37", "#d0d7de"


def ladder_figure(report: dict[str, Any]) -> Figure | None:
    """Draw the ladder: ln PPL of both protocols, and between them what each change adds or takes.

    Args:
        report: of `perplexity_report`.

    Returns:
        The figure; None where there is no ladder, or one of its numbers is not finite.
    """
    summary, rungs = report["ladder_summary"], report["ladder"]
    if summary is None or any(not abs(rung["ln_ppl"]) < float("inf") for rung in rungs):
        return None
    names = [summary["from"], *(rung["switch"] for rung in rungs[1:]), summary["to"]]
    figure = Figure(figsize=(11, 1.6 + 0.52 * len(names)), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    units = [i for i in range(1, len(rungs)) if rungs[i]["unit"] != rungs[i - 1]["unit"]]
    # The unit is often a hundred times longer than the other steps, which then need a scale of their own.
    zoomed = bool(units) and len(rungs) > len(units) + 1
    axis, *others = figure.subplots(1, 1 + zoomed, sharey=True, squeeze=False, width_ratios=[3, 1][: 1 + zoomed])[0]
    places = range(len(names))
    values = [rung["ln_ppl"] for rung in rungs]
    axis.barh(0, values[0], color=_END, height=0.62)
    axis.barh(len(names) - 1, values[-1], color=_END, height=0.62)
    span = max([*values, 0.0]) - min([*values, 0.0]) or 1.0
    for end, value in ((0, values[0]), (len(names) - 1, values[-1])):
        ppl = number(rungs[0 if end == 0 else -1]["ppl"])
        unit = rungs[0 if end == 0 else -1]["unit"]
        axis.text(value + 0.01 * span, end, f"{value:.4f}  (PPL {ppl} per {unit})", va="center", fontsize=8)
    for place, (before, rung) in enumerate(zip(rungs, rungs[1:], strict=False), start=1):
        change = rung["contribution"]
        axis.barh(place, change, left=before["ln_ppl"], color=_UP if change > 0 else _DOWN, height=0.62)
        share = "" if rung["share"] != rung["share"] else f"  ({rung['share']:+.1%})"
        end = max(before["ln_ppl"], rung["ln_ppl"])
        axis.text(end + 0.01 * span, place, f"{change:+.4f}{share}", va="center", fontsize=8)
        axis.plot([before["ln_ppl"]] * 2, [place - 0.69, place + 0.31], color=_END, linewidth=0.8)
    axis.plot([values[-1]] * 2, [len(names) - 1.69, len(names) - 0.69], color=_END, linewidth=0.8)
    axis.set_yticks(list(places), ["\n".join(textwrap.wrap(name, 44)) for name in names], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlim(min([*values, 0.0]) - 0.02 * span, max(values) + 0.5 * span)
    axis.set_xlabel("ln PPL")
    axis.set_title(f"Why {summary['from']} and {summary['to']} differ", loc="left")
    for other in others:
        _draw_steps(other, {i: rungs[i]["contribution"] for i in range(1, len(rungs)) if i not in units})
    for each in (axis, *others):
        each.spines[["top", "right"]].set_visible(False)
        each.set_axisbelow(True)
        each.grid(axis="x", color=_FAINT, linewidth=0.6)
    return figure


def _draw_steps(axis: Axes, changes: dict[int, float]) -> None:
    """Draw single steps, each from zero, at their places in the ladder."""
    axis.barh(
        list(changes), list(changes.values()), color=[_UP if c > 0 else _DOWN for c in changes.values()], height=0.62
    )
    axis.axvline(0, color=_END, linewidth=0.8)
    axis.tick_params(axis="y", length=0)
    axis.margins(x=0.1)
    axis.set_xlabel("change of ln PPL")
    axis.set_title("all steps but the unit, enlarged", loc="left", fontsize=9)


def to_png(figure: Figure) -> bytes:
    """A figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
