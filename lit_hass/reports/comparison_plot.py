"""A comparison as a picture."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_hass.reports.comparison_rows import times

_BASELINE, _HASS, _ALARM, _FAINT = "#7a869a", "#1f6feb", "#d1242f", "#d0d7de"


def plot_comparison(comparison: dict[str, Any]) -> bytes:
    """Draw a comparison (of `compare_runs`).

    Returns:
        A PNG: each question's speed in both runs; where there was a draft, acceptance by depth and how many tokens the
        steps had accepted, else the questions' speedups.
    """
    acceptance = comparison["acceptance"]["hass"]
    figure = Figure(figsize=(13.5 if acceptance else 9.5, 4.3), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12)
    axes = figure.subplots(1, 3 if acceptance else 2)
    _speeds(axes[0], comparison)
    if acceptance:
        _depths(axes[1], acceptance)
        _steps(axes[2], acceptance)
    else:
        _speedups(axes[1], comparison)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(color=_FAINT, linewidth=0.6)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _speeds(axis: Axes, comparison: dict[str, Any]) -> None:
    points = [
        (q["baseline"]["tokens_per_second"], q["hass"]["tokens_per_second"], q["identical"])
        for q in comparison["questions"]
        if q["baseline"]["tokens_per_second"] is not None and q["hass"]["tokens_per_second"] is not None
    ]
    axis.set_title("Speed of each question", loc="left")
    second = "processor second" if comparison["speed"]["clock"] == "processor" else "second"
    axis.set_xlabel(f"baseline, tokens per {second}")
    axis.set_ylabel(f"hass, tokens per {second}")
    if not points:
        _say(axis, "no times recorded")
        return
    for differs, colour, label in ((False, _HASS, "question"), (True, _ALARM, "question with other tokens")):
        chosen = [(x, y) for x, y, identical in points if (identical is False) == differs]
        if chosen:
            x, y = zip(*chosen, strict=True)
            axis.scatter(x, y, s=26, color=colour, alpha=0.75, linewidths=0, label=label, zorder=3)
    xs = [x for x, _, _ in points]
    ys = [y for _, y, _ in points]
    # Not from 0: the baseline's speeds lie close together, and the slopes are named anyway.
    margin = 0.15 * (max(xs) - min(xs)) or 0.1 * max(xs)
    left, right = max(0.0, min(xs) - margin), max(xs) + margin
    axis.set_xlim(left, right)
    axis.set_ylim(0, 1.1 * max(*ys, right))
    axis.plot([left, right], [left, right], color=_BASELINE, linestyle="--", linewidth=1.2, label="equally fast")
    ratio = (comparison["speed"]["processor"] or comparison["speed"])["end_to_end"]["ratio"]
    if ratio is not None:
        label = f"{times(ratio)} over all"
        axis.plot([left, right], [ratio * left, ratio * right], color=_HASS, linewidth=1.2, label=label)
    axis.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc="lower right")


def _depths(axis: Axes, acceptance: dict[str, Any]) -> None:
    shares = acceptance["by_depth"]
    depths = np.arange(1, len(shares) + 1)
    bars = axis.bar(depths, [100 * share for share in shares], color=_HASS, width=0.75)
    if len(shares) <= 14:
        axis.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
    axis.set_title("Acceptance by depth", loc="left")
    axis.set_xlabel("depth in the draft tree")
    axis.set_ylabel("% accepted of the steps that got there")
    axis.set_ylim(0, 110)
    axis.set_yticks(range(0, 101, 20))
    axis.set_xticks(_ticks(depths))


def _steps(axis: Axes, acceptance: dict[str, Any]) -> None:
    counts = np.array(acceptance["histogram"])
    accepted = np.arange(len(counts))
    axis.bar(accepted, 100 * counts / counts.sum(), color=_HASS, width=0.75)
    mean = acceptance["micro"] - 1
    # Up to the tallest bar: above it stands the legend.
    label = f"mean {mean:.2f}, acceptance length {mean + 1:.2f}"
    axis.axvline(mean, 0, 1 / 1.2, color=_ALARM, linewidth=1.2, label=label)
    axis.set_title(f"Draft tokens accepted in each of {acceptance['steps']} steps", loc="left")
    axis.set_xlabel("accepted draft tokens (the step gives one more)")
    axis.set_ylabel("% of steps")
    axis.set_ylim(0, 120 * counts.max() / counts.sum())
    axis.set_xticks(_ticks(accepted))
    axis.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc="upper center")


def _speedups(axis: Axes, comparison: dict[str, Any]) -> None:
    values = sorted(q["speedup"] for q in comparison["questions"] if q["speedup"] is not None)
    axis.set_title("Speedup of each question", loc="left")
    axis.set_ylabel("hass / baseline")
    axis.set_xlabel("questions, slowest first")
    if not values:
        _say(axis, "no times recorded")
        return
    axis.bar(np.arange(1, len(values) + 1), values, color=_HASS, width=0.75)
    axis.set_xticks(_ticks(np.arange(1, len(values) + 1)))
    axis.axhline(1, color=_BASELINE, linestyle="--", linewidth=1.2)


def _ticks(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, -(-len(values) // 14))]


def _say(axis: Axes, text: str) -> None:
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, color=_BASELINE)
