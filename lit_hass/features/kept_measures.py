"""What only the kept rows tell: the entropy of each class's rows, and NC4; of one process or of all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from lit_hass.features.reservoir import Reservoir
from lit_hass.metrics.class_table import Classes
from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.functional.classifier_agreement import NC4_COLUMNS, nc4_counts
from lit_hass.metrics.functional.equal_rows import drawn_entropies
from lit_hass.metrics.functional.group_entropies import grouped_entropy
from lit_hass.metrics.functional.spectrum import bounded_entropy, gram_eigenvalues, has_spread

# Numbers of the rows that are looked at together.
_PART_NUMBERS = 2**21
# Tokens of the vocabulary that `nc4_counts` scores at a time.
_VOCABULARY_PART = 16384
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Kept(Protocol):
    """Rows by place; their group is twice the token id, plus one for those that are not the prompt's."""

    def index(self) -> tuple[Tensor, Tensor]:
        """Groups and keys, ``[n]`` int64 each."""

    def gather(self, index: Tensor) -> Tensor:
        """Rows ``[n, d]``."""

    @property
    def cap(self) -> int | None:
        """Rows of each group at most."""

    @property
    def halvings(self) -> int:
        """How often half of the classes were left out, see `keeps_class`."""


def exchanged(kept: Kept, num_features: int, max_bytes: int, ranks: Ranks) -> Kept:
    """Give each rank all kept rows of the classes whose id leaves its number as remainder; collective.

    Every rank sends its rows once, in blocks. Bounds may differ between ranks; the narrowest hold for all, before and
    after.

    Args:
        kept: this rank's rows; there may be none.
        num_features: d.
        max_bytes: for the rows of this rank's classes; where they do not suffice, the bounds narrow further.
        ranks: the group.
    """
    groups, keys = kept.index()
    sample = kept.gather(torch.zeros(0, dtype=torch.int64))
    header = torch.zeros(ranks.size, 2, dtype=torch.int64)
    header[ranks.rank] = torch.tensor([len(groups), _DTYPES.index(sample.dtype)])
    header = ranks.sum(header)
    mine = Reservoir(num_features, None, max_bytes)
    mine.shrink_to(*_narrowest(kept.cap, kept.halvings, ranks))
    rows = max(1, _PART_NUMBERS // num_features)
    for source, (count, code) in enumerate(header.tolist()):
        for start in range(0, count, rows):
            size = min(rows, count - start)
            if source == ranks.rank:
                place = torch.arange(start, start + size)
                block, about = kept.gather(place), torch.stack((groups[place], keys[place]))
            else:
                block = torch.empty(size, num_features, dtype=_DTYPES[code])
                about = torch.empty(2, size, dtype=torch.int64)
            ranks.broadcast(block, source)
            ranks.broadcast(about, source)
            wanted = (about[0] // 2) % ranks.size == ranks.rank
            mine.offer(block[wanted], about[0][wanted], about[1][wanted])
    mine.shrink_to(*_narrowest(mine.per_group, mine.halvings, ranks))
    return mine


def _narrowest(cap: int | None, halvings: int, ranks: Ranks) -> tuple[int | None, int]:
    largest = 2**62
    found = ranks.max(torch.tensor([-(largest if cap is None else cap), halvings])).tolist()
    return None if found[0] == -largest else -found[0], found[1]


def places(kept: Kept, scope: str) -> tuple[Tensor, Tensor]:
    """Return places and token ids of the kept rows of a scope, in order of id and key.

    Of ``"overall"`` each class has no more rows than the cap: the smallest keys of both scopes together.
    """
    groups, keys = kept.index()
    chosen = torch.arange(len(groups))
    if scope != "overall":
        chosen = ((groups % 2) == (scope == "answer")).nonzero()[:, 0]
    ids = groups[chosen] // 2
    order = keys[chosen].argsort(stable=True)
    order = order[ids[order].argsort(stable=True)]
    chosen, ids = chosen[order], ids[order]
    if scope == "overall" and kept.cap is not None:
        _, counts = ids.unique_consecutive(return_counts=True)
        rank = torch.arange(len(ids)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        chosen, ids = chosen[rank < kept.cap], ids[rank < kept.cap]
    return chosen, ids


def class_entropies(
    kept: Kept, chosen: Tensor, ids: Tensor, classes: Tensor, settings: dict[str, Any], device: torch.device
) -> Tensor:
    """Return kept rows, entropy and normalised entropy of each class.

    Args:
        kept: where rows are.
        chosen: ``[n]`` places, see `places`.
        ids: ``[n]`` their token ids, ascending.
        classes: ``[K]`` token ids, ascending.
        settings: ``power``, ``center`` and ``base`` of the entropies.
        device: where they are computed.

    Returns:
        ``[K, 3]`` float64: rows, and two numbers that are NaN where undefined; zeros for classes without rows here.
    """
    table = torch.zeros(len(classes), 3, dtype=torch.float64)
    wanted = torch.isin(ids, classes)
    chosen, ids = chosen[wanted], ids[wanted]
    if not len(ids):
        return table
    width = kept.gather(chosen[:1]).shape[1]
    limit = max(1, _PART_NUMBERS // width)
    for start, stop in _parts(ids, limit):
        part = ids[start:stop]
        if stop - start > limit:  # one class, too large to be looked at whole
            value = _streamed_entropy(kept, chosen[start:stop], limit, settings, device)
            row = torch.tensor([[stop - start, *value]], dtype=torch.float64)
            table[torch.searchsorted(classes, part[:1])] = row
            continue
        rows = kept.gather(chosen[start:stop]).to(device)
        found = grouped_entropy(rows, part.to(device), min_samples=1, **settings)
        columns = (found.counts.to(torch.float64), found.entropies, found.normalized)
        table[torch.searchsorted(classes, found.ids.cpu())] = torch.stack(columns, dim=1).cpu()
    return table


def stream_entropies(
    kept: Kept, streams: int, sizes: Sequence[int], settings: dict[str, Any], device: torch.device
) -> Tensor:
    """Return what `drawn_entropies` finds in the kept rows of each stream.

    Args:
        kept: where rows are; a stream's group is twice its number.
        streams: how many there are.
        sizes: how many rows to draw.
        settings: ``power``, ``center`` and ``base`` of the entropies.
        device: where they are computed.

    Returns:
        ``[streams, sizes, 5]`` float64: the stream's kept rows, and mean, ends and bound; zeros for
        what is not here or of more rows than may be drawn.
    """
    table = torch.zeros(streams, len(sizes), 5, dtype=torch.float64)
    groups, _ = kept.index()
    for stream in range(streams):
        places = (groups == 2 * stream).nonzero()[:, 0]
        for found in drawn_entropies(kept.gather(places).to(device), sizes, **settings):
            row = (len(places), found.entropy, found.low, found.high, found.bound)
            table[stream, sizes.index(found.rows)] = torch.tensor(row, dtype=torch.float64)
    return table


def _parts(ids: Tensor, limit: int) -> Iterator[tuple[int, int]]:
    """Yield ranges that hold whole classes, of at most ``limit`` rows or one class."""
    ends = ids.unique_consecutive(return_counts=True)[1].cumsum(0).tolist()
    start = last = 0
    for end in ends:
        if end - start > limit and last > start:
            yield start, last
            start = last
        last = end
    if last > start:
        yield start, last


def _streamed_entropy(
    kept: Kept, chosen: Tensor, rows: int, settings: dict[str, Any], device: torch.device
) -> tuple[float, float]:
    """Entropy and normalised entropy of many rows from their Gram matrix, summed in parts."""
    n, shift = len(chosen), None
    for part in chosen.split(rows):
        x = kept.gather(part).to(device, torch.float64)
        if shift is None:
            shift = x.mean(0)
            sums, gram = torch.zeros_like(shift), x.new_zeros(x.shape[1], x.shape[1])
        x -= shift
        sums += x.sum(0)
        gram.addmm_(x.T, x)
    assert shift is not None
    raw = gram + torch.outer(shift, sums) + torch.outer(sums, shift) + n * torch.outer(shift, shift)
    center = settings["center"]
    values = gram_eigenvalues(gram - torch.outer(sums, sums) / n if center else raw, n, center)
    if center and not has_spread(values[0], raw.trace(), n, len(shift)):
        return math.nan, math.nan
    value, normalized = bounded_entropy(values, n, len(shift), **settings)
    return float(value), float(normalized)


def agreement_counts(
    kept: Kept, chosen: Tensor, ids: Tensor, classes: Classes, classifier: Tensor | None, vocabulary: Tensor | None
) -> Tensor:
    """Return the counts of `nc4_counts` over the kept rows, ``[K, 6]`` int64.

    Args:
        kept: where rows are.
        chosen: ``[n]`` places, see `places`.
        ids: ``[n]`` their token ids.
        classes: the eligible ones; their device computes.
        classifier: ``[K, d]``, the output layer's rows of those.
        vocabulary: ``[V, d]``, all its rows.
    """
    counts = torch.zeros(len(classes.ids), len(NC4_COLUMNS), dtype=torch.int64)
    if not len(ids) or not len(classes.ids):
        return counts
    # Scores of each row for each class, and for a part of the vocabulary, exist in float64.
    widest = max(*classes.offsets.shape, 0 if vocabulary is None else min(len(vocabulary), _VOCABULARY_PART))
    rows = max(1, _PART_NUMBERS // widest)
    for place, part in zip(chosen.split(rows), ids.split(rows), strict=True):
        features = kept.gather(place).to(classes.ids.device)
        counts += nc4_counts(
            features, part.to(features.device), classes.ids, classes.means, classifier, vocabulary
        ).cpu()  # fmt: skip
    return counts


def agreement_values(counts: Tensor, rows: Tensor, linear: bool, vocabulary: bool) -> dict[str, float]:
    """Return NC4's values by name, from a sample of each class.

    A share of all rows is estimated as that of each class's kept rows, weighted by the class's true number of rows:
    with every row kept it is the share itself.

    Args:
        counts: ``[K, 6]`` int64, columns `NC4_COLUMNS`.
        rows: ``[K]`` int64, the true numbers.
        linear: there was a classifier.
        vocabulary: it chose among all tokens too.
    """
    names = {"nearest_accuracy": "nearest_correct"}
    if linear:
        names |= {"agreement": "agree", "linear_accuracy": "linear_correct"}
    if vocabulary:
        names |= {"agreement_vocab": "agree_vocab", "linear_accuracy_vocab": "linear_correct_vocab"}
    some = counts[:, 0] > 0
    weights = rows[some].to(torch.float64)
    shares = counts[some].to(torch.float64) / counts[some, :1]
    values = {}
    for name, column in names.items():
        share = shares[:, NC4_COLUMNS.index(column)]
        values[f"nc4/{name}"] = float(weights @ share / weights.sum()) if len(share) else math.nan
        if name == "agreement":
            values["nc4/agreement_class_mean"] = float(share.mean()) if len(share) else math.nan
    return values
