"""How many tokens a model can take."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from lit_hass.errors import UserError
from lit_hass.models.folders import load_config, resolve_base

#: Families whose positions begin behind the padding id, so that as many of the stated ones are never used.
_BEHIND_PADDING = (
    "camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod",
)  # fmt: skip


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the largest number of tokens of one sequence, or None where the configuration names none.

    This is ``max_position_embeddings`` under whatever name the family gives it (``n_positions``, ...), and more where a
    scaled rotary embedding stretches it. A rule per type, as servers have it:

    * ``linear``: the figure is of the model before scaling, and ``factor`` multiplies it (vicuna-16k: 4 times 4,096).
      Not where layers have rotary embeddings of their own: Gemma 3 states the scaled figure.
    * ``yarn``: ``factor`` times ``original_max_position_embeddings`` (Qwen2.5: 4 times 32,768), if that is more.
    * ``llama3``, ``longrope`` and all others: the figure is the scaled one already.
    * ``dynamic``: the figure, though the model runs beyond: from there on its frequencies change with each length, so
      that cached keys are of other ones, and a tree's forward would not be the token by token one.
    """
    text = config.get_text_config()
    stated = getattr(text, "max_position_embeddings", None)
    if not isinstance(stated, int) or isinstance(stated, bool) or stated < 1:
        return None
    if text.model_type in _BEHIND_PADDING:
        return max(1, stated - int(text.pad_token_id or 0) - 1)
    rope = getattr(text, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict) and "rope_type" in value]
    return max([stated, *(_stretched(one, stated, bool(nested)) for one in nested or [rope])])


def _stretched(rope: dict[str, Any], stated: int, of_a_layer: bool) -> int:
    """What one set of rotary settings makes of a stated length."""
    kind, factor = rope.get("rope_type", "default"), rope.get("factor")
    if not isinstance(factor, int | float) or not factor > 1:
        return stated
    if kind == "yarn" or kind == "linear" and not of_a_layer:
        return int((rope.get("original_max_position_embeddings") or stated) * factor)
    return stated


def check_context(config: PreTrainedConfig, wanted: int | None, option: str = "model.context") -> int | None:
    """Return the context that a run reckons with: the wanted one, or the model's own where none is given.

    Args:
        config: of the model.
        wanted: a number of tokens, or None.
        option: what the user gave it by, for the messages.

    Raises:
        UserError: It is not positive, or beyond a table of positions, behind which there is nothing to look up.
    """
    own = context_length(config)
    if wanted is None:
        return own
    if isinstance(wanted, bool) or wanted < 2:
        raise UserError(f"{option} must be at least 2, found {wanted}")
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    if own is not None and wanted > own and rope.get("rope_type") == "dynamic":
        raise UserError(
            f"{option} is {wanted}, but from {own} tokens on the frequencies of this dynamic rotary embedding "
            "change with the length, so that cached decoding is not what the model computes"
        )
    if own is not None and wanted > own and not rope:
        raise UserError(f"{option} is {wanted}, but this {config.model_type} has a table of {own} positions only")
    return wanted


def context_of_run(module: Any) -> int | None:
    """The context of a module's base, as the module (``context``) or the base's configuration says it.

    Raises:
        UserError: See `check_context`.
    """
    base = getattr(module, "base", None)
    if not isinstance(base, str):
        return None
    return check_context(load_config(resolve_base(base)), getattr(module, "context", None))
