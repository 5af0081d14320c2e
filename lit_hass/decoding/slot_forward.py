"""Trees on any ``transformers`` model, through the model's own code and a cache with a slot for each position.

`HFForward` pads on the left and lets the cache grow, which any model can do but which leaves no room for rows that
advance at their own pace. Here row b's committed token at position p lies in slot p, nodes of a tree lie behind, and a
mask tells the model what each token sees.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from lit_hass.decoding.forward import KVCache, TreeForward
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.errors import UserError

#: Kinds of attention layers that a mask describes.
_KINDS = {"full_attention", "sliding_attention"}


class _SlotLayer(DynamicLayer):
    """Keys and values of one layer, preallocated when the first ones come."""

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self._cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        # Zeros: a masked slot has weight 0, and 0 times what happens to lie in fresh memory may be NaN.
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self._cache.capacity, states.shape[3])
            for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        cache, count = self._cache, key_states.shape[2]
        end = max(cache.lengths) + count
        if cache.level:
            self.keys[:, :, end - count : end], self.values[:, :, end - count : end] = key_states, value_states
        else:
            rows = torch.arange(len(cache.lengths), device=self.keys.device)[:, None]
            slots = (cache.starts[:, None] + torch.arange(count)).to(self.keys.device)
            self.keys[rows, :, slots] = key_states.transpose(1, 2)
            self.values[rows, :, slots] = value_states.transpose(1, 2)
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        # What a model takes as the number of tokens so far where it is not told the positions.
        return max(self._cache.lengths)


class SlotCache(KVCache):
    """A ``Cache`` of preallocated layers.

    Attributes:
        cache: What the model takes.
        layers: Its layers.
        capacity: Slots per row.
        starts: ``[B]`` int64 on the CPU, equal to ``lengths``.
    """

    def __init__(self, layers: int, batch: int, capacity: int) -> None:
        """Make empty layers."""
        self.layers = [_SlotLayer(self) for _ in range(layers)]
        self.cache = Cache(layers=list(self.layers))
        self.capacity = capacity
        self.lengths = [0] * batch
        self.starts = torch.zeros(batch, dtype=torch.long)

    @property
    def level(self) -> bool:
        """Whether all rows have the same length."""
        return min(self.lengths) == max(self.lengths)

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows."""
        self.lengths = [self.lengths[row] for row in rows]
        self.starts = torch.tensor(self.lengths)
        # On the CPU: such an index works for layers on any devices.
        self.cache.batch_select_indices(torch.tensor(list(rows)))

    def grow(self, counts: Sequence[int]) -> None:
        """Commit this many more tokens of each row, which lie behind the committed ones."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        self.starts = torch.tensor(self.lengths)


class SlotForward(HFForward, TreeForward):
    """Any decoder-only model that takes positions and a mask; `make_tree_forward` tests that it takes them right."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find how to call the model.

        Raises:
            UserError: The kind of model is known not to work, and why.
        """
        reason = unsupported_tree(model)
        if reason is not None:
            raise UserError(f"{type(model).__name__} cannot verify draft trees: {reason}")
        super().__init__(model)
        if not self._takes_positions:
            raise UserError(
                f"{type(model).__name__} cannot verify draft trees: it takes no positions (its attention counts "
                "distances in the cache, as alibi does)"
            )
        config: Any = model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        window = getattr(config, "sliding_window", None)
        if kinds == {"full_attention"} or getattr(config, "use_sliding_window", True) is False:
            window = None
        self._window: int | None = window
        self._by_kind = len(kinds) > 1
        self._layers = int(config.num_hidden_layers)

    def new_cache(self, batch: int, capacity: int) -> Any:
        """Return an empty cache with ``capacity`` slots per row."""
        return SlotCache(self._layers, batch, capacity)

    def prefill(self, prompts: Sequence[Tensor], cache: KVCache) -> list[Tensor]:
        """Feed the prompts, padded on the right, where the model's own causal mask hides the padding."""
        assert isinstance(cache, SlotCache)
        lengths = [len(prompt) for prompt in prompts]
        ids = pad_sequence([p.cpu() for p in prompts], batch_first=True).to(self.device)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        output = self._decoder(input_ids=ids, position_ids=positions, past_key_values=cache.cache, use_cache=True)
        cache.grow(lengths)
        hidden = output.last_hidden_state.to(self.output_device)
        return [row[:length] for row, length in zip(hidden, lengths, strict=True)]

    def extend(self, ids: Tensor, cache: KVCache, _lengths: list[int] | None = None) -> Tensor:
        """Append T tokens to every row: a tree that is a chain."""
        count = ids.shape[1]
        depths = torch.arange(count, device=self.device).expand(len(ids), -1)
        visible = torch.ones(count, count, dtype=torch.bool, device=self.device).tril().expand(len(ids), -1, -1)
        hidden = self.verify(ids, depths, visible, cache)
        assert isinstance(cache, SlotCache)
        cache.grow([count] * len(ids))
        return hidden

    def verify(self, ids: Tensor, depths: Tensor, visible: Tensor, cache: KVCache) -> Tensor:
        """Feed the nodes of a tree behind the committed tokens."""
        assert isinstance(cache, SlotCache)
        starts = cache.starts.to(self.device)
        positions = self.positions(depths, starts)
        masks = self._masks(positions, visible, starts, max(cache.lengths) + ids.shape[1])
        output = self._decoder(
            input_ids=ids,
            attention_mask=masks,
            position_ids=positions,
            past_key_values=cache.cache,
            use_cache=True,
        )
        return output.last_hidden_state.to(self.output_device)

    def keep(self, paths: Tensor | None, counts: Sequence[int], cache: KVCache) -> None:
        """Commit one path of each row's tree."""
        assert isinstance(cache, SlotCache)
        if paths is None:
            cache.grow(counts)
            return
        steps = torch.arange(paths.shape[1])
        starts = cache.starts[:, None]
        places: dict[torch.device, tuple[Tensor, ...]] = {}
        for layer in cache.layers:
            if not layer.is_initialized:  # shares the keys of another layer
                continue
            keys, values = layer.keys, layer.values
            assert keys is not None and values is not None
            if keys.device not in places:
                rows = torch.arange(len(paths), device=keys.device)[:, None]
                old = starts.to(keys.device) + paths.to(keys.device)
                places[keys.device] = rows, old, (starts + steps).to(keys.device)
            rows, old, new = places[keys.device]
            keys[rows, :, new] = keys[rows, :, old]
            values[rows, :, new] = values[rows, :, old]
        cache.grow(counts)

    def _masks(self, positions: Tensor, visible: Tensor, starts: Tensor, end: int) -> Tensor | dict[str, Tensor]:
        """Additive masks ``[B, 1, T, end]``, one for all layers or one for each kind."""
        count = positions.shape[1]
        relative = torch.arange(end, device=self.device) - starts[:, None]  # [B, end]
        node = relative.clamp(0, count - 1)
        own = node[:, None].expand(-1, count, -1)
        committed = relative < 0
        seen = visible.gather(2, own) & (relative < count)[:, None] | committed[:, None]
        full = self._additive(seen)
        if self._window is None:
            return full
        # Where a key is in its sequence: a committed one in its own slot, a node where it says.
        slots = torch.arange(end, device=self.device)
        places = torch.where(committed, slots, positions.gather(1, node))
        near = positions[:, :, None] - places[:, None] < self._window
        sliding = self._additive(seen & near)
        return {"full_attention": full, "sliding_attention": sliding} if self._by_kind else sliding

    def _additive(self, seen: Tensor) -> Tensor:
        # Additive in the model's dtype: a boolean mask is silently wrong with eager attention.
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(self.dtype).min)[:, None]


def unsupported_tree(model: PreTrainedModel) -> str | None:
    """Return why trees cannot be verified on ``model``, or None where a test by numbers shall decide."""
    config: Any = model.config.get_text_config()
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        return "alibi counts distances in the cache, where the nodes of a tree have no distance"
    if getattr(model, "_is_stateful", False):
        return "linear attention or a recurrent state cannot be taken back when a token is refused"
    others = set(getattr(config, "layer_types", None) or ()) - _KINDS
    if others:
        return f"layers of kind {', '.join(sorted(others))} have a state that no mask describes"
    implementation = getattr(model.config, "_attn_implementation", "eager")
    if implementation not in ("sdpa", "eager"):
        return f"attention {implementation!r} takes no tree mask; load the model with sdpa or eager"
    return None
