"""SVD entropy of each class: sorted rows in batches of small Gram matrices against mask and svdvals per class.

OMP_NUM_THREADS=1 python benchmarks/collapse_class_entropy.py
"""

from __future__ import annotations

import argparse

import torch
from collapse_timing import interleaved, report

from lit_hass.metrics.functional import grouped_entropy

ROWS, WIDTH, IDS = 20000, 768, 3700


def mask_and_svdvals(features: torch.Tensor, ids: torch.Tensor) -> dict[int, float]:
    """Return the entropies by the formula, class by class, in float32."""
    found = {}
    for token in ids.unique().tolist():
        rows = features[ids == token]
        if len(rows) >= 2:
            values = torch.linalg.svdvals(rows)
            shares = values / values.sum()
            found[token] = float(-(shares * (shares + 1e-10).log()).sum())
    return found


def main() -> None:
    """Compare time and values."""
    # Frequencies as those of words: so many ids that about 1,700 of them come twice or more.
    ids = torch.multinomial(1 / torch.arange(1, IDS + 1, dtype=torch.float64), ROWS, replacement=True)
    sizes = ids.unique(return_counts=True)[1]
    sizes = sizes[sizes >= 2]
    print(f"{len(sizes)} classes of two rows or more, median {int(sizes.median())}, largest {int(sizes.max())}")
    features = torch.randn(ROWS, WIDTH)
    ours, theirs = interleaved([lambda: grouped_entropy(features, ids), lambda: mask_and_svdvals(features, ids)], 5)
    report(f"entropies of {ROWS} rows, d {WIDTH}", ours, theirs, "mask and svdvals", 2.5)
    plain, result = mask_and_svdvals(features, ids), grouped_entropy(features, ids)
    pairs = zip(result.ids.tolist(), result.entropies.tolist(), strict=True)
    print(f"largest difference: {max(abs(plain[token] - value) for token, value in pairs):.1e}")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    main()
