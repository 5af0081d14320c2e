"""What is measured, as pure functions: tensors in, numbers out. No state, no devices that talk to each other.

Names are imported when first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.metrics.functional.classifier_agreement import NC4_COLUMNS, nc4_counts
    from lit_hass.metrics.functional.decline import decline_pattern
    from lit_hass.metrics.functional.equal_rows import EQUAL_ROWS, DrawnEntropy, drawn_entropies
    from lit_hass.metrics.functional.group_entropies import (
        ChunkEntropies,
        GroupedEntropy,
        chunk_entropies,
        grouped_entropy,
    )
    from lit_hass.metrics.functional.moments import Moments
    from lit_hass.metrics.functional.neural_collapse import (
        cdnv,
        duality_distances,
        etf_error,
        gnc2,
        lidar,
        papyan_distance,
        pinv_ratio,
        similarities,
        structure_error,
        unc3,
    )
    from lit_hass.metrics.functional.pair_statistics import (
        PairStatistics,
        cdnv_statistics,
        gnc2_statistics,
        product_statistics,
    )
    from lit_hass.metrics.functional.similarity import debiased_cka, linear_cka, mean_cosine
    from lit_hass.metrics.functional.spectrum import (
        gram_eigenvalues,
        matrix_eigenvalues,
        power_law,
        rankme,
        renyi_entropy,
        spectral_entropy,
        spectrum_summary,
    )

_HOMES = {
    "ChunkEntropies": "lit_hass.metrics.functional.group_entropies",
    "DrawnEntropy": "lit_hass.metrics.functional.equal_rows",
    "EQUAL_ROWS": "lit_hass.metrics.functional.equal_rows",
    "GroupedEntropy": "lit_hass.metrics.functional.group_entropies",
    "Moments": "lit_hass.metrics.functional.moments",
    "NC4_COLUMNS": "lit_hass.metrics.functional.classifier_agreement",
    "PairStatistics": "lit_hass.metrics.functional.pair_statistics",
    "cdnv": "lit_hass.metrics.functional.neural_collapse",
    "cdnv_statistics": "lit_hass.metrics.functional.pair_statistics",
    "chunk_entropies": "lit_hass.metrics.functional.group_entropies",
    "debiased_cka": "lit_hass.metrics.functional.similarity",
    "decline_pattern": "lit_hass.metrics.functional.decline",
    "drawn_entropies": "lit_hass.metrics.functional.equal_rows",
    "duality_distances": "lit_hass.metrics.functional.neural_collapse",
    "etf_error": "lit_hass.metrics.functional.neural_collapse",
    "gnc2": "lit_hass.metrics.functional.neural_collapse",
    "gnc2_statistics": "lit_hass.metrics.functional.pair_statistics",
    "gram_eigenvalues": "lit_hass.metrics.functional.spectrum",
    "grouped_entropy": "lit_hass.metrics.functional.group_entropies",
    "lidar": "lit_hass.metrics.functional.neural_collapse",
    "linear_cka": "lit_hass.metrics.functional.similarity",
    "matrix_eigenvalues": "lit_hass.metrics.functional.spectrum",
    "mean_cosine": "lit_hass.metrics.functional.similarity",
    "nc4_counts": "lit_hass.metrics.functional.classifier_agreement",
    "papyan_distance": "lit_hass.metrics.functional.neural_collapse",
    "pinv_ratio": "lit_hass.metrics.functional.neural_collapse",
    "power_law": "lit_hass.metrics.functional.spectrum",
    "product_statistics": "lit_hass.metrics.functional.pair_statistics",
    "rankme": "lit_hass.metrics.functional.spectrum",
    "renyi_entropy": "lit_hass.metrics.functional.spectrum",
    "similarities": "lit_hass.metrics.functional.neural_collapse",
    "spectral_entropy": "lit_hass.metrics.functional.spectrum",
    "spectrum_summary": "lit_hass.metrics.functional.spectrum",
    "structure_error": "lit_hass.metrics.functional.neural_collapse",
    "unc3": "lit_hass.metrics.functional.neural_collapse",
}

__all__ = (
    "ChunkEntropies",
    "DrawnEntropy",
    "EQUAL_ROWS",
    "GroupedEntropy",
    "Moments",
    "NC4_COLUMNS",
    "PairStatistics",
    "cdnv",
    "cdnv_statistics",
    "chunk_entropies",
    "debiased_cka",
    "decline_pattern",
    "drawn_entropies",
    "duality_distances",
    "etf_error",
    "gnc2",
    "gnc2_statistics",
    "gram_eigenvalues",
    "grouped_entropy",
    "lidar",
    "linear_cka",
    "matrix_eigenvalues",
    "mean_cosine",
    "nc4_counts",
    "papyan_distance",
    "pinv_ratio",
    "power_law",
    "product_statistics",
    "rankme",
    "renyi_entropy",
    "similarities",
    "spectral_entropy",
    "spectrum_summary",
    "structure_error",
    "unc3",
)


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
