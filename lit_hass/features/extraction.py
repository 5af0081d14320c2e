"""Features of any decoder-only model, each with the token that follows it."""

from __future__ import annotations

from collections.abc import Iterable
from inspect import signature
from typing import Any, Literal
from weakref import WeakSet

import torch
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.models.decoder import find_decoder, same_order
from lit_hass.numerics import plain_numbers

#: Models whose output layer was found to read what is returned; two forwards of a few tokens tell.
_READ: WeakSet[Any] = WeakSet()


@plain_numbers()
def extract_features(
    model: Any, input_ids: Tensor, attention_mask: Tensor | None = None, layer: int = -1
) -> tuple[Tensor, Tensor]:
    """Run a model over a batch and return what its output layer reads, with the next tokens.

    Row pairs are ``hidden[:, t]`` with ``input_ids[:, t + 1]``, where the mask has both positions (the original scripts
    asked for the second alone, which lets one row of padding in under left padding); padded rows get the positions that
    they have without padding. The model runs as it is set up (call ``eval()`` before), without gradients; the logits
    of the whole batch are never computed.

    Args:
        model: a decoder-only `transformers` model, or an EAGLE-style wrapper around one (``base_model.model``).
        input_ids: ``[B, L]`` int64.
        attention_mask: ``[B, L]``, 1 or True for real tokens; None: all of them.
        layer: -1 for the last hidden states behind the final norm. Others as `transformers` counts ``hidden_states``
            (0 is the embeddings); of those no output layer reads, so measure them without a classifier.

    Returns:
        Features ``[n, d]`` in the model's dtype and token ids ``[n]`` int64, on its device, row by row of the batch.

    Raises:
        TypeError: the model is an encoder-decoder, or what was found has not the output layer's input width.
        ValueError: shapes that do not fit.
        UserError: no such layer, or an output layer that does not read the last hidden states as they are.
    """
    if input_ids.ndim != 2 or (attention_mask is not None and attention_mask.shape != input_ids.shape):
        shape = None if attention_mask is None else tuple(attention_mask.shape)
        raise ValueError(f"input_ids and attention_mask must be [B, L], got {tuple(input_ids.shape)} and {shape}")
    causal = _causal_model(model)
    if getattr(getattr(causal, "config", None), "is_encoder_decoder", False):
        raise TypeError(
            f"{type(causal).__name__} is an encoder-decoder: its output layer reads no features of the input"
        )
    decoder = causal.get_decoder() if hasattr(causal, "get_decoder") else causal.base_model
    if decoder is causal and causal.get_output_embeddings() is not None:  # it names a part that it does not have
        decoder = find_decoder(causal)[1]
    if layer == -1 and causal not in _READ:
        _check_read(causal, decoder)
        _READ.add(causal)
    device = causal.get_input_embeddings().weight.device
    ids = input_ids.to(device)
    real = torch.ones_like(ids, dtype=torch.bool) if attention_mask is None else attention_mask.to(device).bool()
    with torch.no_grad():
        output = decoder(
            input_ids=ids,
            attention_mask=real.long(),
            use_cache=False,
            output_hidden_states=layer != -1,
            return_dict=True,
            **_positions(decoder, real),
        )
    hidden = output.last_hidden_state if layer == -1 else _layer(output.hidden_states, layer)
    pairs = (real[:, 1:] & real[:, :-1]).to(hidden.device)
    return hidden[:, :-1][pairs], ids[:, 1:].to(hidden.device)[pairs]


def _check_read(causal: Any, decoder: Any) -> None:
    """Refuse a model whose output layer reads something else than the decoder's last hidden states."""
    name, embeddings = type(causal).__name__, causal.get_input_embeddings()
    ids = torch.arange(4, device=embeddings.weight.device)[None] % embeddings.weight.shape[0]
    head: Any = causal.get_output_embeddings()
    with torch.no_grad():
        hidden = decoder(input_ids=ids, use_cache=False, return_dict=True).last_hidden_state
        if head is None or hidden.shape[-1] != head.weight.shape[1]:
            width = "no output layer" if head is None else f"an output layer that reads {head.weight.shape[1]}"
            raise TypeError(f"{name}: found features of width {hidden.shape[-1]} and {width}")
        logits = causal(input_ids=ids, use_cache=False).logits
        ours = head(hidden)
    if ours.shape != logits.shape or not same_order(ours, logits):
        why = "it is in training mode, so call eval()" if causal.training else "measure other layers with layer=N"
        raise UserError(
            f"{name}: no features can be collected, as its output layer does not read its last hidden states; {why}"
        )


def _positions(decoder: Any, real: Tensor) -> dict[str, Tensor]:
    """Positions by real tokens: behind padding on the left a model would count the padding too."""
    if not bool((real[:, 1:] & ~real[:, :-1]).any()) or "position_ids" not in signature(decoder.forward).parameters:
        return {}
    return {"position_ids": (real.long().cumsum(1) - 1).clamp(min=0)}


def _causal_model(model: Any) -> Any:
    """The causal language model: an EAGLE-style wrapper holds it as ``base_model``."""
    inner = getattr(model, "base_model", None)
    # Every transformers model has a base_model; only in a wrapper is that one a model with an output layer of its own.
    if inner is not None and inner is not model and hasattr(inner, "lm_head"):
        return inner
    if not hasattr(model, "get_output_embeddings"):
        raise TypeError(f"{type(model).__name__} is no transformers model")
    return model


def _layer(hidden_states: tuple[Tensor, ...], layer: int) -> Tensor:
    if not -len(hidden_states) <= layer < len(hidden_states):
        raise UserError(f"there is no layer {layer}: the model has {len(hidden_states)} hidden states")
    return hidden_states[layer]


def special_ids(tokenizer: Any, which: Literal["all", "eos_pad"] | Iterable[int] = "all") -> tuple[int, ...]:
    """Return the ids of special tokens.

    Args:
        tokenizer: of `transformers`.
        which: ``"all"`` is ``all_special_ids`` and every added token that is marked as special (ends of turns are
            often among the latter only); ``"eos_pad"`` the original scripts' choice; or ids, as they are.

    Returns:
        Each once, ascending.
    """
    if which == "eos_pad":
        found = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    elif which == "all":
        added = getattr(tokenizer, "added_tokens_decoder", {})
        found = [*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)]
    else:
        found = list(which)  # type: ignore[arg-type]
    return tuple(sorted({int(i) for i in found if i is not None}))
