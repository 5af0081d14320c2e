"""How tokens come out of a model: the shared forward, sampling, noise, and the decoders. No Lightning here.

Names are imported when first asked for: ``SamplingConfig`` or ``derive_seed`` need no transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lit_hass.decoding.autoregressive import AutoregressiveDecoder
    from lit_hass.decoding.forward import BaseForward, KVCache
    from lit_hass.decoding.generation import Generation, TokenFeatures, TokenState
    from lit_hass.decoding.noise import derive_seed, gumbel_noise
    from lit_hass.decoding.rows import Decoder
    from lit_hass.decoding.sampling import SamplingConfig, choose_tokens, process_logits
    from lit_hass.decoding.select_forward import make_forward
    from lit_hass.decoding.speculative import SpeculativeDecoder
    from lit_hass.decoding.tree_config import TreeConfig

_HOMES = {
    "AutoregressiveDecoder": "lit_hass.decoding.autoregressive",
    "BaseForward": "lit_hass.decoding.forward",
    "Decoder": "lit_hass.decoding.rows",
    "Generation": "lit_hass.decoding.generation",
    "KVCache": "lit_hass.decoding.forward",
    "SamplingConfig": "lit_hass.decoding.sampling",
    "SpeculativeDecoder": "lit_hass.decoding.speculative",
    "TokenFeatures": "lit_hass.decoding.generation",
    "TokenState": "lit_hass.decoding.generation",
    "TreeConfig": "lit_hass.decoding.tree_config",
    "choose_tokens": "lit_hass.decoding.sampling",
    "derive_seed": "lit_hass.decoding.noise",
    "gumbel_noise": "lit_hass.decoding.noise",
    "make_forward": "lit_hass.decoding.select_forward",
    "process_logits": "lit_hass.decoding.sampling",
}

__all__ = (
    "AutoregressiveDecoder",
    "BaseForward",
    "Decoder",
    "Generation",
    "KVCache",
    "SamplingConfig",
    "SpeculativeDecoder",
    "TokenFeatures",
    "TokenState",
    "TreeConfig",
    "choose_tokens",
    "derive_seed",
    "gumbel_noise",
    "make_forward",
    "process_logits",
)


def __getattr__(name: str) -> object:
    """Import a name when it is first asked for."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
