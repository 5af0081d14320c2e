"""A hand-written forward for the draft, sharing its layer and its cache with that of the base.

Where the weights are small, the embedding's half of ``fc`` is a table: ``fc(cat(E[x], f)) = (E W_e + b)[x] + f W_f``;
and as the layer has no norm before its projections, these are columns of the same table and matrix. Both change
rounding only.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_hass.decoding.draft_forward import DraftForward, DraftKV
from lit_hass.decoding.lean_cache import LeanCache, Place, place_last, place_next, place_tree
from lit_hass.decoding.lean_layers import LeanLayers, lean_product
from lit_hass.decoding.lean_weights import (
    COPY_LIMIT,
    STATIC_ROPE,
    LeanLayer,
    LeanWeights,
    RotaryTable,
    Stamp,
    arrange_layer,
    is_small,
    plain_activation,
)
from lit_hass.models import DraftModel


class LeanDraft(DraftForward):
    """A draft whose rotary frequencies do not depend on the length, on one device."""

    def __init__(self, draft: DraftModel) -> None:
        """Arrange the draft's weights (copies of at most 512 MiB)."""
        self._draft = draft
        self._arrange()

    def _arrange(self) -> None:
        draft = self._draft
        self._stamp = Stamp(draft)
        layer: Any = draft.layer
        config = draft.config
        small = is_small(layer)
        folded = small and draft.dtype == torch.float32 and draft.device.type == "cpu"
        scaling = config.head_dim**-0.5
        eps = config.rms_norm_eps
        floor = torch.tensor(math.sqrt(config.hidden_size * eps), device=draft.device)
        with torch.inference_mode(False), torch.no_grad():
            arranged = arrange_layer(layer, small, folded, scaling, config.head_dim)
            self._inputs = _Inputs(draft, arranged, small)
        self._rotary = RotaryTable(*draft.rotary_frequencies(), folded, draft.dtype, draft.device)
        self._layers = LeanLayers(
            LeanWeights(
                layers=[arranged],
                embedding=draft.embed_tokens.weight.detach(),
                norm=None,
                eps=eps,
                floor=floor,
                heads=config.num_attention_heads,
                kv_heads=config.num_key_value_heads,
                head_dim=config.head_dim,
                scaling=1.0 if folded else scaling,
                activation=plain_activation(layer.mlp.act_fn),
                folded=folded,
            )
        )

    @staticmethod
    def fits(draft: DraftModel) -> bool:
        """Whether a draft can be run this way."""
        parameters = list(draft.parameters())
        same = len({(p.device, p.dtype) for p in parameters}) == 1 and parameters[0].device.type != "meta"
        return same and draft.config.rope_parameters["rope_type"] in STATIC_ROPE

    def new_cache(self, batch: int, capacity: int) -> LeanCache:
        """Return an empty cache."""
        if self._stamp.changed():  # trained or loaded into since
            self._arrange()
        w = self._layers.weights
        shape = (1, batch, 2 * w.kv_heads, w.head_dim)
        return LeanCache(shape, capacity, self._draft.dtype, self._draft.device, self._rotary)

    def feed(self, token_ids: Tensor, features: Tensor, counts: Sequence[int], cache: DraftKV) -> Tensor:
        """Commit the rows that the base has verified."""
        assert isinstance(cache, LeanCache)
        batch, count = token_ids.shape
        place = place_next(cache, count, self._draft.dtype)
        after = place_last(cache, counts, count, self._draft.dtype)
        rows = torch.tensor([row * count + real - 1 for row, real in enumerate(counts)], device=token_ids.device)
        x, qkv = self._inputs(token_ids, features)
        output = self._layers.run_last(x, qkv, batch, cache.layers[0], place, rows, after)
        cache.grow(counts)
        return output

    def extend(
        self,
        token_ids: Tensor,
        features: Tensor,
        cache: DraftKV,
        offset: int,
        positions: Tensor | None = None,
        visible: Tensor | None = None,
    ) -> Tensor:
        """Go on from the draft's own predictions."""
        assert isinstance(cache, LeanCache)
        count = token_ids.shape[1]
        if visible is None:
            place = place_next(cache, count, self._draft.dtype, offset)
        else:
            assert positions is not None
            place = place_tree(cache, positions, visible, self._draft.dtype, offset)
        return self._run(token_ids, features, cache, place)

    def _run(self, token_ids: Tensor, features: Tensor, cache: LeanCache, place: Place) -> Tensor:
        x, qkv = self._inputs(token_ids, features)
        return self._layers.run_one(x, qkv, token_ids.shape[0], cache.layers[0], place).view(*token_ids.shape, -1)


class _Inputs:
    """``fc`` of embedding and feature, and the layer's projections of it."""

    def __init__(self, draft: DraftModel, layer: LeanLayer, small: bool) -> None:
        """Fuse both into one product where the weights are small: no norm stands between them."""
        embedding, fc = draft.embed_tokens.weight.detach(), draft.fc.weight.detach()
        bias = None if draft.fc.bias is None else draft.fc.bias.detach()
        self._of_embedding, of_feature = fc.chunk(2, dim=1)
        self._width, self._layer, self._bias, self._embedding = fc.shape[0], layer, bias, embedding
        self._of_feature = of_feature.t().contiguous() if small else of_feature.t()
        self._table: Tensor | None = None
        fused = self._width + sum(matrix.shape[1] for matrix in layer.qkv)
        if small and draft.dtype == torch.float32 and embedding.shape[0] * fused * 4 <= COPY_LIMIT:
            table = F.linear(embedding, self._of_embedding, bias)
            self._table = torch.cat((table, lean_product(table, layer.qkv, layer.qkv_bias)), dim=1)
            self._of_feature = torch.cat((self._of_feature, lean_product(self._of_feature, layer.qkv, None)), dim=1)

    def __call__(self, token_ids: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """``[B * T, H]`` and ``[B * T, heads * D]`` of ``[B, T]`` ids and ``[B, T, H]`` features."""
        ids, rows = token_ids.reshape(-1), features.reshape(-1, features.shape[-1])
        if self._table is not None:
            both = torch.addmm(F.embedding(ids, self._table), rows, self._of_feature)
            # The projections are turned in place, which needs them in one piece.
            return both[:, : self._width], both[:, self._width :].contiguous()
        known = F.linear(F.embedding(ids, self._embedding), self._of_embedding, self._bias)
        x = torch.addmm(known, rows, self._of_feature)
        return x, lean_product(x, self._layer.qkv, self._layer.qkv_bias)
