"""The forward of any decoder-only ``transformers`` model, through the model's own code."""

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from lit_hass.decoding.forward import BaseForward, KVCache
from lit_hass.errors import UserError
from lit_hass.models.decoder import find_decoder, same_order


class HFCache(KVCache):
    """A cache of ``transformers`` and which of its columns hold real tokens.

    Rows end in the same column (padding is on the left, as in ``generate``), so that windows that ``transformers``
    counts in columns are right in tokens too.
    """

    def __init__(self, cache: Any, batch: int) -> None:
        """Wrap an empty cache; None leaves it to the model to make one of its own kind."""
        self.cache = cache
        self.lengths = [0] * batch
        self.valid: Tensor | None = None  # [B, columns + 1] int64, 0 = padding; None when there is none

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows; the padding that only dropped rows needed stays masked."""
        self.lengths = [self.lengths[row] for row in rows]
        # What beam search calls: it takes fewer rows, too. `batch_select_indices` forgets recurrent states.
        self.cache.reorder_cache(torch.tensor(list(rows)))
        if self.valid is not None:
            self.valid = self.valid[torch.tensor(list(rows), device=self.valid.device)]
            if bool(self.valid.all()):
                self.valid = None


class HFForward(BaseForward):
    """Any decoder-only model, called as it is."""

    def __init__(self, model: PreTrainedModel, positions: bool = True, own_cache: bool = False) -> None:
        """Find how to call the decoder and its output layer.

        Args:
            model: In eval mode.
            positions: Tell the model where tokens stand, if it asks for that. Some families count otherwise than from 0
                (RoBERTa begins behind its padding id) and must do it themselves; then rows of a batch are to be of one
                length.
            own_cache: Let the model make its cache instead of giving it a ``DynamicCache`` (MiniMax takes no other).

        Raises:
            UserError: The logits cannot be computed from the last hidden state.
        """
        super().__init__(model)
        self._name, self._decoder = find_decoder(model)
        parameters = inspect.signature(self._decoder.forward).parameters
        self._takes_positions = positions and "position_ids" in parameters
        # Mamba's name for it; most others would take it, too, and ignore it.
        other = "cache_params" in parameters and "past_key_values" not in parameters
        self._own_cache, self._cache_name = own_cache, "cache_params" if other else "past_key_values"
        self._head = self._find_head()

    def new_cache(self, batch: int, capacity: int) -> HFCache:
        """Return an empty cache; it grows as needed, so ``capacity`` is not used."""
        return HFCache(None if self._own_cache else DynamicCache(config=self.model.config), batch)

    def states(self, ids: Tensor) -> Tensor:
        """Hidden states ``[B, L, H]`` of whole sequences ``[B, L]``, without a cache, on ``output_device``."""
        return self._decoder(input_ids=ids, use_cache=False).last_hidden_state.to(self.output_device)

    def prefill(self, prompts: Sequence[Tensor], cache: KVCache) -> list[Tensor]:
        """Feed the prompts, padded on the left."""
        assert isinstance(cache, HFCache)
        lengths = [len(prompt) for prompt in prompts]
        longest = max(lengths)
        ids = torch.zeros(len(prompts), longest, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = prompt
        if min(lengths) < longest:
            start = longest - torch.tensor(lengths)[:, None]
            cache.valid = (torch.arange(longest) >= start).long().to(self.device)
        hidden = self.extend(ids.to(self.device), cache, _lengths=[length - longest for length in lengths])
        return [row[longest - length :] for row, length in zip(hidden, lengths, strict=True)]

    def extend(self, ids: Tensor, cache: KVCache, _lengths: list[int] | None = None) -> Tensor:
        """Append T tokens to every row."""
        assert isinstance(cache, HFCache)
        lengths = cache.lengths if _lengths is None else _lengths
        count = ids.shape[1]
        kwargs: dict[str, Any] = {}
        if cache.valid is not None:
            if _lengths is None:
                cache.valid = torch.cat((cache.valid, cache.valid.new_ones(ids.shape)), dim=1)
            kwargs["attention_mask"] = cache.valid
        if self._takes_positions:
            steps = torch.arange(count, device=ids.device)
            if min(lengths) == max(lengths):
                kwargs["position_ids"] = (steps + lengths[0])[None]
            else:  # padding has negative positions, which embeddings of positions cannot look up
                starts = torch.tensor(lengths, device=ids.device)
                kwargs["position_ids"] = (starts[:, None] + steps).clamp_(min=0)
        kwargs[self._cache_name] = cache.cache
        output = self._decoder(input_ids=ids, use_cache=True, **kwargs)
        cache.cache = output[self._cache_name] if self._own_cache else cache.cache
        cache.lengths = [length + count for length in lengths]
        return output.last_hidden_state.to(self.output_device)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's own logits in float32."""
        return self._head(hidden).float()

    def logits_of(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Take the output layer's rows of these tokens, where the logits are its plain product."""
        head = self._head
        if type(head) is not nn.Linear or head.weight.device.type == "meta":
            return super().logits_of(ids)
        weight = head.weight.detach()[ids.to(head.weight.device)]
        bias = None if head.bias is None else head.bias.detach()[ids.to(weight.device)]
        return lambda hidden: F.linear(hidden, weight, bias).float()

    def _find_head(self) -> Any:
        """Choose the cheapest way from hidden states to logits that reproduces the model's own."""
        ids = torch.arange(4, device=self.device)[None] % self.embedding_size
        with torch.inference_mode():
            logits = self.model(input_ids=ids, use_cache=False).logits
            expected_dtype, expected = logits.dtype, logits.float()
            hidden = self._decoder(input_ids=ids, use_cache=False).last_hidden_state
            self.hidden_size = hidden.shape[-1]
            heads: list[Any] = [_OwnHead(self.model, self._name)]
            layer: Any = self.model.get_output_embeddings()
            if layer is not None and layer.weight.shape[1] == self.hidden_size:
                heads.insert(0, layer)
            # In half precision a tolerance does not notice a soft cap: the output layer alone must give the same bits.
            for allowed, order in ((0.0, heads), (16 * torch.finfo(expected_dtype).eps, heads[::-1])):
                for head in order:
                    found = head(hidden)
                    if _agree(found, expected, allowed):
                        self.output_device = found.device
                        # A scale or a cap leaves the order of the logits; a layer in between (BERT's) does not.
                        self.collects = len(heads) == 2 and (head is layer or same_order(layer(hidden), found))
                        return head
        raise UserError(
            f"{type(self.model).__name__}: its logits cannot be reproduced from its last hidden state, "
            "so this kind of model cannot be decoded here"
        )


def _agree(logits: Tensor, expected: Tensor, allowed: float) -> bool:
    if logits.shape != expected.shape:
        return False
    expected = expected.to(logits.device)  # a model that is spread over devices gives them back where the ids are
    scale = expected.abs().max().clamp(min=1e-30)
    return bool((logits.float() - expected).abs().max() <= allowed * scale)


class _States(BaseModelOutputWithPastAndCrossAttentions):
    """What a decoder returns, with nothing in all that families add to it (logits of routers, ...)."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


class _GivenStates(nn.Module):
    """Stands in for the decoder and returns the hidden states it is given as embeddings."""

    def forward(self, *ids: Any, inputs_embeds: Tensor, **unused: Any) -> _States:
        # Some models pass the ids, here None, by place.
        return _States(last_hidden_state=inputs_embeds)


class _OwnHead:
    """Everything that a model does after its decoder (output layer, scaling, soft caps), by its own code.

    A shallow copy of the model shares its weights and gets another decoder; the model itself is not touched.
    """

    def __init__(self, model: PreTrainedModel, decoder: str) -> None:
        self._model = copy.copy(model)
        self._model.__dict__["_modules"] = dict(model._modules)
        self._model._modules[decoder] = _GivenStates()
        for hook in ("forward", "_old_forward", "_hf_hook"):  # bound to the original by accelerate, if at all
            self._model.__dict__.pop(hook, None)

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        logits = self._model(inputs_embeds=flat, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], logits.shape[-1])
