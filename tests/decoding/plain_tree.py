"""The draft tree of EAGLE-2 in plain lists, with a full forward of the draft for every node: slow and independent."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_hass.models import DraftModel


@dataclass
class Candidate:
    """One token that the draft proposes: behind which candidate (None: the root), at which level, how probable."""

    token: int
    parent: int | None
    level: int
    score: float


@dataclass
class PlainTree:
    """The chosen nodes, root first, and all candidates."""

    tokens: list[int]
    parents: list[int]
    depths: list[int]
    visible: list[list[bool]]
    candidates: list[Candidate]


def plain_tree(
    draft: DraftModel,
    head: Callable[[Tensor], Tensor],
    ids: list[int],
    features: Tensor,
    total_tokens: int,
    depth: int,
    top_k: int,
) -> PlainTree:
    """Grow the tree behind ``ids``, whose last token is the root; ``features [len(ids) - 1, H]`` are the base's."""

    def predict(path: list[int], predicted: list[Tensor]) -> Tensor:
        rows = torch.cat((features, *(row[None] for row in predicted)))
        return draft(torch.tensor([ids[1:] + path]), rows[None])[0, -1]

    def best(feature: Tensor) -> list[tuple[int, float]]:
        logits = head(feature).float()
        logs = (logits - logits.logsumexp(-1)).tolist()
        order = sorted(range(len(logs)), key=lambda token: -logs[token])[:top_k]
        return [(token, min(0.0, logs[token])) for token in order]

    def add(score: float, gained: float) -> float:
        return float(torch.tensor(score) + torch.tensor(gained))  # sums of float32

    candidates: list[Candidate] = []
    # Of every candidate that was fed: the path to it, and the features that the draft predicted along that path.
    states: dict[int, tuple[list[int], list[Tensor]]] = {}
    first = predict([], [])
    for token, score in best(first):
        candidates.append(Candidate(token, None, 1, score))
    level = list(range(top_k))
    for step in range(depth):
        beam = sorted(level, key=lambda number: -candidates[number].score)[:top_k]
        level = []
        for number in beam:
            candidate = candidates[number]
            path, line = ([], [first]) if candidate.parent is None else states[candidate.parent]
            path = [*path, candidate.token]
            output = predict(path, line)
            states[number] = path, [*line, output]
            for token, gained in best(output):
                level.append(len(candidates))
                candidates.append(Candidate(token, number, step + 2, add(candidate.score, gained)))
    order = sorted(range(len(candidates)), key=lambda number: -candidates[number].score)
    chosen = sorted(order[: total_tokens - 1])
    assert not any(math.isnan(c.score) for c in candidates)
    place = {None: 0, **{number: 1 + index for index, number in enumerate(chosen)}}
    parents = [0] + [place[candidates[number].parent] for number in chosen]
    return PlainTree(
        tokens=[ids[-1]] + [candidates[number].token for number in chosen],
        parents=parents,
        depths=[0] + [candidates[number].level for number in chosen],
        visible=closure(parents),
        candidates=candidates,
    )


def closure(parents: list[int]) -> list[list[bool]]:
    """Who is an ancestor of whom, or the same."""
    visible = []
    for node in range(len(parents)):
        line = {node}
        while node:
            node = parents[node]
            line.add(node)
        visible.append([other in line for other in range(len(parents))])
    return visible
