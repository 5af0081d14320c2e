"""Sequences of made-up features, and metrics computed from them without any of what is tested."""

from __future__ import annotations

import math

import torch

from lit_hass.features import CollapseConfig, CollapseMeasurement, FeatureSequence
from lit_hass.metrics import CollapseMetrics

WIDTH, CLASSES, SPECIAL = 8, 30, (0, 1)


def make_sequence(question, choice=0, turn=0, length=40, drafts=True, dtype=torch.float32) -> FeatureSequence:
    """The same for the same arguments: about a third prompt, the rest accepted and bonus."""

    chance = torch.Generator().manual_seed(question * 1000 + choice * 10 + turn)

    def normal(*shape):
        return torch.randn(*shape, generator=chance).to(dtype)

    weights = 1 / torch.arange(1.0, CLASSES + 1)
    ids = torch.multinomial(weights, length, replacement=True, generator=chance)
    centres = torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(9)).to(dtype)
    features = centres[ids] * 2 + normal(length, WIDTH)
    prompt = length // 3
    states = torch.tensor([0] * prompt + [3 if i % 3 == 0 else 1 for i in range(length - prompt)])
    drafted = torch.arange(prompt, length, 2) if drafts else torch.arange(0)
    predicted = features[drafted] + normal(len(drafted), WIDTH)
    return FeatureSequence(
        (question, choice, turn), features, ids, states, normal(5, WIDTH), predicted, drafted
    )  # fmt: skip


def classifier() -> torch.Tensor:
    return torch.randn(CLASSES, WIDTH, generator=torch.Generator().manual_seed(4))


def new_measurement(config=None, **more) -> CollapseMeasurement:
    config = config or CollapseConfig(max_samples_per_class=5000)
    settings = {"special": SPECIAL, "num_classes": CLASSES, "paired": True, **more}
    return CollapseMeasurement(WIDTH, config, classifier(), **settings)


def expected_values(sequences, scope="overall", **settings) -> dict[str, float]:
    """All values of a scope by a `CollapseMetrics` that keeps its rows, fed at once."""
    metric = CollapseMetrics(
        WIDTH, classifier(), keep_rows=True, ignore_ids=SPECIAL, num_paired_features=WIDTH, **settings
    )  # fmt: skip
    for sequence in sequences:
        prompt = sequence.states == 0
        wanted = {"overall": torch.ones_like(prompt), "prompt": prompt, "answer": ~prompt}[scope]
        paired = torch.zeros_like(prompt)
        paired[sequence.draft_rows] = True
        index = torch.zeros(len(prompt), dtype=torch.int64)
        index[sequence.draft_rows] = torch.arange(len(sequence.draft_rows))
        for rows in ((wanted & ~paired), (wanted & paired)):
            if rows.any():
                other = {"paired_features": sequence.draft_features[index[rows]]} if (rows & paired).any() else {}
                metric.update(sequence.features[rows], sequence.token_ids[rows], sequence.states[rows], **other)
        if scope != "prompt":
            ids = torch.full((len(sequence.rejected),), 2)
            metric.update(sequence.rejected, ids, torch.full_like(ids, 2))
    return {name: float(value) for name, value in metric.compute().items()}


def assert_close(found: dict, expected: dict, tolerance: float = 1e-9) -> None:
    """Values by name; None is NaN."""
    for name, value in expected.items():
        ours = math.nan if found[name] is None else found[name]
        same = ours != ours and value != value
        assert same or abs(ours - value) <= tolerance * max(1, abs(value)), (name, ours, value)
