"""Drafts for tests: random, good, spoilt by noise, and one that asks the base itself."""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

import lit_hass
from lit_hass.decoding.draft_forward import DraftForward
from lit_hass.models import DraftModel, context_length, load_draft


def random_draft(base: PreTrainedModel, seed: int = 1) -> DraftModel:
    """A fresh draft in eval mode."""
    torch.manual_seed(seed)
    return DraftModel.from_base(base).eval().requires_grad_(False)


def shipped_draft(base: PreTrainedModel) -> DraftModel | None:
    """The trained draft of the shipped base, where there is one."""
    folder = Path(lit_hass.__file__).parent / "pretrained/html_to_tsv/draft"
    return load_draft("html_to_tsv", base) if folder.is_dir() else None


def perturbed(draft: DraftModel, strength: float, seed: int = 0) -> DraftModel:
    """A copy whose weights (not the embedding) carry Gaussian noise of ``strength`` times their own spread."""
    draft, generator = copy.deepcopy(draft), torch.Generator().manual_seed(seed)
    for name, weight in draft.named_parameters():
        if "embed" not in name:
            spread = weight.std() if weight.numel() > 1 else weight.abs().mean()
            weight.requires_grad_(False).add_(torch.randn(weight.shape, generator=generator) * spread * strength)
    return draft


class OracleCache:
    """The committed tokens of each row behind its first one, and the paths of what was drafted behind them."""

    def __init__(self, batch: int, capacity: int) -> None:
        self.capacity = capacity
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.paths: list[list[list[int]]] = [[] for _ in range(batch)]

    @property
    def lengths(self) -> list[int]:
        return [len(tokens) for tokens in self.tokens]

    @property
    def starts(self) -> Tensor:
        return torch.tensor(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        self.tokens = [self.tokens[row] for row in rows]
        self.paths = [self.paths[row] for row in rows]


class OracleDraft(DraftForward):
    """Predicts the base's own next features, plus noise that depends on the prefix only.

    It shows which prefix the decoder means: features, positions and visibility are checked against full forwards of
    the base. All prompts begin with the token ``first`` (a draft never sees a prompt's first token).
    """

    def __init__(self, base: PreTrainedModel, first: int, noise: float) -> None:
        self.base, self.first, self.noise = base, first, noise
        self.context = context_length(base.config)
        self.fed = 0

    def new_cache(self, batch: int, capacity: int) -> OracleCache:
        return OracleCache(batch, capacity)

    def feed(self, token_ids: Tensor, features: Tensor, counts: Sequence[int], cache: OracleCache) -> Tensor:
        assert max(cache.lengths) + token_ids.shape[1] <= cache.capacity
        cache.paths = [[] for _ in counts]
        for row, count in enumerate(counts):
            cache.tokens[row] += token_ids[row, :count].tolist()
            whole = self._hidden([[self.first, *cache.tokens[row]]])[0]
            torch.testing.assert_close(features[row, :count], whole[-count - 1 : -1], rtol=2e-3, atol=2e-3)
            self.fed += count
        return torch.cat([self._predict([[self.first, *tokens]]) for tokens in cache.tokens])

    def extend(self, token_ids, features, cache, offset, positions=None, visible=None) -> Tensor:  # noqa: ANN001
        count = token_ids.shape[1]
        assert max(cache.lengths) + offset + count <= cache.capacity
        output = []
        for row, committed in enumerate(cache.tokens):
            paths = cache.paths[row] = cache.paths[row][:offset]
            assert len(paths) == offset
            for node in range(count):
                seen = range(offset + node + 1)
                if visible is not None:
                    assert visible.shape == (len(cache.tokens), count, offset + count)
                    seen = visible[row, node].nonzero()[:, 0].tolist()
                    assert seen[-1] == offset + node and positions[row, node] == len(committed) + len(seen) - 1
                path = [paths[slot][-1] for slot in seen if slot < offset + node]
                # Whoever is visible is an ancestor: the paths that end there are the beginnings of this one.
                assert [paths[slot] for slot in seen[:-1]] == [path[: i + 1] for i in range(len(path))]
                paths.append([*path, int(token_ids[row, node])])
            level = [[self.first, *committed, *path] for path in paths[offset:]]
            output.append(self._predict(level))
        return torch.stack(output)

    def _hidden(self, sequences: list[list[int]]) -> Tensor:
        return self.base.base_model(input_ids=torch.tensor(sequences), use_cache=False).last_hidden_state

    def _predict(self, sequences: list[list[int]]) -> Tensor:
        # A draft may look beyond the end of the context, the base may not.
        hidden = self._hidden([sequence[: self.context] for sequence in sequences])[:, -1]
        spread = hidden.float().pow(2).mean().sqrt()
        for row, sequence in zip(hidden, sequences, strict=True):
            generator = torch.Generator().manual_seed(hash(tuple(sequence)) % 2**31)
            row += self.noise * spread * torch.randn(row.shape, generator=generator).to(row.dtype)
        return hidden
