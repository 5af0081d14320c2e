"""Writing a comparison: JSON, Markdown, a picture and a page."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lit_hass.records import ensure_writable, write_json, write_text
from lit_hass.records.atomic import write_bytes
from lit_hass.reports.comparison_view import to_markdown


def write_comparison(folder: str | os.PathLike[str], comparison: dict[str, Any]) -> list[Path]:
    """Write ``comparison.json``, ``comparison.md``, ``comparison.png`` and ``report.html``, each atomically.

    Args:
        folder: made if need be.
        comparison: of `compare_runs`.

    Returns:
        The files.

    Raises:
        UserError: the folder cannot be written to.
        RunError: the disk is full or failed.
    """
    # Only here: loading matplotlib takes longer than a comparison.
    from lit_hass.reports.comparison_page import to_html
    from lit_hass.reports.comparison_plot import plot_comparison

    folder = ensure_writable(folder)
    paths = [folder / name for name in ("comparison.json", "comparison.md", "comparison.png", "report.html")]
    picture = plot_comparison(comparison)
    write_json(paths[0], comparison)
    write_text(paths[1], to_markdown(comparison))
    write_bytes(paths[2], picture)
    write_text(paths[3], to_html(comparison, picture))
    return paths
