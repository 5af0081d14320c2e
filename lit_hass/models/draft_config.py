"""The draft's shape: read from a checkpoint's ``config.json``, or made for a base."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from transformers import LlamaConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lit_hass.errors import UserError
from lit_hass.models.cache_sizes import layer_config
from lit_hass.terminal import shorten

#: Kinds of rotary scaling that a Llama layer can have; of other bases only the base frequency is taken over.
_ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")
_DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
#: Beyond any model's sizes; buffers of such a size fill the memory before anything is compared.
_LARGEST = 2**24
_REQUIRED = ("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class DraftConfig:
    """Sizes and constants of a draft, under the names of the Llama configuration that EAGLE checkpoints carry.

    Args:
        hidden_size: Width H of the base's features and of the draft.
        intermediate_size: Width of the feed-forward layer.
        num_attention_heads: Query heads.
        num_key_value_heads: Key and value heads, a divisor of the query heads.
        head_dim: Width of one head; ``hidden_size / num_attention_heads`` in all published drafts.
        vocab_size: Rows V of the embedding, as many as the base has logits.
        max_position_embeddings: Context; decides scaled rotary embeddings.
        rms_norm_eps: Of the one norm.
        hidden_act: Activation of the feed-forward layer.
        rope_parameters: Rotary embedding, in the form of transformers 5 (``rope_type``, ``rope_theta``, ...).
        fc_bias: Whether ``fc`` has a bias (``bias`` in the file).
        qkv_bias: Whether the query, key and value projections have biases.
        token_ids: ``pad_token_id``, ``bos_token_id`` and ``eos_token_id``, kept for those who read the file.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    rope_parameters: Mapping[str, Any] = field(default_factory=lambda: dict(_DEFAULT_ROPE))
    fc_bias: bool = True
    qkv_bias: bool = False
    token_ids: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the sizes.

        Raises:
            UserError: A size is not a positive integer, or sizes do not go together.
        """
        for entry in dataclasses.fields(self):
            if entry.type == "int":
                value = getattr(self, entry.name)
                if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                    raise UserError(f"draft: {entry.name} must be a positive integer, found {shorten(repr(value))}")
                if value > _LARGEST:
                    raise UserError(f"draft: {entry.name} must be at most {_LARGEST}, found {shorten(repr(value))}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise UserError(
                f"draft: {self.num_attention_heads} query heads cannot share {self.num_key_value_heads} key heads"
            )
        if not isinstance(self.hidden_act, str) or self.hidden_act not in ACT2FN:
            raise UserError(
                f"draft: hidden_act {self.hidden_act!r} is unknown to transformers {transformers.__version__} "
                "(SwiGLU's is 'silu'): correct it in config.json"
            )
        if self.head_dim % 2:
            raise UserError(f"draft: a head of width {self.head_dim} is odd, which the rotary embedding cannot turn")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> DraftConfig:
        """Read the content of a checkpoint's ``config.json``.

        Absent keys take the values of the published code: as many key as query heads, epsilon 1e-6, ``rope_theta``
        10000, ``bias`` true. Rotary settings are read in the form of transformers 4 and 5.

        Raises:
            UserError: A key that nobody can guess is missing, or a value cannot be used.
        """
        missing = [key for key in _REQUIRED if content.get(key) is None]
        if missing:
            raise UserError(f"config.json lacks {', '.join(missing)}")
        heads = content["num_attention_heads"]
        for key in ("hidden_size", "num_attention_heads"):
            if not isinstance(content[key], int) or content[key] < 1:
                raise UserError(f"config.json: {key} must be a positive integer, found {content[key]!r}")
        head_dim = content.get("head_dim")
        if head_dim is None:
            head_dim, rest = divmod(content["hidden_size"], heads)
            if rest:
                raise UserError(f"config.json: hidden_size {content['hidden_size']} is no multiple of {heads} heads")
        kv_heads = content.get("num_key_value_heads")
        eps = content.get("rms_norm_eps")
        if eps is not None and (isinstance(eps, bool) or not isinstance(eps, int | float)):
            raise UserError(f"config.json: rms_norm_eps must be a number, found {eps!r}")
        return cls(
            hidden_size=content["hidden_size"],
            intermediate_size=content["intermediate_size"],
            num_attention_heads=heads,
            num_key_value_heads=heads if kv_heads is None else kv_heads,
            head_dim=head_dim,
            vocab_size=content["vocab_size"],
            max_position_embeddings=content.get("max_position_embeddings") or 2048,
            rms_norm_eps=1e-6 if eps is None else float(eps),
            hidden_act=content.get("hidden_act") or "silu",
            rope_parameters=_read_rope(content),
            fc_bias=bool(content.get("bias", True)),
            qkv_bias=bool(content.get("qkv_bias", False)),
            token_ids={k: content.get(k) for k in ("pad_token_id", "bos_token_id", "eos_token_id")},
        )

    @classmethod
    def from_base(cls, base: PreTrainedModel, **overrides: Any) -> DraftConfig:
        """Make the configuration of a draft that is one layer of the base's kind.

        Args:
            base: Its output layer decides H and V, its configuration the rest.
            **overrides: Fields of this class that shall differ, such as ``intermediate_size``.

        Raises:
            UserError: The base's embedding is not as wide as its features, it has no attention, or an override cannot
                be used.
        """
        config = layer_config(base.config.get_text_config(), 0)
        width, vocab = base_sizes(base)
        heads = getattr(config, "num_attention_heads", None)
        if not isinstance(heads, int):
            raise UserError(f"{type(base).__name__} has no attention heads to copy: a draft is an attention layer")
        inner = getattr(config, "intermediate_size", None)
        values: dict[str, Any] = {
            "hidden_size": width,
            # Some families have one width for each layer.
            "intermediate_size": inner if isinstance(inner, int) else 4 * width,
            "num_attention_heads": heads,
            "num_key_value_heads": int(getattr(config, "num_key_value_heads", None) or heads),
            "head_dim": int(getattr(config, "head_dim", None) or width // heads),
            "vocab_size": vocab,
            "max_position_embeddings": int(getattr(config, "max_position_embeddings", None) or 2048),
            "rms_norm_eps": float(getattr(config, "rms_norm_eps", None) or 1e-6),
            "hidden_act": getattr(config, "hidden_act", None) or "silu",
            "rope_parameters": _base_rope(config),
            "qkv_bias": any(name.endswith("q_proj.bias") for name, _ in base.named_parameters()),
            "token_ids": {k: getattr(config, k, None) for k in ("pad_token_id", "bos_token_id", "eos_token_id")},
        }
        unknown = sorted(set(overrides) - {entry.name for entry in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"draft: unknown settings {', '.join(unknown)}")
        return cls(**{**values, **overrides})

    def to_dict(self, dtype: torch.dtype) -> dict[str, Any]:
        """Return the content of ``config.json``, under EAGLE's names, for weights of ``dtype``."""
        rope = dict(self.rope_parameters)
        theta, kind = rope.pop("rope_theta"), rope["rope_type"]
        content: dict[str, Any] = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "num_hidden_layers": 1,
            "hidden_act": self.hidden_act,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": theta,
            # The published code knows the kind as "type", newer ones as "rope_type".
            "rope_scaling": None if kind == "default" else {**rope, "type": kind},
            "pretraining_tp": 1,
            "vocab_size": self.vocab_size,
            "tie_word_embeddings": False,
            "torch_dtype": str(dtype).removeprefix("torch."),
            "bias": self.fc_bias,
            "qkv_bias": self.qkv_bias,
            **{key: self.token_ids.get(key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")},
        }
        if self.head_dim * self.num_attention_heads != self.hidden_size:
            content["head_dim"] = self.head_dim
        return content

    def llama(self) -> LlamaConfig:
        """Return the same as a configuration of ``transformers``, whose parts the draft is made of.

        Raises:
            UserError: transformers cannot make a layer of it, such as a rotary scaling without its factor.
        """
        try:
            config = LlamaConfig(
                hidden_size=self.hidden_size,
                intermediate_size=self.intermediate_size,
                num_attention_heads=self.num_attention_heads,
                num_key_value_heads=self.num_key_value_heads,
                head_dim=self.head_dim,
                num_hidden_layers=1,
                vocab_size=self.vocab_size,
                max_position_embeddings=self.max_position_embeddings,
                rms_norm_eps=self.rms_norm_eps,
                hidden_act=self.hidden_act,
                rope_parameters=dict(self.rope_parameters),
            )
            turned = 2 * LlamaRotaryEmbedding(config).inv_freq.numel()
        except (KeyError, TypeError, ValueError, OverflowError, StrictDataclassError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else " ".join(str(error).split())
            raise UserError(f"draft: rope_parameters {dict(self.rope_parameters)} cannot be used: {reason}") from error
        if turned != self.head_dim:
            raise UserError(f"draft: the rotary embedding turns {turned} of a head's {self.head_dim} channels, not all")
        return config


def base_sizes(base: PreTrainedModel) -> tuple[int, int]:
    """Return a base's feature width H and number of logits V, both of its output layer.

    Raises:
        UserError: Its embedding has other sizes, so that a draft cannot use it.
    """
    head: Any = base.get_output_embeddings()
    embedding: Any = base.get_input_embeddings()
    if head is None:
        raise UserError(f"{type(base).__name__}: the base has no output layer for a draft to share")
    vocab, width = head.weight.shape
    if embedding.weight.shape[1] != width or embedding.weight.shape[0] < vocab:
        raise UserError(
            f"{type(base).__name__}: its embedding is {list(embedding.weight.shape)} and its output layer "
            f"{[vocab, width]}; a draft needs both of one size"
        )
    return int(width), int(vocab)


def _read_rope(content: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary settings of a file, in the form of transformers 5.

    Raises:
        UserError: They are no settings, or those of another layer only.
    """
    theta = content.get("rope_theta") or 10000.0
    name = "rope_parameters" if content.get("rope_parameters") else "rope_scaling"
    found = content.get(name) or {}
    if not isinstance(found, Mapping):
        raise UserError(f'config.json: {name} must be an object such as {{"type": "linear", ...}}, found {found!r}')
    kinds = content.get("layer_types")
    rope = _of_one_layer(found, kinds[0] if isinstance(kinds, list) and kinds else None)
    kind = rope.pop("type", None)
    return {"rope_theta": theta, **rope, "rope_type": rope.get("rope_type") or kind or "default"}


def _of_one_layer(rope: Mapping[str, Any], kind: str | None) -> dict[str, Any]:
    """The settings of a draft's one layer, where there is a set for each kind of layer: full attention, unless told."""
    sets = {key: value for key, value in rope.items() if isinstance(value, Mapping)}
    if not sets:
        return dict(rope)
    chosen = sets.get(kind or "full_attention")
    if chosen is None and len(sets) > 1 and kind is not None:
        raise UserError(f"config.json: rotary settings for {', '.join(sets)}, but none for a layer of kind {kind}")
    return dict(chosen or next(iter(sets.values())))


def _base_rope(config: Any) -> dict[str, Any]:
    """The base's rotary settings where a Llama layer can have them, else its base frequency alone."""
    rope = dict(getattr(config, "rope_parameters", None) or _DEFAULT_ROPE)
    rope = _of_one_layer(rope, None)
    partial = rope.pop("partial_rotary_factor", 1.0)
    if partial != 1.0 or rope.get("rope_type", "default") not in _ROPE_TYPES:
        return {"rope_type": "default", "rope_theta": rope.get("rope_theta", 10000.0)}
    return {"rope_type": "default", "rope_theta": 10000.0, **rope}
