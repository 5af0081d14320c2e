"""Negative log-likelihoods of a batch of windows, without ever holding the logits of a whole sequence."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.data.perplexity_plan import WindowBatch
from lit_hass.decoding.select_forward import take_apart
from lit_hass.metrics.perplexity import token_nll
from lit_hass.numerics import plain_numbers

log = logging.getLogger(__name__)

# Numbers in one piece of logits. On a CPU more rows spare repacking the output layer's weights, until the piece leaves
# the last cache; on a GPU so many keep it busy.
_CPU_NUMBERS, _GPU_NUMBERS = 2**23, 2**26
#: Tokens of the first window on which both ways are compared.
_PROBE = 64


@dataclass(frozen=True)
class ScoredWindows:
    """What a batch gave.

    Attributes:
        nll: ``[N]`` float32, nats, in the order of the batch's targets.
        hidden: ``[N, H]``, what the output layer read for each; None where the model cannot be taken apart.
    """

    nll: Tensor
    hidden: Tensor | None


class WindowScorer:
    """Scores windows with any decoder-only model, in the dtype of its weights; usable without a Trainer.

    The model's own decoder reads the windows, without a mask (no scored token sees the padding), and its output layer
    reads the scored rows only, a piece at a time, with whatever the model does behind it (scaling, soft caps). Where
    that does not reproduce the model's own logits, the model is called as a whole, a window at a time, and the log says
    so.

    Args:
        model: in eval mode.
        rows: rows of logits that exist at a time; None chooses by vocabulary and device.
    """

    @plain_numbers()
    def __init__(self, model: PreTrainedModel, rows: int | None = None) -> None:
        self.model = model
        self._verified, self._width = False, 0
        self._head: Callable[[Tensor], Tensor] | None = None
        self._parts, reason = take_apart(model)
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        vocabulary = int(model.config.get_text_config().vocab_size)
        if self._parts is None:
            log.warning("%s; each window's logits are made by the whole model", reason)
        else:
            self._head = self._parts.logits
            vocabulary, self._width = self._parts.vocab_size, self._parts.hidden_size
        numbers = _CPU_NUMBERS if model.device.type == "cpu" else _GPU_NUMBERS
        self.rows = rows or max(16, numbers // vocabulary // 16 * 16)

    @property
    def takes_apart(self) -> bool:
        """Whether hidden states can be had that the output layer reads."""
        return self._head is not None and self._parts is not None and self._parts.collects

    @plain_numbers()
    @torch.inference_mode()
    def __call__(self, batch: WindowBatch) -> ScoredWindows:
        """Score a batch that is on the model's device; one without windows gives nothing."""
        if not batch.lengths:
            nothing = torch.zeros(0, self._width, dtype=self.model.dtype, device=self.model.device)
            return ScoredWindows(torch.zeros(0, device=self.model.device), None if self._head is None else nothing)
        if not self._verified:
            self._verify(batch)
            self._verified = True
        if self._head is None or self._parts is None:
            return ScoredWindows(self._whole(batch), None)
        hidden = self._parts.states(batch.input_ids)
        chosen = hidden.reshape(-1, hidden.shape[-1])[batch.positions.to(hidden.device)]
        del hidden
        return ScoredWindows(token_nll(chosen, self._head, batch.targets.to(chosen.device), self.rows), chosen)

    def _whole(self, batch: WindowBatch) -> Tensor:
        found = []
        for row, length in enumerate(batch.lengths):
            mine = batch.owners == row
            places = batch.positions[mine] - row * batch.input_ids.shape[1]
            ids = batch.input_ids[row : row + 1, :length]
            if self._keeps:
                logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
            else:
                logits = self.model(input_ids=ids, use_cache=False).logits[0, places]
            targets = batch.targets[mine].to(logits.device)
            found.append(token_nll(logits, lambda piece: piece.float().clone(), targets, self.rows))
        return torch.cat(found)

    def _verify(self, batch: WindowBatch) -> None:
        """Compare both ways on the beginning of the first window, and choose the whole model where they disagree."""
        if self._head is None or self._parts is None:
            return
        ids = batch.input_ids[:1, : min(batch.lengths[0], _PROBE)]
        whole = self.model(input_ids=ids, use_cache=False).logits[0].float()
        parts = self._head(self._parts.states(ids)[0]).to(whole.device)
        half = self.model.dtype in (torch.float16, torch.bfloat16)
        scale = whole.abs().max().clamp(min=1e-30)
        difference = float((parts - whole).abs().max() / scale) if parts.shape == whole.shape else float("inf")
        # Not finite in both ways is no disagreement; the run names such a window.
        if difference > (1e-2 if half else 1e-5):
            log.warning(
                "%s: output layer and model disagree by %.1e of the largest logit; each window's logits are made by "
                "the whole model, which takes more memory",
                type(self.model).__name__, difference,
            )  # fmt: skip
            self._head = None
