"""The forward of last resort: any causal model, by forwards over whole sequences and without a cache."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding.forward import BaseForward, KVCache
from lit_hass.decoding.hf_forward import HFForward


class WholeCache(KVCache):
    """The tokens of each row so far; nothing that was computed from them is kept."""

    def __init__(self, batch: int) -> None:
        """Start empty."""
        self.rows: list[Tensor] = [torch.zeros(0, dtype=torch.long)] * batch

    @property
    def lengths(self) -> list[int]:  # type: ignore[override]
        """Tokens of each row."""
        return [len(row) for row in self.rows]

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        self.rows = [self.rows[row] for row in rows]


class WholeForward(BaseForward):
    """Reads every row anew, by itself, for every token: right by definition, and slow (quadratic in the length)."""

    def __init__(self, model: PreTrainedModel, parts: HFForward | None) -> None:
        """Take a model, and how to take it apart.

        Args:
            model: In eval mode.
            parts: Its decoder and output layer; None where its logits cannot be had from hidden states. Then what this
                returns as hidden states are the logits, and there are no features.
        """
        super().__init__(model)
        self._parts = parts
        if parts is None:
            self.features = self.collects = False
            self.hidden_size = self.vocab_size
            self.output_device = self._read(torch.zeros(1, dtype=torch.long)).device
        else:
            self.hidden_size, self.output_device = parts.hidden_size, parts.output_device
            self.collects = parts.collects

    def new_cache(self, batch: int, capacity: int) -> WholeCache:
        """Return an empty cache; it needs no room, so ``capacity`` is not used."""
        return WholeCache(batch)

    def prefill(self, prompts: Sequence[Tensor], cache: KVCache) -> list[Tensor]:
        """Read the prompts."""
        assert isinstance(cache, WholeCache)
        cache.rows = [prompt.cpu() for prompt in prompts]
        return [self._read(row) for row in cache.rows]

    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append T tokens to every row, and read each row from its beginning."""
        assert isinstance(cache, WholeCache)
        cache.rows = [torch.cat((row, new)) for row, new in zip(cache.rows, ids.cpu(), strict=True)]
        return torch.stack([self._read(row)[-ids.shape[1] :] for row in cache.rows])

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's own logits in float32."""
        return hidden.float() if self._parts is None else self._parts.logits(hidden)

    @torch.inference_mode()
    def _read(self, row: Tensor) -> Tensor:
        """``[n, H]`` of ``[n]`` tokens."""
        ids = row[None].to(self.device)
        if self._parts is not None:
            return self._parts.states(ids)[0]
        return self.model(input_ids=ids, use_cache=False).logits[0]
