"""The base as the training of a draft sees it: features, output layer and greedy answers, never trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding import AutoregressiveDecoder, make_forward
from lit_hass.decoding.select_draft import DraftScorer
from lit_hass.errors import UserError
from lit_hass.models import DraftModel, find_decoder
from lit_hass.modules.feature_cache import FeatureCache
from lit_hass.numerics import plain_numbers


class FrozenBase:
    """A base model without gradients.

    Not a torch module, on purpose: as a plain attribute of a LightningModule it stays out of checkpoints, optimizers
    and DDP.

    Args:
        model: In eval mode.
        cache: Of this model's features, or None.

    Attributes:
        model: The same.
        cache: The same.
        decoder: Decodes it, with the forward of all decoders.

    Raises:
        UserError: Its logits cannot be computed from its last hidden state, its output layer does not read that as it
            is (BERT's has a layer before it), or it cannot be decoded.
    """

    def __init__(self, model: PreTrainedModel, cache: FeatureCache | None = None) -> None:
        """Choose the forward."""
        self.model = model.requires_grad_(False)
        self.cache = cache
        self._forward = make_forward(model)
        if not self._forward.features:
            raise UserError(f"{type(model).__name__}: its logits are not to be had from its last hidden state")
        if not self._forward.collects:
            raise UserError(
                f"{type(model).__name__}: no draft can be trained for it, as its output layer does not read its last "
                "hidden states, which are the features that a draft predicts"
            )
        self._decoder = find_decoder(model)[1]
        self.decoder = AutoregressiveDecoder(self._forward)
        self.vocab_size = self._forward.vocab_size

    @torch.no_grad()
    def features(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """``[B, L, H]`` hidden states after the final norm of ``[B, L]`` ids, padded on the right.

        In the base's own dtype, as decoding gives them, whatever precision the training around it has.

        The pads need no mask: no token before them sees them, and nobody reads their features.

        With a cache and ``lengths``, ``[B]`` tokens of each sequence, those that it has are read, and the others are
        computed in one forward of their own and added. A batch that it has none of is computed as without it, to the
        bit. One that it has some of is not: a forward over fewer rows, or other pads, rounds differently (by about 1e-6
        in float32). Nor is what is read what another batch of the same sequences would have given.
        """
        if self.cache is None or lengths is None:
            return self._compute(input_ids)
        rows = [ids[:length] for ids, length in zip(input_ids.cpu(), lengths.tolist(), strict=True)]
        found = {i: states for i, row in enumerate(rows) if (states := self.cache.get(row)) is not None}
        missing = [i for i in range(len(rows)) if i not in found]
        if missing:
            whole = len(missing) == len(rows)
            width = max(len(rows[i]) for i in missing)
            computed = self._compute(input_ids if whole else input_ids[missing, :width])
            for i, states in zip(missing, computed, strict=True):
                found[i] = states[: len(rows[i])]
                self.cache.add(rows[i], found[i])
            if whole:
                return computed
        shape = (*input_ids.shape, self._forward.hidden_size)
        result = torch.zeros(shape, dtype=self._forward.dtype, device=input_ids.device)
        for i, states in found.items():
            result[i, : len(states)] = states
        return result

    @plain_numbers()
    def _compute(self, input_ids: Tensor) -> Tensor:
        return self._decoder(input_ids=input_ids, use_cache=False).last_hidden_state

    def scorer(self, draft: DraftModel) -> DraftScorer:
        """The base's logits of the tokens that a draft scores, as `head` gives those of all."""
        found = DraftScorer.of(self._forward, draft)
        return DraftScorer(lambda rows: self._logits(found.logits, rows), found.ids)

    def head(self, rows: Tensor) -> Tensor:
        """The base's own logits ``[..., V]`` of ``[..., H]`` in float32, differentiable by the rows.

        Where no gradient is asked for (targets, the base's choices, all of validation) they are computed in the base's
        own dtype, whatever precision the training around it has. Where one is, for the rows that a draft predicts while
        it trains, the product is autocast as the training's others are: ``train/agreement`` compares such logits with
        the base's own.
        """
        return self._logits(self._forward.logits, rows)

    def _logits(self, head: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        rows = rows.to(self._forward.dtype)
        if torch.is_grad_enabled():
            return head(rows)
        with plain_numbers():
            return head(rows)
