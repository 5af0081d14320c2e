"""Features with classes, states and a second stream, small enough to compute everything the plain way."""

from __future__ import annotations

import torch
from torch import Tensor

SPECIAL = (0, 1)
CLASSES, WIDTH, PAIRED = 40, 12, 7


def make(rows: int = 600, seed: int = 0, offset: float = 3.0) -> dict[str, Tensor]:
    """Return features, token_ids (with special and ignored ones), states, paired, lm_head, all on the CPU."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    centres = normal(CLASSES, WIDTH) * 2 + offset
    weights = 1 / torch.arange(1, CLASSES + 1, dtype=torch.float64)
    ids = torch.multinomial(weights, rows, replacement=True, generator=generator)
    features = (centres[ids] + normal(rows, WIDTH) * torch.linspace(0.1, 1.5, WIDTH, dtype=torch.float64)).float()
    ids[::50] = -100
    states = torch.randint(0, 4, (rows,), generator=generator)
    paired = (features.double() @ normal(WIDTH, PAIRED) + 4 * normal(rows, PAIRED)).float()
    lm_head = (centres + normal(CLASSES, WIDTH)).float()
    return {"features": features, "token_ids": ids, "states": states, "paired_features": paired, "lm_head": lm_head}


def part(data: dict[str, Tensor], rows: slice | Tensor, *names: str) -> dict[str, Tensor]:
    """Return some rows of some tensors, as arguments of ``update``."""
    return {name: data[name][rows] for name in names or ("features", "token_ids", "states", "paired_features")}
