"""The weights of a Llama-like model, arranged for as few operations per token as possible.

Three arrangements, by what is worth it and by what changes no result that matters:

* *plain*: the model's own tensors, nothing copied. Large models, where the products dominate.
* *fused*: query, key and value matrices stacked into one, gate and up likewise: copies, for small models only.
* *folded*: fused; besides, in float32 on a CPU, where every small operation costs as much as a product: the norms'
  weights (and the width's square root) are multiplied into the matrices that read them, the scale of the attention
  into the queries, and the two halves of a head that the rotary embedding combines are put side by side, so that it
  is one complex product. All of it changes rounding only (about 1e-7).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

#: Copies of weights may take this many bytes in all.
COPY_LIMIT = 256 * 2**20

#: Families whose decoder layer is the one of `lean`, by module and class, so that no custom code slips in.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
#: Rotary embeddings whose frequencies do not depend on the length of the sequence.
STATIC_ROPE = ("default", "linear", "llama3", "yarn")


@dataclass
class LeanLayer:
    """One decoder layer; matrices as ``[in, out]`` (views or copies), ready for ``mm`` and ``addmm``.

    Attributes:
        input_norm: Weight of its first norm; None where it is folded into ``qkv``, or where there is none (a draft).
    """

    input_norm: Tensor | None
    qkv: list[Tensor]
    qkv_bias: Tensor | None
    qk_norm: Tensor | None
    qk_eps: float
    o: Tensor
    o_bias: Tensor | None
    post_norm: Tensor | None
    gate_up: list[Tensor]
    gate_up_bias: Tensor | None
    down: Tensor
    down_bias: Tensor | None


@dataclass
class LeanWeights:
    """All that the lean forward reads, with the constants that go with it.

    Attributes:
        norm: Weight of the final norm, times the square root of the width if folded; None for a draft, which has none.
        eps: Of the layers' norms.
        floor: 0-dim, ``sqrt(width * eps)``: the folded norm divides by ``hypot(|x|, floor)``.
        scaling: Factor of the attention's logits that is left to apply.
        folded: Whether the arrangement is the folded one.
    """

    layers: list[LeanLayer]
    embedding: Tensor
    norm: Tensor | None
    eps: float
    floor: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    activation: Any
    folded: bool


def unsupported(model: PreTrainedModel) -> str | None:
    """Return why the lean forward cannot run ``model``, or None where it can (before any test by numbers)."""
    config: Any = model.config
    family = config.model_type
    if family not in FAMILIES or not type(model).__module__.startswith(f"transformers.models.{family}."):
        return f"{type(model).__name__} is not one of the families {', '.join(FAMILIES)}"
    if not type(model).__name__.endswith("ForCausalLM"):
        return f"{type(model).__name__} is not a causal language model"
    if (reason := unsupported_config(config)) is not None:
        return reason
    parameters = list(model.parameters())
    if len({(p.device, p.dtype) for p in parameters}) != 1 or parameters[0].device.type == "meta":
        return "weights on several devices or in several dtypes"
    for name, module in model.named_modules():
        if hasattr(module, "_hf_hook") or module._forward_hooks or module._forward_pre_hooks:
            return f"a hook on {name or 'the model'}"
        if name.endswith(("_proj", "lm_head")) and type(module) is not nn.Linear:
            return f"{name} is a {type(module).__name__}"
    return None


def unsupported_config(config: Any) -> str | None:
    """Return what in a configuration keeps the lean forward from running its model, or None for nothing."""
    if config.model_type not in FAMILIES:
        return f"{config.model_type} is not one of the families {', '.join(FAMILIES)}"
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope not in STATIC_ROPE:
        return f"rotary embedding of type {rope}"
    if (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1.0) != 1.0:
        return "partial rotary embedding"
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is not None and (kinds is None or "sliding_attention" in kinds):
        return "a sliding window"
    return None


class Stamp:
    """Notices when a model's weights are replaced or written to in place; asked before every call, so it is quick.

    Args:
        model: Whose weights to watch. Modules that are added to it later are not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        """Look up where the weights are kept."""
        self._places = [(module._parameters, name) for module in model.modules() for name in module._parameters]
        self._values = self._read()

    def _read(self) -> list[tuple[int, int]]:
        weights = (place[name] for place, name in self._places)
        return [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights if w is not None]

    def changed(self) -> bool:
        """Whether they are others than when this was made."""
        return self._read() != self._values


def arrange(model: PreTrainedModel) -> LeanWeights:
    """Arrange the weights of a supported model."""
    decoder: Any = model.base_model
    attention = decoder.layers[0].self_attn
    config: Any = model.config
    first = decoder.layers[0]
    small = is_small(decoder.layers)
    folded = small and first.mlp.down_proj.weight.dtype == torch.float32 and model.device.type == "cpu"
    eps, width = float(decoder.norm.variance_epsilon), int(config.hidden_size)
    norm = decoder.norm.weight.detach()
    with torch.inference_mode(False), torch.no_grad():
        layers = [
            arrange_layer(layer, small, folded, float(attention.scaling), attention.head_dim)
            for layer in decoder.layers[: config.num_hidden_layers]
        ]
        floor = torch.tensor(math.sqrt(width * eps), device=norm.device)
        norm = norm * math.sqrt(width) if folded else norm
    return LeanWeights(
        layers=layers,
        embedding=decoder.embed_tokens.weight.detach(),
        norm=norm,
        eps=eps,
        floor=floor,
        heads=attention.q_proj.out_features // attention.head_dim,
        kv_heads=attention.k_proj.out_features // attention.head_dim,
        head_dim=attention.head_dim,
        scaling=1.0 if folded else float(attention.scaling),
        activation=plain_activation(first.mlp.act_fn),
        folded=folded,
    )


class RotaryTable:
    """Rotary factors by transformers' own frequencies and scaling, kept from call to call.

    Args:
        frequencies: ``[D / 2]`` float32.
        scaling: Factor of cosine and sine.
        folded: Whether the factors are complex.
        dtype: Of the others, rounded as in transformers.
        device: Where they are used.
    """

    def __init__(
        self, frequencies: Tensor, scaling: float, folded: bool, dtype: torch.dtype, device: torch.device
    ) -> None:
        """Make nothing yet."""
        self._frequencies, self._scaling = frequencies.float(), scaling
        self._folded, self._dtype, self._device = folded, dtype, device
        self._table: tuple[Tensor, ...] = ()

    def __call__(self, count: int) -> tuple[Tensor, ...]:
        """Cosine and sine ``[n, D]``, or one complex ``[n, D / 2]``, of at least ``count`` positions."""
        if not self._table or self._table[0].shape[0] < count:
            with torch.inference_mode(False), torch.no_grad():
                self._table = self._make(2 * count)
        return self._table

    def _make(self, count: int) -> tuple[Tensor, ...]:
        angles = torch.arange(count, device=self._frequencies.device).float()[:, None] * self._frequencies
        cos, sin = angles.cos() * self._scaling, angles.sin() * self._scaling
        if self._folded:
            return (torch.complex(cos, sin).to(self._device),)
        # The sign belongs to rotate_half; putting it here is exact and makes that one roll.
        parts = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
        return tuple(part.to(self._device, self._dtype) for part in parts)


def plain_activation(module: nn.Module) -> Any:
    """The function of an activation module; a module's call costs as much as the function."""
    return F.silu if isinstance(module, nn.SiLU) or type(module).__name__ == "SiLUActivation" else module


def is_small(layers: nn.Module) -> bool:
    """Whether copies of these weights may be made."""
    return sum(p.numel() * p.element_size() for p in layers.parameters()) <= COPY_LIMIT


def arrange_layer(layer: Any, small: bool, folded: bool, scaling: float, head_dim: int) -> LeanLayer:
    """Arrange one Llama-like layer, or a draft's, which has no first norm.

    Args:
        layer: With the names of transformers' Llama.
        small: Whether matrices are fused (copied).
        folded: Whether norms and scales are multiplied into them.
        scaling: Factor of the attention's logits.
        head_dim: Width of a head.
    """
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj]
    matrices = [p.weight.detach() for p in projections]
    biases = [p.bias.detach() for p in projections if p.bias is not None]
    gate_up = [mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()]
    gate_up_biases = [p.bias.detach() for p in (mlp.gate_proj, mlp.up_proj) if p.bias is not None]
    post_norm = layer.post_attention_layernorm.weight.detach()
    normed = hasattr(layer, "input_layernorm")
    input_norm = layer.input_layernorm.weight.detach() if normed else None
    norms = [attention.q_norm, attention.k_norm] if hasattr(attention, "q_norm") else []
    heads = [p.out_features // head_dim for p in projections[:2]]
    qk_norm = torch.cat([n.weight.detach().expand(h, -1) for n, h in zip(norms, heads, strict=True)]) if norms else None
    if folded:
        width = math.sqrt(len(post_norm))
        if input_norm is not None:
            matrices = [m * (input_norm * width) for m in matrices]
        else:
            matrices = [m.clone() for m in matrices]
        gate_up = [m * (post_norm * width) for m in gate_up]
        matrices[:2] = [_pair_halves(m, head_dim) for m in matrices[:2]]
        biases[:2] = [_pair_halves(b, head_dim) for b in biases[:2]]
        if qk_norm is not None:
            qk_norm = _pair_halves(qk_norm.reshape(-1), head_dim).view_as(qk_norm)
            qk_norm[: heads[0]] *= scaling
        else:
            matrices[0] *= scaling
            biases[:1] = [b * scaling for b in biases[:1]]
    if small:
        matrices, gate_up = [torch.cat(matrices)], [torch.cat(gate_up)]
    return LeanLayer(
        input_norm=None if folded else input_norm,
        qkv=[_transposed(m, small) for m in matrices],
        qkv_bias=torch.cat(biases) if biases else None,
        qk_norm=qk_norm,
        qk_eps=float(norms[0].variance_epsilon) if norms else 0.0,
        o=_transposed(attention.o_proj.weight.detach(), folded),
        o_bias=None if attention.o_proj.bias is None else attention.o_proj.bias.detach(),
        post_norm=None if folded else post_norm,
        gate_up=[_transposed(m, small) for m in gate_up],
        gate_up_bias=torch.cat(gate_up_biases) if gate_up_biases else None,
        down=_transposed(mlp.down_proj.weight.detach(), folded),
        down_bias=None if mlp.down_proj.bias is None else mlp.down_proj.bias.detach(),
    )


def _transposed(matrix: Tensor, copied: bool) -> Tensor:
    # One row times a matrix is faster on a CPU when the matrix is stored input-major.
    return matrix.t().contiguous() if copied else matrix.t()


def _pair_halves(rows: Tensor, head_dim: int) -> Tensor:
    """Put row i and row i + head_dim / 2 of every head side by side: the pairs that the rotary embedding turns."""
    split = rows.view(-1, 2, head_dim // 2, *rows.shape[1:])
    return split.transpose(1, 2).reshape(rows.shape)
