"""The base as the training of a draft sees it: features, output layer and greedy answers, never trained."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.decoding import AutoregressiveDecoder, make_forward


class FrozenBase:
    """A base model without gradients.

    Not a torch module, on purpose: as a plain attribute of a LightningModule it stays out of checkpoints, optimizers
    and DDP.

    Args:
        model: In eval mode.

    Attributes:
        model: The same.
        decoder: Decodes it, with the forward of all decoders.

    Raises:
        UserError: Its logits cannot be computed from its last hidden state, or it cannot be decoded.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Choose the forward."""
        self.model = model.requires_grad_(False)
        self._forward = make_forward(model)
        self.decoder = AutoregressiveDecoder(self._forward)
        self.vocab_size = self._forward.vocab_size

    @torch.no_grad()
    def features(self, input_ids: Tensor) -> Tensor:
        """``[B, L, H]`` hidden states after the final norm of ``[B, L]`` ids, padded on the right.

        The pads need no mask: no token before them sees them, and nobody reads their features.
        """
        return self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state

    def head(self, rows: Tensor) -> Tensor:
        """The base's own logits ``[..., V]`` of ``[..., H]`` in float32, differentiable by the rows."""
        return self._forward.logits(rows.to(self._forward.dtype))
