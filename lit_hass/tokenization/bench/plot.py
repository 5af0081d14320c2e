"""The benchmark as a picture."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_OWN, _OTHER, _BPE, _FAINT = "#1f6feb", "#7a869a", "#bf8700", "#d0d7de"


def plot_result(result: dict[str, Any]) -> bytes:
    """Draw a result of `run_benchmark`.

    Returns:
        A PNG: speed of each contender, and tokens per word of each vocabulary beside its share of unknown tokens.
    """
    figure = Figure(figsize=(12, 4), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12)
    speed, fertility = figure.subplots(1, 2, width_ratios=(2.2, 1))
    _speeds(speed, result)
    _fertility(fertility, result)
    for axis in (speed, fertility):
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _speeds(axis: Axes, result: dict[str, Any]) -> None:
    rows = result["rows"][::-1]
    colours = [_OWN if row["key"].startswith("own") else _BPE if row["vocabulary"] == "bpe" else _OTHER for row in rows]
    values = [row["megabytes_per_second"] for row in rows]
    bars = axis.barh([row["name"] for row in rows], values, color=colours, height=0.7)
    axis.bar_label(bars, [f"{v:.2f}" for v in values], fontsize=9, padding=3)
    axis.set_title("MB per CPU second, one thread", loc="left")
    axis.set_xlabel("longer is faster; blue and grey give the same ids")
    axis.set_xlim(0, 1.12 * max(values))
    axis.grid(axis="x", color=_FAINT, linewidth=0.6)


def _fertility(axis: Axes, result: dict[str, Any]) -> None:
    vocabularies = result["vocabularies"]
    names = [
        f"{'WordPiece' if name == 'wordpiece' else 'byte BPE'}\n{v['vocab_size']:,} pieces"
        for name, v in vocabularies.items()
    ]
    values = [v["fertility"] or 0.0 for v in vocabularies.values()]
    bars = axis.bar(names, values, color=[_OWN, _BPE], width=0.6)
    labels = [
        f"{f:.3f}\n{100 * (v['unknown_rate'] or 0):.3f}% unknown"
        for f, v in zip(values, vocabularies.values(), strict=True)
    ]
    axis.bar_label(bars, labels, fontsize=9, padding=3)
    axis.set_title("Tokens per word", loc="left")
    axis.set_ylim(0, 1.25 * max([*values, 1.0]))
    axis.grid(axis="y", color=_FAINT, linewidth=0.6)
