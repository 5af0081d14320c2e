"""NC4: does the output layer decide like the nearest class mean?"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_hass.metrics.functional.pair_statistics import ROUNDING
from lit_hass.numerics import plain_numbers

# Scores held at a time: 256 MiB of float64.
_SCORE_NUMBERS = 2**25
#: What each column of :func:`nc4_counts` counts.
NC4_COLUMNS = ("rows", "agree", "agree_vocab", "nearest_correct", "linear_correct", "linear_correct_vocab")


def nc4_counts(
    features: Tensor,
    token_ids: Tensor,
    class_ids: Tensor,
    class_means: Tensor,
    classifier: Tensor | None = None,
    vocabulary: Tensor | None = None,
) -> Tensor:
    """Count per class how often the linear classifier and the nearest class mean agree, and how often each is right.

    The linear classifier takes the largest w.h, the other one the smallest norm(h - mean) of all given classes. The
    lowest id wins a tie, and scores that differ by less than the rounding of sums and means can make (1e-12 of the
    vectors) are a tie: means of the same rows, added up in another order, would win and lose by chance.

    Args:
        features: ``[N, d]`` floating; rows of other classes are passed over.
        token_ids: ``[N]`` int64.
        class_ids: ``[K]`` int64 ascending.
        class_means: ``[K, d]`` float64.
        classifier: ``[K, d]``, the output layer's rows of those classes.
        vocabulary: ``[V, d]``, all its rows; those columns stay 0 without it. Computed in float64.

    Returns:
        ``[K, 6]`` int64: the columns are `NC4_COLUMNS`.
    """
    counts = torch.zeros(len(class_ids), len(NC4_COLUMNS), dtype=torch.int64, device=class_means.device)
    if not len(class_ids):
        return counts
    centre = class_means.mean(0)
    centred = class_means - centre
    half_lengths = centred.square().sum(1) / 2
    linear = None if classifier is None else classifier.to(torch.float64)
    # A mean is as far off as the rounding of its sum, a part of its length before the centre was taken away.
    longest, error = _longest(centred), ROUNDING * _longest(class_means)
    width = max(len(class_ids), 0 if vocabulary is None else len(vocabulary))
    block = max(1, _SCORE_NUMBERS // width)
    with plain_numbers():
        for start in range(0, len(features), block):
            ids = token_ids[start : start + block].to(class_ids.device)
            place = torch.searchsorted(class_ids, ids).clamp_(max=len(class_ids) - 1)
            member = class_ids[place] == ids
            place, rows = place[member], features[start : start + block].to(class_means)[member]
            # Less the centre on both sides: distances of rows far from the origin would lose their digits.
            offsets = rows - centre
            lengths, reach = torch.linalg.vector_norm(rows, dim=1), torch.linalg.vector_norm(offsets, dim=1)
            rounding = (reach + longest) * (error + ROUNDING * lengths)
            nearest = _first_largest(offsets @ centred.T - half_lengths, rounding)[0]
            hits = torch.zeros(len(place), len(NC4_COLUMNS), dtype=torch.int64, device=counts.device)
            hits[:, 0] = 1
            hits[:, 3] = nearest == place
            if linear is not None:
                chosen = _first_largest(rows @ linear.T, ROUNDING * lengths * _longest(linear))[0]
                hits[:, 1], hits[:, 4] = chosen == nearest, chosen == place
            if vocabulary is not None:
                token = _argmax_by_parts(rows, vocabulary)
                hits[:, 2], hits[:, 5] = token == class_ids[nearest], token == class_ids[place]
            counts.index_add_(0, place, hits)
    return counts


def _longest(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=1).max()


def _first_largest(scores: Tensor, rounding: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first place whose score is the largest up to rounding, and that score.

    Args:
        scores: ``[n, k]``.
        rounding: ``[n]``, differences that mean nothing.
    """
    place = (scores >= scores.amax(1, keepdim=True) - rounding[:, None]).to(torch.uint8).argmax(1)
    return place, scores.gather(1, place[:, None])[:, 0]


def _argmax_by_parts(rows: Tensor, vocabulary: Tensor, part: int = 16384) -> Tensor:
    """Return the first index of the largest product; the float64 copy of the vocabulary exists in parts only."""
    lengths, longest = torch.linalg.vector_norm(rows, dim=1), rows.new_zeros(())
    best = rows.new_full((len(rows),), -torch.inf)
    index = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
    for start in range(0, len(vocabulary), part):
        weights = vocabulary[start : start + part].to(rows)
        longest = torch.maximum(longest, _longest(weights))
        rounding = ROUNDING * lengths * longest
        places, values = _first_largest(rows @ weights.T, rounding)
        better = values > best + rounding
        best, index = torch.where(better, values, best), torch.where(better, places + start, index)
    return index
