"""The one forward that all decoders share: what it takes and returns, and what it keeps between calls.

A cache holds the committed tokens of every row of a batch. A row's tokens have positions ``0 .. length - 1``
whatever the other rows do; how the rows are laid out in memory (and padded) is the implementation's own affair.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lit_hass.models.context import context_length


class KVCache(ABC):
    """Keys and values of a batch, for one call of a decoder.

    Attributes:
        lengths: Committed tokens of each row, known on the host without asking the device.
    """

    lengths: list[int]

    @abstractmethod
    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows of the batch, in this order, and forget the others."""


class BaseForward(ABC):
    """A decoder-only model, reduced to prefill, extension by new tokens, and logits.

    Nothing of a call stays in this object: its state is the cache, so calls may interleave.

    Attributes:
        model: The unmodified ``transformers`` model.
        device: Where token ids go.
        output_device: Where hidden states and logits come out, and where all that is made of them lives (choices,
            noise, prefixes, the draft and its trees). A model that is spread over devices has two.
        dtype: Of the hidden states.
        vocab_size: Number of logits V.
        embedding_size: Ids below this may be fed.
        hidden_size: Width H of the features, which is the output layer's input width.
        context: Largest number of tokens in a sequence, or None.
        pads: Whether prompts of different lengths may share a batch without changing each other's results.
        batches: Whether prompts of equal length may.
        features: Whether hidden states are features, from which the logits are made; else they are the logits.
        collects: Whether the output layer reads them as they are, so that they may be collected as what it reads.
    """

    pads = True
    batches = True
    features = True
    collects = True

    def __init__(self, model: PreTrainedModel) -> None:
        """Read the sizes of ``model``."""
        self.model = model
        head = model.get_output_embeddings()
        embedding = model.get_input_embeddings()
        self.device = torch.device(_home(embedding) or model.device)
        self.output_device = self.device
        self.dtype: torch.dtype = model.dtype
        self.vocab_size = int(getattr(head, "out_features", model.config.get_text_config().vocab_size))
        self.embedding_size = int(getattr(embedding, "num_embeddings", self.vocab_size))
        self.hidden_size = int(getattr(head, "in_features", model.config.get_text_config().hidden_size))
        self.context = context_length(model.config)

    @abstractmethod
    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for ``batch`` rows of up to ``capacity`` tokens."""

    @abstractmethod
    def prefill(self, prompts: Sequence[Tensor], cache: KVCache) -> list[Tensor]:
        """Feed the prompts into an empty cache.

        Args:
            prompts: One 1-D int64 tensor per row, on any device, none of them empty.
            cache: Empty; holds the prompts afterwards.

        Returns:
            Per row the hidden states ``[n, H]`` after the final norm, on ``output_device``.
        """

    @abstractmethod
    def extend(self, ids: Tensor, cache: KVCache) -> Tensor:
        """Append T tokens to every row; each sees its row's committed tokens, those before it, and itself.

        Args:
            ids: ``[B, T]`` int64 on ``device``.
            cache: Gains T tokens per row.

        Returns:
            ``[B, T, H]`` hidden states after the final norm, on ``output_device``.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's own logits ``[..., V]`` in float32 (scaling and capping included) of ``[..., H]``.

        Both are on ``output_device``.
        """

    def logits_of(self, ids: Tensor) -> Callable[[Tensor], Tensor]:
        """Return a function from ``[..., H]`` to the logits ``[..., K]`` of these tokens ``[K]`` alone.

        This one computes them all; a forward whose output layer is a plain product takes the rows that it needs.
        """
        return lambda hidden: self.logits(hidden)[..., ids]


class TreeForward(BaseForward):
    """A forward that can also look at a tree of tokens at once, and commit one of its paths."""

    @abstractmethod
    def verify(self, ids: Tensor, depths: Tensor, visible: Tensor, cache: KVCache) -> Tensor:
        """Feed the nodes of a tree; each sees its row's committed tokens and the nodes that ``visible`` says.

        Nothing is committed: `keep` does, before anything else is fed.

        Args:
            ids: ``[B, T]`` int64 on ``device``, node 0 being the token behind the committed ones.
            depths: ``[B, T]`` int64, 0 for node 0. A node's position is that far behind the committed tokens; where
                this is outside the context, the node's results are of no use and nobody may read them.
            visible: ``[B, T, T]`` bool, true for a node's ancestors and itself.
            cache: Has T free slots in each row.

        Returns:
            ``[B, T, H]`` hidden states after the final norm, on ``output_device``.
        """

    @abstractmethod
    def keep(self, paths: Tensor | None, counts: Sequence[int], cache: KVCache) -> None:
        """Commit one path of each row's tree, and forget the other nodes.

        Args:
            paths: ``[B, P]`` int64 on any device: node numbers from node 0 downwards; what stands behind a row's count
                is any node. None where they are the first nodes, which lie where they belong.
            counts: Nodes of each row's path, 1 .. P.
            cache: As `verify` left it.
        """

    def positions(self, depths: Tensor, starts: Tensor) -> Tensor:
        """``[B, T]`` positions of nodes, none outside the context."""
        positions = depths + starts[:, None]
        return positions if self.context is None else positions.clamp(max=self.context - 1)


def _home(module: nn.Module) -> torch.device | None:
    """Where a module's weight is, or None for one that is offloaded (and then on no device)."""
    weight = getattr(module, "weight", None)
    return weight.device if isinstance(weight, Tensor) and weight.device.type != "meta" else None
