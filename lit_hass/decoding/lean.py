"""A hand-written forward for Llama-like models: the same numbers, without the overhead per token.

Preallocated keys and values sized to the job, few operations per layer, no module calls. Row b's token at position p
lies in slot p, so prompts are padded on the right, where the causal mask hides the padding without any mask tensor,
and later tokens overwrite it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lit_hass.decoding.forward import KVCache, TreeForward
from lit_hass.decoding.lean_cache import LeanCache, Place, place_next, place_tree
from lit_hass.decoding.lean_layers import LeanLayers
from lit_hass.decoding.lean_weights import LeanWeights, RotaryTable, Stamp, arrange, is_small


class LeanForward(TreeForward):
    """Llama, Mistral, Qwen2 and Qwen3 without their sliding windows; see ``lean_weights.unsupported``."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Arrange the model's weights (copies of at most 256 MiB)."""
        super().__init__(model)
        self._arrange()

    @property
    def weights(self) -> LeanWeights:
        """The model's weights as they are arranged now."""
        return self._layers.weights

    def new_cache(self, batch: int, capacity: int) -> LeanCache:
        """Return an empty cache for up to ``capacity`` tokens per row."""
        if self._stamp.changed():  # trained or loaded into since
            self._arrange()
        w = self._layers.weights
        shape = (len(w.layers), batch, 2 * w.kv_heads, w.head_dim)
        return LeanCache(shape, capacity, self.dtype, self.device, self._rotary)

    def prefill(self, prompts: Sequence[Tensor], cache: KVCache) -> list[Tensor]:
        """Feed the prompts, padded on the right."""
        assert isinstance(cache, LeanCache)
        lengths = [len(prompt) for prompt in prompts]
        ids = pad_sequence([p.cpu() for p in prompts], batch_first=True).to(self.device)
        count = ids.shape[1]
        hidden = self._run(ids, cache, place_next(cache, count, self.dtype))
        cache.grow(lengths)
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]

    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append T tokens to every row."""
        assert isinstance(cache, LeanCache)
        count = ids.shape[1]
        hidden = self._run(ids, cache, place_next(cache, count, self.dtype))
        cache.lengths = [length + count for length in cache.lengths]
        cache.starts = cache.starts + count
        return hidden

    def verify(self, ids: Tensor, depths: Tensor, visible: Tensor, cache: KVCache) -> Tensor:
        """Feed the nodes of a tree behind the committed tokens."""
        assert isinstance(cache, LeanCache)
        positions = self.positions(depths, cache.starts)
        return self._run(ids, cache, place_tree(cache, positions, visible, self.dtype))

    def keep(self, paths: Tensor | None, counts: Sequence[int], cache: KVCache) -> None:
        """Commit one path of each row's tree."""
        assert isinstance(cache, LeanCache)
        cache.keep(paths, counts)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the output layer's logits in float32."""
        if self._head_rows is None:
            return F.linear(hidden, self._head.weight, self._head.bias).float()
        flat = hidden.reshape(-1, hidden.shape[-1])
        rows = torch.mm(flat, self._head_rows)
        return (rows if self._head.bias is None else rows + self._head.bias).view(*hidden.shape[:-1], -1).float()

    def logits_of(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Take the output layer's rows of these tokens, once."""
        with torch.inference_mode(False), torch.no_grad():
            weight = self._head.weight.detach()[ids.to(self._head.weight.device)]
            bias = None if self._head.bias is None else self._head.bias.detach()[ids.to(weight.device)]
        return lambda hidden: F.linear(hidden, weight, bias).float()

    def _arrange(self) -> None:
        self._stamp = Stamp(self.model)
        self._layers = LeanLayers(arrange(self.model))
        rotary: Any = self.model.base_model.rotary_emb
        folded = self._layers.weights.folded
        frequencies, scaling = rotary.inv_freq, rotary.attention_scaling
        self._rotary = RotaryTable(frequencies, scaling, folded, self.dtype, self.device)
        # A small output layer is stored input-major, which halves the time of a single row on a CPU.
        self._head: Any = self.model.get_output_embeddings()
        self._head_rows: Tensor | None = None
        if self.weights.folded and is_small(self._head):
            with torch.inference_mode(False), torch.no_grad():
                self._head_rows = self._head.weight.detach().t().contiguous()

    def _run(self, ids: Tensor, cache: LeanCache, place: Place) -> Tensor:
        """``[B, T, H]`` hidden states after the final norm of ``[B, T]`` new tokens."""
        w = self._layers.weights
        x = self._layers.run(F.embedding(ids.reshape(-1), w.embedding), len(ids), cache.layers, place)
        return self._layers.norm(x, w.norm).view(*ids.shape, -1)
