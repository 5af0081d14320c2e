"""Drawings of metrics that are more than one number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def plot_counts(statistics: dict[str, Tensor], ax: Any = None) -> Any:
    """Draw class counts by rank on logarithmic axes; returns figure and axes.

    Args:
        statistics: what ``ClassStatistics.compute`` returns.
        ax: matplotlib axes to draw on.
    """
    figure, ax = _axes(ax)
    counts = statistics["class_counts"].sort(descending=True).values.cpu()
    ax.loglog(torch.arange(1, len(counts) + 1).numpy(), counts.numpy(), marker=".")
    ax.set(xlabel="class, most frequent first", ylabel="rows", title="Rows per class")
    return figure, ax


def plot_values(values: dict[str, Tensor], ax: Any = None) -> Any:
    """Draw named numbers as horizontal bars, each with its value; those that are not finite keep their name only.

    Args:
        values: scalars by name.
        ax: matplotlib axes to draw on.

    Returns:
        Figure and axes.
    """
    figure, ax = _axes(ax, height=1 + 0.22 * len(values))
    names = list(values)
    numbers = torch.stack([values[name].detach().cpu().to(torch.float64) for name in names])
    bars = ax.barh(names, torch.where(torch.isfinite(numbers), numbers, 0.0).numpy())
    ax.bar_label(bars, labels=[f"{x:.4g}" for x in numbers.tolist()], fontsize="small", padding=2)
    ax.set_xscale("symlog")
    ax.invert_yaxis()
    ax.margins(x=0.2, y=0.01)
    return figure, ax


def _axes(ax: Any, height: float = 4.8) -> Any:
    if ax is not None:
        return ax.get_figure(), ax
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6.4, height), layout="constrained")
    return figure, ax
