"""Collapse metrics in TensorBoard: scalars, curves, histograms, pictures, class means, and one tab for the story."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_hass.reports.collapse_comparability import comparability
from lit_hass.reports.collapse_plot import chunks_figure, cosine_figure, scopes_figure, spectrum_figure, tokens_figure
from lit_hass.reports.collapse_run import CollapseSubject
from lit_hass.reports.collapse_view import to_markdown

_FIGURES = {
    "prompt_against_answer": scopes_figure,
    "spectrum": spectrum_figure,
    "along_the_text": chunks_figure,
    "tokens": tokens_figure,
}
_STATES = ("prompt", "accepted", "rejected", "bonus", "baseline")
#: Rows of the states that stand beside each other: few, so that soon every one has them.
_FEW = 16
#: Of the scopes' values, those that are worth a curve of their own.
_OF_SCOPES = (
    "svd_entropy/overall", "svd_entropy/normalized", "svd_entropy/token_mean", "gnc2/mean", "gnc2/std", "gnc2/cov_abs",
    "unc3/mean", "unc3/cov_abs", "nc1/cdnv", "nc2/etf_error", "nc3/cos_mean", "nc4/agreement",
    "rank/raw/effective_rank", "cka/linear", "cka/debiased",
)  # fmt: skip
#: Classes in the map of cosines.
_MOST_COSINES = 64


def scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Every finite number of a run by its tag, without the method's prefix.

    ``collapse/NAME`` are values over all rows; ``collapse/prompt/NAME`` and ``collapse/answer/NAME`` the chief ones of
    a scope; ``collapse/state/NAME/STATE`` entropies by state, also of equally many rows of each;
    ``collapse/diagnostics/NAME`` counters. What is undefined is left out: TensorBoard would draw it as a hole without
    saying why.

    Args:
        metrics: of the collector.
    """
    family = metrics.get("family") or {}
    found: dict[str, Any] = {f"collapse/{name}": value for name, value in (family.get("overall") or {}).items()}
    for scope in ("prompt", "answer"):
        values = family.get(scope) or {}
        found |= {f"collapse/{scope}/{name}": values[name] for name in _OF_SCOPES if name in values}
    for state, values in (metrics.get("states") or {}).items():
        if values and values.get("rows"):
            keys = ("svd_entropy", "normalized_entropy", "rows")
            found |= {f"collapse/state/{key}/{state}": values[key] for key in keys}
    for stream, sizes in (metrics.get("equal_rows") or {}).items():
        found |= {_of_rows(rows, stream): values["normalized_entropy"] for rows, values in sizes.items()}
    found |= {f"collapse/diagnostics/{name}": value for name, value in (metrics.get("counts") or {}).items()}
    return {tag: float(value) for tag, value in found.items() if _finite(value)}


def _of_rows(rows: int | str, stream: str) -> str:
    return f"collapse/state/normalized_entropy_of_{rows}_rows/{stream}"


def curves(subject: CollapseSubject) -> dict[str, list[float]]:
    """Entropy along the text by tag; the step is the stretch, from 1."""
    analysis = subject.analysis["chunk_analysis"] or {}
    found = {
        "collapse/along_the_text/svd_entropy": analysis.get("chunk_entropies") or [],
        "collapse/along_the_text/normalized": analysis.get("normalized_entropies") or [],
    }
    return {tag: values for tag, values in found.items() if values and all(map(_finite, values))}


def layout(prefixes: Sequence[str]) -> dict[str, Any]:
    """The custom-scalar tab for ``SummaryWriter.add_custom_scalars``: one page that tells the story.

    Args:
        prefixes: of the tags of each method, such as ``"hass/"``; ``[""]`` for a run with one.
    """

    def each(*tags: str) -> list[Any]:
        return ["Multiline", [f"{prefix}collapse/{tag}" for prefix in prefixes for tag in tags]]

    def scopes(name: str) -> list[Any]:
        return each(f"prompt/{name}", f"answer/{name}", name)

    states = [_of_rows(_FEW, state).removeprefix("collapse/") for state in _STATES]
    return {
        "representation collapse": {
            "entropy along the text (step: stretch)": each("along_the_text/svd_entropy"),
            "entropy along the text over its bound (step: stretch)": each("along_the_text/normalized"),
            f"entropy by state of the token, of {_FEW} rows, over its bound": each(*states),
            "GNC2, prompt against answer": scopes("gnc2/mean"),
            "UNC3, prompt against answer": scopes("unc3/cov_abs"),
            "entropy per token": each("svd_entropy/token_mean", "svd_entropy/token_std"),
            "draft against base (CKA)": each("answer/cka/linear", "answer/cka/debiased"),
        },
        "as the run goes (rank 0's share)": {
            f"entropy by state of the token, of {_FEW} rows, over its bound": each(*(f"running/{s}" for s in states)),
            "GNC2, prompt against answer": each("running/prompt/gnc2/mean", "running/answer/gnc2/mean"),
            "UNC3, prompt against answer": each("running/prompt/unc3/cov_abs", "running/answer/unc3/cov_abs"),
        },
    }


def write_board(board: Any, subject: CollapseSubject, step: int, prefix: str = "") -> None:
    """Write one subject's curves, histograms, pictures and table.

    Args:
        board: a `torch.utils.tensorboard.SummaryWriter`.
        subject: of whom.
        step: of the histograms and pictures.
        prefix: of the tags.
    """
    for tag, values in curves(subject).items():
        for stretch, value in enumerate(values, start=1):
            board.add_scalar(prefix + tag, value, stretch)
    tokens = [t for t in (subject.metrics.get("token_metrics") or {}).values() if _finite(t.get("svd_entropy"))]
    histograms = {
        "collapse/token_entropy": [t["svd_entropy"] for t in tokens],
        "collapse/token_normalized_entropy": [
            t["normalized_entropy"] for t in tokens if _finite(t.get("normalized_entropy"))
        ],
        "collapse/token_rows": [t["num_samples"] for t in tokens],
    }
    add_histograms(board, histograms, step, prefix)
    for name, draw in _FIGURES.items():
        board.add_figure(f"{prefix}collapse/{name}", draw([subject]), step)
    board.add_text(f"{prefix}collapse", to_markdown([subject]), step)


def write_side_by_side(board: Any, subjects: Sequence[CollapseSubject], step: int) -> None:
    """Write pictures of several subjects over each other, and their table with what may be compared."""
    tag = "collapse_side_by_side"
    for name, draw in _FIGURES.items():
        board.add_figure(f"{tag}/{name}", draw(subjects), step)
    statements = comparability(*subjects) if len(subjects) == 2 else []
    board.add_text(tag, to_markdown(subjects, statements), step)


def add_histograms(board: Any, values: Mapping[str, Any], step: int, prefix: str = "") -> None:
    """Write the finite numbers of each entry; one without any is left out, which TensorBoard would refuse."""
    for tag, numbers in values.items():
        array = np.asarray(numbers, dtype=np.float64).ravel()
        array = array[np.isfinite(array)]
        if array.size:
            board.add_histogram(prefix + tag, array, step)


def write_class_means(
    board: Any, subject: CollapseSubject, ids: np.ndarray, counts: np.ndarray, means: np.ndarray, step: int, prefix: str
) -> None:
    """Write class means into the projector, and the cosines between the most frequent ones as a map.

    Args:
        board: a `SummaryWriter`.
        subject: names the tokens.
        ids: ``[K]`` token ids.
        counts: ``[K]`` their rows.
        means: ``[K, d]``.
        step: of both.
        prefix: of the tags.
    """
    order = np.argsort(-counts, kind="stable")
    ids, counts, means = ids[order], counts[order], means[order].astype(np.float64)
    tokens = subject.metrics.get("token_metrics") or {}
    known = [tokens.get(str(token), {}) for token in ids.tolist()]
    # A tab or a line break in a token would break the table of labels; repr has none.
    names = [
        repr(each["token"]) if each.get("token") is not None else str(token)
        for token, each in zip(ids.tolist(), known, strict=True)
    ]
    labels = [
        [name, str(token), str(count), "" if each.get("svd_entropy") is None else f"{each['svd_entropy']:.4f}"]
        for name, token, count, each in zip(names, ids.tolist(), counts.tolist(), known, strict=True)
    ]
    if len(ids) >= 2:
        header = ["token", "id", "rows", "svd_entropy"]
        board.add_embedding(
            means, metadata=labels, tag=f"{prefix}collapse/class_means", metadata_header=header, global_step=step
        )
        centred = (means - means.mean(0))[:_MOST_COSINES]
        lengths = np.linalg.norm(centred, axis=1)
        units = centred / np.where(lengths > 0, lengths, np.nan)[:, None]
        board.add_figure(f"{prefix}collapse/class_cosines", cosine_figure(units @ units.T, names[:_MOST_COSINES]), step)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
