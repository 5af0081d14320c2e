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


class HFCache(KVCache):
    """A ``DynamicCache`` and which of its columns hold real tokens.

    Rows end in the same column (padding is on the left, as in ``generate``), so that windows that ``transformers``
    counts in columns are right in tokens too.
    """

    def __init__(self, cache: DynamicCache, batch: int) -> None:
        """Wrap an empty cache."""
        self.cache = cache
        self.lengths = [0] * batch
        self.valid: Tensor | None = None  # [B, columns + 1] int64, 0 = padding; None when there is none

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows; the padding that only dropped rows needed stays masked."""
        self.lengths = [self.lengths[row] for row in rows]
        # On the CPU: such an index works for layers on any devices.
        self.cache.batch_select_indices(torch.tensor(list(rows)))
        if self.valid is not None:
            self.valid = self.valid[torch.tensor(list(rows), device=self.valid.device)]
            if bool(self.valid.all()):
                self.valid = None


class HFForward(BaseForward):
    """Any decoder-only model, called as it is."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find how to call the decoder and its output layer.

        Raises:
            UserError: The logits cannot be computed from the last hidden state.
        """
        super().__init__(model)
        self._decoder = model.base_model
        parameters = inspect.signature(self._decoder.forward).parameters
        self._takes_positions = "position_ids" in parameters
        self._head = self._find_head()

    def new_cache(self, batch: int, capacity: int) -> HFCache:
        """Return an empty cache; it grows as needed, so ``capacity`` is not used."""
        return HFCache(DynamicCache(config=self.model.config), batch)

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
        output = self._decoder(input_ids=ids, past_key_values=cache.cache, use_cache=True, **kwargs)
        cache.lengths = [length + count for length in lengths]
        return output.last_hidden_state

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
            heads: list[Any] = [head for head in (self.model.get_output_embeddings(), _OwnHead(self.model)) if head]
            # In half precision a tolerance does not notice a soft cap: the output layer alone must give the same bits.
            for allowed, order in ((0.0, heads), (16 * torch.finfo(expected_dtype).eps, heads[::-1])):
                for head in order:
                    if hidden.shape[-1] == self.hidden_size and _agree(head(hidden), expected, allowed):
                        return head
        raise UserError(
            f"{type(self.model).__name__}: its logits cannot be reproduced from its last hidden state, "
            "so this kind of model cannot be decoded here"
        )


def _agree(logits: Tensor, expected: Tensor, allowed: float) -> bool:
    if logits.shape != expected.shape:
        return False
    scale = expected.abs().max().clamp(min=1e-30)
    return bool((logits.float() - expected).abs().max() <= allowed * scale)


class _GivenStates(nn.Module):
    """Stands in for the decoder and returns the hidden states it is given as embeddings."""

    def forward(self, inputs_embeds: Tensor, **unused: Any) -> BaseModelOutputWithPastAndCrossAttentions:
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=inputs_embeds)


class _OwnHead:
    """Everything that a model does after its decoder (output layer, scaling, soft caps), by its own code.

    A shallow copy of the model shares its weights and gets another decoder; the model itself is not touched.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = copy.copy(model)
        self._model.__dict__["_modules"] = dict(model._modules)
        self._model._modules[model.base_model_prefix] = _GivenStates()
        for hook in ("forward", "_old_forward", "_hf_hook"):  # bound to the original by accelerate, if at all
            self._model.__dict__.pop(hook, None)

    def __call__(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        logits = self._model(inputs_embeds=flat, use_cache=False).logits
        return logits.view(*hidden.shape[:-1], logits.shape[-1])
