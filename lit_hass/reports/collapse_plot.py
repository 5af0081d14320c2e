"""Collapse metrics as pictures, of one run or of several over each other."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from lit_hass.reports.collapse_equal_rows import normalized_of, rows_in_common, streams_shown
from lit_hass.reports.collapse_rows import rows_behind
from lit_hass.reports.collapse_run import CollapseSubject

_COLOURS = ("#1f6feb", "#d4681d", "#2f8f4e", "#8250df", "#7a869a")
_MARKERS = ("o", "s", "^", "D", "v")
_DASHES = ("-", "--", ":", "-.")
_STATE_COLOURS = {
    "prompt": "#7a869a", "accepted": "#1f6feb", "rejected": "#d1242f", "bonus": "#d4681d", "baseline": "#2f8f4e",
}  # fmt: skip
_FAINT, _BOUND = "#d0d7de", "#57606a"
_SCOPES = ("prompt", "answer", "overall")


def spectrum_figure(subjects: Sequence[CollapseSubject]) -> Figure:
    """Eigenvalues of the uncentred Gram matrix as shares of their sum, by rank: of all rows, and of each state's."""
    figure, (left, right) = _figure(2)
    _title(left, "Spectrum of all rows", "rank of the direction", "share of the sum of squares")
    _title(right, "Spectrum by state of the token", "rank of the direction", "share of the sum of squares")
    for i, subject in enumerate(subjects):
        spectra = subject.metrics.get("spectra") or {}
        sums = subject.metrics.get("spectra_sums") or {}
        shares = _shares(spectra.get("overall"), sums.get("overall"))
        if len(shares):
            ranks = np.arange(1, len(shares) + 1)
            slope, fit_ranks, fit = _power_law(shares)
            label = subject.label + ("" if slope is None else f", slope {slope:.2f}")
            left.loglog(ranks, shares, color=_colour(i), linestyle=_dash(i), linewidth=1.8, label=label)
            if slope is not None:
                left.loglog(fit_ranks, fit, color=_BOUND, linewidth=0.9, linestyle=(0, (1, 2)), zorder=4)
        for state, colour in _STATE_COLOURS.items():
            shares = _shares(spectra.get(state), sums.get(state))
            if len(shares):
                label = state if len(subjects) == 1 else f"{subject.label}: {state}"
                ranks = np.arange(1, len(shares) + 1)
                right.loglog(ranks, shares, color=colour, linestyle=_dash(i), linewidth=1.5, label=label)
    for axis in (left, right):
        _legend(axis, "lower left", "no spectrum recorded")
    return figure


def chunks_figure(subjects: Sequence[CollapseSubject]) -> Figure:
    """Entropy along the text: means over the sequences, and each sequence behind them."""
    figure, (left, right) = _figure(2)
    _title(left, "Entropy along the text", "stretch of the text, first to last", "SVD entropy")
    _title(right, "The same over its bound", "stretch of the text, first to last", "normalised SVD entropy")
    for i, subject in enumerate(subjects):
        analysis = subject.analysis["chunk_analysis"] or {}
        for axis, key, of_one in (
            (left, "chunk_entropies", "entropies"),
            (right, "normalized_entropies", "normalized"),
        ):
            for sequence in subject.analysis["chunks"]:
                values = _floats(sequence[of_one])
                axis.plot(np.arange(1, len(values) + 1), values, color=_colour(i), linewidth=0.6, alpha=0.18)
            means = _floats(analysis.get(key) or [])
            if len(means):
                pattern = analysis["collapse_pattern" if axis is left else "corrected_pattern"].replace("_", " ")
                axis.plot(
                    np.arange(1, len(means) + 1), means, color=_colour(i), linestyle=_dash(i), marker=_MARKERS[i % 5],
                    linewidth=2, label=f"{subject.label}: {pattern}", zorder=4,
                )  # fmt: skip
                axis.set_xticks(np.arange(1, len(means) + 1))
    for axis in (left, right):
        axis.margins(y=0.04 + 0.08 * len(subjects))
        _legend(axis, "upper right", "no sequence is long enough")
    return figure


def tokens_figure(subjects: Sequence[CollapseSubject]) -> Figure:
    """Entropies of the tokens' rows: how they are distributed, and beside the number of rows with its bound."""
    figure, (left, right) = _figure(2)
    _title(left, "Entropy of each token's rows", "SVD entropy", "tokens")
    _title(right, "Entropy and number of rows", "rows of the token", "SVD entropy")
    most, dims = 0, [float(s.meta["feature_dim"]) for s in subjects if s.meta.get("feature_dim")]
    found = [_tokens(subject) for subject in subjects]
    everything = np.concatenate([entropies for _, entropies in found]) if found else np.zeros(0)
    bins = np.linspace(0, max(float(everything.max()), 1e-6), 31) if everything.size else 1
    for i, (subject, (counts, entropies)) in enumerate(zip(subjects, found, strict=True)):
        if not entropies.size:
            continue
        most = max(most, int(counts.max()))
        label = f"{subject.label}: mean {entropies.mean():.3f}"
        left.hist(entropies, bins, color=_colour(i), alpha=0.22 if len(subjects) > 1 else 0.5)  # type: ignore[arg-type]
        left.hist(entropies, bins, histtype="step", color=_colour(i), linestyle=_dash(i), linewidth=1.6, label=label)  # type: ignore[arg-type]
        face = _colour(i) if i == 0 else "none"
        right.scatter(
            counts, entropies, s=16 + 14 * i, marker=_MARKERS[i % 5], facecolors=face, edgecolors=_colour(i),
            linewidths=0.8, alpha=0.7, label=subject.label,
        )  # fmt: skip
    if most:
        n = np.unique(np.geomspace(1, max(2, most), 80).round())
        # The bound is that of natural logarithms; under another preset it does not hold.
        if all(s.settings.get("svd_variant", "a") == "a" for s in subjects):
            for k, dim in enumerate(sorted(set(dims)) or [math.inf]):
                label = "bound, ln min(n, d)" + (f", d = {dim:.0f}" if len(set(dims)) > 1 else "")
                right.plot(
                    n, np.log(np.minimum(n, dim)), color=_BOUND, linestyle=_dash(k + 1), linewidth=1.1, label=label
                )
        right.set_xscale("log")
    _legend(left, "upper right", "no token has enough rows")
    _legend(right, "lower right", "no token has enough rows")
    left.margins(y=0.18)
    return figure


def scopes_figure(subjects: Sequence[CollapseSubject]) -> Figure:
    """Prompt against answer: normalised entropy by state, of equally many rows of each; GNC2 and UNC3."""
    figure, axes = _figure(3, width=13.5)
    rows = rows_in_common(subjects)
    of_rows = "" if rows is None else f", of {rows} rows each"
    _title(axes[0], f"Entropy by state of the token{of_rows}", "", "normalised SVD entropy")
    states = [] if rows is None else [name for name in streams_shown(subjects) if name in _STATE_COLOURS]
    width = 0.8 / max(1, len(subjects))
    for i, subject in enumerate(subjects):
        if not states or rows is None:
            continue
        found = [normalized_of(subject, name, rows) or (math.nan,) * 3 for name in states]
        values, low, high = np.array(found, dtype=np.float64).T
        places = np.arange(len(states)) + (i - (len(subjects) - 1) / 2) * width
        reach = np.nan_to_num(np.stack((values - low, high - values)))
        bars = axes[0].bar(
            places, np.nan_to_num(values), width * 0.92, color=_colour(i), label=subject.label, yerr=reach,
            error_kw={"ecolor": _BOUND, "elinewidth": 1, "capsize": 2},
        )  # fmt: skip
        if len(subjects) <= 2:
            labels = ["" if math.isnan(value) else f"{value:.{3 if len(subjects) == 1 else 2}f}" for value in values]
            axes[0].bar_label(bars, labels=labels, fontsize=7, padding=1)
    axes[0].set_xticks(np.arange(len(states)), [_with_rows(name, subjects) for name in states], fontsize=8)
    axes[0].set_ylim(0, 1.3)
    # Side by side where that does not reach over the axis.
    short = sum(len(subject.label) for subject in subjects) <= 36
    _legend(axes[0], "upper center", "no states of enough rows", columns=len(subjects) if short else 1)
    for axis, name, title, what in (
        (axes[1], "gnc2/mean", "GNC2", "mean ln(1 / distance of class directions)"),
        (axes[2], "unc3/cov_abs", "UNC3", "|std / mean| of cos(class mean, output row)"),
    ):
        _title(axis, title, "", what)
        for i, subject in enumerate(subjects):
            values = _floats([subject.value(name, scope) for scope in _SCOPES])
            if np.isfinite(values).any():
                axis.plot(
                    range(len(_SCOPES)), values, color=_colour(i), linestyle=_dash(i), marker=_MARKERS[i % 5],
                    markersize=9 - 2 * i, label=subject.label, linewidth=1.6,
                )  # fmt: skip
        axis.set_xticks(range(len(_SCOPES)), ("prompts", "answers", "both"))
        axis.margins(x=0.15, y=0.25)
        if name == "unc3/cov_abs":
            axis.set_ylim(bottom=0)  # it is an absolute value
        _legend(axis, "best", "undefined: too few classes")
    return figure


def cosine_figure(cosines: np.ndarray, names: Sequence[str]) -> Figure:
    """Cosines between centred class means as a map.

    Args:
        cosines: ``[K, K]``, NaN where a mean equals the mean of all.
        names: of the classes, most frequent first.
    """
    figure = Figure(figsize=(7.2, 6.2), dpi=120, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained")
    axis = figure.subplots()
    image = axis.imshow(cosines, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
    axis.set_title(
        f"Cosines of class means about their common mean, {len(names)} most frequent", loc="left", fontsize=11
    )
    names = [_drawable(name) for name in names]
    ticks = range(0, len(names), max(1, -(-len(names) // 24)))
    axis.set_xticks(ticks, [names[i] for i in ticks], rotation=90, fontsize=7, parse_math=False)
    axis.set_yticks(ticks, [names[i] for i in ticks], fontsize=7, parse_math=False)
    axis.set_xlabel("token, most frequent first")
    axis.set_ylabel("token, most frequent first")
    figure.colorbar(image, ax=axis, label="cosine", shrink=0.85)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _figure(panels: int, width: float = 12.0) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, 4.3), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", w_pad=0.12)
    axes = list(figure.subplots(1, panels))
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
        axis.grid(color=_FAINT, linewidth=0.6)
    return figure, axes


def _title(axis: Axes, title: str, x: str, y: str) -> None:
    axis.set_title(title, loc="left")
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def _legend(axis: Axes, place: Any, nothing: str, columns: int = 1) -> None:
    """A legend, or a word in the place of lines."""
    handles, labels = axis.get_legend_handles_labels()
    if not handles:
        axis.text(0.5, 0.5, nothing, ha="center", va="center", transform=axis.transAxes, color=_BOUND)
        return
    legend = axis.legend(
        handles, labels, frameon=True, framealpha=0.9, edgecolor="none", fontsize=8, loc=place, ncols=columns
    )
    for entry in legend.get_texts():
        entry.set_parse_math(False)  # a run's name may hold a dollar sign


def _drawable(name: str) -> str:
    """The same with escapes for characters that the font does not have: it would draw a box, and warn of each."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else c.encode("ascii", "backslashreplace").decode() for c in name)


def _with_rows(state: str, subjects: Sequence[CollapseSubject]) -> str:
    """A state's name with its rows, where all who have any have as many."""
    counts = {((s.metrics.get("states") or {}).get(state) or {}).get("rows") or 0 for s in subjects} - {0}
    return f"{state}\n{counts.pop()} rows" if len(counts) == 1 else state


def _shares(eigenvalues: Sequence[float] | None, total: float | None) -> np.ndarray:
    """Shares of the sum of all eigenvalues, of which only the largest are listed."""
    values = _floats(eigenvalues or [])
    values = values[np.isfinite(values)]
    total = total or values.sum()
    # Rounding noise far below the largest says nothing, and would stretch the axis by many decades.
    values = values[values > 1e-12 * values[0]] if len(values) else values
    return values / total if len(values) else values


def _power_law(shares: np.ndarray) -> tuple[float | None, np.ndarray, np.ndarray]:
    """Slope of a straight line through the logarithms, over ranks 11 to 100 of a long spectrum, else over all."""
    r = len(shares)
    first, last = (11, min(r, 100)) if r >= 50 else (1, r)
    if r < 3:
        return None, np.zeros(0), np.zeros(0)
    ranks = np.arange(first, last + 1)
    slope, offset = np.polyfit(np.log(ranks), np.log(shares[first - 1 : last]), 1)
    return float(slope), ranks, np.exp(offset + slope * np.log(ranks))


def _tokens(subject: CollapseSubject) -> tuple[np.ndarray, np.ndarray]:
    defined = [t for t in (subject.metrics.get("token_metrics") or {}).values() if t.get("svd_entropy") is not None]
    return _floats([rows_behind(t) for t in defined]), _floats([t["svd_entropy"] for t in defined])


def _floats(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)


def _colour(i: int) -> str:
    return _COLOURS[i % len(_COLOURS)]


def _dash(i: int) -> str:
    return _DASHES[i % len(_DASHES)]
