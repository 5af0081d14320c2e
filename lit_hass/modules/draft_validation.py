"""How good a draft is while it trains: agreement and acceptance per depth, and the acceptance length of a chain."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_hass.data.batches import IGNORE, TokenBatch
from lit_hass.decoding.chain import KnownAnswer, chain_acceptance, known_answers
from lit_hass.decoding.select_draft import DraftScorer
from lit_hass.models import DraftModel
from lit_hass.modules.frozen_base import FrozenBase


def depth_acceptance(agreement: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Follow every chain that starts in a sequence through the alignment passes.

    Pass s stands for depth s of a chain: of the chain that begins at row r, it is row ``r + s - 1`` of pass s.

    Args:
        agreement: ``[S, N]`` bool, the draft's choice is the base's, for the N rows that count.
        mask: ``[B, L]`` bool, which those are.

    Returns:
        Two ``[S]`` float tensors: chains whose drafted tokens were right before depth s (and that have a row there),
        and those of them that are right at depth s.
    """
    steps, (batch, length) = agreement.shape[0], mask.shape
    reached, accepted = (torch.zeros(steps, dtype=torch.float32, device=mask.device) for _ in range(2))
    alive = mask.clone()
    for step in range(min(steps, length)):
        right = torch.zeros(batch, length, dtype=torch.bool, device=mask.device)
        right[mask] = agreement[step]
        alive = alive[:, : length - step] & mask[:, step:]
        reached[step] = alive.sum()
        alive = alive & right[:, step:]
        accepted[step] = alive.sum()
    return reached, accepted


class DraftScores(nn.Module):
    """Means over one validation loader; they gather over ranks by weight.

    Args:
        depths: Number of alignment passes that are scored.
    """

    def __init__(self, depths: int) -> None:
        """Start empty."""
        super().__init__()
        self.loss = MeanMetric()
        self.agreement = nn.ModuleList(MeanMetric() for _ in range(depths))
        self.acceptance = nn.ModuleList(MeanMetric() for _ in range(depths))
        self.length = MeanMetric()

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.modules():
            if isinstance(metric, MeanMetric):
                metric.reset()

    def add(self, loss: Tensor, agreement: Tensor, mask: Tensor) -> None:
        """Add a batch: its loss (0-dim), and `depth_acceptance`'s arguments."""
        rows = agreement.shape[1]
        self.loss.update(loss, weight=float(rows))
        reached, accepted = depth_acceptance(agreement, mask)
        shares: Any = zip(agreement, self.agreement, self.acceptance, reached, accepted, strict=True)
        for right, of_all, of_reached, tried, passed in shares:
            of_all.update(right.float().mean(), weight=float(rows))
            of_reached.update(passed / tried.clamp(min=1), weight=tried)

    def values(self) -> dict[str, Tensor]:
        """Names and means; a depth that no chain reached is NaN. A collective call where there are ranks."""
        found = {"loss": self.loss.compute(), "acceptance_length": self.length.compute()}
        for kind, means in (("agreement", self.agreement), ("acceptance", self.acceptance)):
            for depth, mean in enumerate(means, start=1):
                found[f"{kind}_{depth}"] = mean.compute()  # type: ignore[operator]
        return found


class ChainProbe:
    """Measures greedy chains on prompts of one validation loader.

    The prompts are the sequences up to their first scored token (where nothing stands before that, their first half).
    The base answers them once; the draft is measured on those answers as often as wanted.

    Args:
        prompts: How many at most, taken evenly over the loader (which may be sorted by length).
        max_new_tokens: Limit of the base's answers.
        chain: Draft tokens per step.
    """

    def __init__(self, prompts: int, max_new_tokens: int, chain: int) -> None:
        """Start without prompts."""
        self.prompts, self.max_new_tokens, self.chain = prompts, max_new_tokens, chain
        self._candidates: list[Tensor] = []
        self._answers: list[KnownAnswer] | None = None

    def collect(self, batch: TokenBatch) -> None:
        """Note the prompts of a batch, until the answers are known."""
        if self._answers is not None:
            return
        for ids, mask, labels in zip(
            batch.input_ids.cpu(), batch.attention_mask.cpu(), batch.labels.cpu(), strict=True
        ):
            length = int(mask.sum())
            scored = (labels[:length] != IGNORE).nonzero()
            first = int(scored[0, 0]) if len(scored) else 0
            self._candidates.append(ids[: first if first > 1 else max(1, length // 2)])

    def measure(self, base: FrozenBase, draft: DraftModel, scorer: DraftScorer, stop_ids: Collection[int]) -> Tensor:
        """Accepted + 1 of every step, ``[n]`` float32; the last step of an answer is counted in full."""
        if self._answers is None:
            count = min(self.prompts, len(self._candidates))
            chosen = [self._candidates[i * len(self._candidates) // count] for i in range(count)]
            self._answers = known_answers(base.decoder, chosen, self.max_new_tokens, stop_ids, self.chain)
            self._candidates = []
        steps = chain_acceptance(draft, scorer.logits, self._answers, self.chain, scorer.ids)
        return torch.tensor([float(accepted + 1) for row in steps for accepted in row], dtype=torch.float32)
