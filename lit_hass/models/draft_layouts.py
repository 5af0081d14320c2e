"""Which checkpoint is a draft of this kind, and what the others are: decided by keys and shapes, refused by name."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from lit_hass.errors import UserError

_Named = TypeVar("_Named")
#: Shapes of tensors by their names.
Shapes = Mapping[str, Sequence[int]]
_PREFIXES = ("module.", "model.")
_LAYER = "layers.0."
_NORM = "layers.0.post_attention_layernorm.weight"
_QKV_BIASES = tuple(f"layers.0.self_attn.{name}_proj.bias" for name in "qkv")
#: Other kinds of draft by their keys; the first that fits names it.
_OTHERS = (
    (re.compile(r"(^|\.)medusa|^\d+\.\d+\.(linear\.)?weight"), "Medusa heads"),
    (re.compile(r"(^|\.)(eh_proj|enorm|hnorm|shared_head|mtp\w*)(\.|$)"), "a multi-token-prediction (MTP) head"),
    (re.compile(r"block_sparse_moe|\.experts\.|\.mlp\.gate\.weight"), "a mixture-of-experts layer"),
)


def strip_prefixes(tensors: Mapping[str, _Named]) -> dict[str, _Named]:
    """Remove ``module.`` and ``model.`` in front of the names, and ``_orig_mod.`` anywhere in them.

    They are from data parallel training, or copies for servers, and from compiled modules.

    Raises:
        UserError: Two names become one.
    """
    stripped: dict[str, _Named] = {}
    for name, tensor in tensors.items():
        short = name.replace("_orig_mod.", "")
        while short.startswith(_PREFIXES):
            short = short.split(".", 1)[1]
        if short in stripped:
            raise UserError(f"{short} is there twice, with and without a prefix")
        stripped[short] = tensor
    return stripped


def refuse_config(content: Mapping[str, Any]) -> None:
    """Refuse what the configuration alone shows to be another kind of draft.

    Raises:
        UserError: Names the kind and the key.
    """
    names = " ".join(str(name) for name in content.get("architectures") or ())
    for key in content:
        if key.startswith(("speculators_", "verifier_")):
            raise UserError(f"{key} in config.json: a draft in the speculators format, which is not supported")
        if key.startswith("medusa"):
            raise UserError(f"{key} in config.json: Medusa heads, another kind of draft")
        if key.startswith("num_nextn_predict"):
            raise UserError(f"{key} in config.json: a multi-token-prediction (MTP) head, another kind of draft")
    if "draft_vocab_size" in content or "eagle3" in names.lower():
        why = "draft_vocab_size" if "draft_vocab_size" in content else f"architectures {names}"
        raise UserError(f"EAGLE-3, another model: {why} in config.json")


def refuse_layout(tensors: Shapes) -> None:
    """Refuse what the names and shapes show to be another kind of draft.

    Raises:
        UserError: Names the kind and the key.
    """
    eagle3 = _eagle3_sign(tensors)
    if eagle3 is not None:
        raise UserError(f"EAGLE-3, another model: {eagle3}")
    for pattern, kind in _OTHERS:
        found = next((key for key in tensors if pattern.search(key)), None)
        if found is not None:
            raise UserError(f"{found}: {kind}, another kind of draft")
    _refuse_language_model(tensors)
    layers = sorted({int(m[1]) for m in (re.match(r"layers\.(\d+)\.", key) for key in tensors) if m})
    if layers and layers[-1] > 0:
        lacking = [f"layers.{i}.input_layernorm.weight" for i in layers if i > 0]
        lacking = [key for key in lacking if key not in tensors]
        if lacking:
            raise UserError(f"{len(layers)} layers, and the later ones lack {', '.join(lacking)}")
        raise UserError(f"{len(layers)} layers; a HASS draft has one, and its context alignment allows no more")
    norm = next((key for key in tensors if "norm" in key and key != _NORM), None)
    if norm is not None:
        raise UserError(f"{norm}: a norm that drafts of EAGLE-1, EAGLE-2 and HASS do not have")


def _refuse_language_model(tensors: Shapes) -> None:
    """Refuse a model that predicts tokens by itself: it has a first norm, a last one, and no ``fc``."""
    norms = ("layers.0.input_layernorm.weight", "norm.weight")
    if "fc.weight" in tensors or not all(name in tensors for name in norms):
        return
    layers = len({m[1] for m in (re.match(r"layers\.(\d+)\.", key) for key in tensors) if m})
    raise UserError(
        f"a whole language model of {layers} {'layer' if layers == 1 else 'layers'}, not a draft head: it has "
        f"{norms[1]} and no fc.weight, so it does not read the base's features"
    )


def _eagle3_sign(tensors: Shapes) -> str | None:
    """What shows an EAGLE-3 checkpoint, or None."""
    key = next((key for key in tensors if key.startswith("midlayer.") or key in ("d2t", "t2d")), None)
    if key is not None:
        return key
    fc, query = tensors.get("fc.weight"), tensors.get(f"{_LAYER}self_attn.q_proj.weight")
    if fc is not None and len(fc) == 2 and fc[1] == 3 * fc[0]:
        return f"fc.weight is {list(fc)}, over three features"
    if fc is not None and query is not None and len(query) == 2 and query[1] == 2 * fc[0]:
        return f"{_LAYER}self_attn.q_proj.weight is {list(query)}, over embedding and feature"
    return None


def has_qkv_bias(keys: Collection[str]) -> bool:
    """Whether the projections have biases (all three or none; the check of keys finds any that is missing)."""
    return any(key in keys for key in _QKV_BIASES)


def check_keys(tensors: Shapes, expected: Shapes) -> None:
    """Compare names and shapes with those of the model that the configuration describes.

    Raises:
        UserError: Lists the missing and unexpected names, or the shapes that differ.
    """
    missing, unexpected = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
    if missing or unexpected:
        parts = [f"{what} {', '.join(keys)}" for what, keys in (("lacks", missing), ("has", unexpected)) if keys]
        kind = "" if len(missing) < len(expected) // 2 else " (so it is no draft of EAGLE-1, EAGLE-2 or HASS)"
        raise UserError(f"not the keys of a draft: {' and '.join(parts)}{kind}")
    wrong = [
        f"{key} is {list(tensors[key])} instead of {list(shape)}"
        for key, shape in sorted(expected.items())
        if list(tensors[key]) != list(shape)
    ]
    if wrong:
        raise UserError(f"weights and config.json disagree: {'; '.join(wrong)}")
