"""Rows that are kept, for the few measures that need them again: entropies per class, and the nearest class mean."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_hass.metrics.collectives import Ranks
from lit_hass.metrics.parts import Batch, Part, State

# Rows travel in blocks of at most so many numbers.
_BLOCK_NUMBERS = 2**24
_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class RowBuffer(Part):
    """Copies of the rows in their own dtype, and their ids. Memory grows with the rows.

    Args:
        num_features: d.
    """

    def __init__(self, num_features: int) -> None:
        self.num_features = num_features

    def defaults(self) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.defaults`."""
        return {"row_blocks": [], "row_id_blocks": []}

    def update(self, state: State, batch: Batch) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.update`."""
        # Copies: a slice of a batch would keep all of it in memory.
        state["row_blocks"].append(batch.rows.clone(memory_format=torch.contiguous_format))
        state["row_id_blocks"].append(batch.ids.clone())
        return state

    def merged(self, a: State, b: State) -> State:
        """See :meth:`~lit_hass.metrics.parts.Part.merged`."""
        return {name: [*a[name], *b[name]] for name in a}

    def reduced(self, state: State, ranks: Ranks, extent: int) -> State:
        """Leave the rows where they are: :func:`exchange_by_class` passes on what a measure needs."""
        return state


def rows_of(state: State, num_features: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the rows ``[n, d]`` and ids ``[n]`` of a buffer."""
    if not state["row_blocks"]:
        return torch.zeros(0, num_features, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    return torch.cat(state["row_blocks"]), torch.cat(state["row_id_blocks"])


def exchange_by_class(rows: Tensor, ids: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Give each rank all rows of the classes whose id leaves its number as remainder; collective.

    Every rank sends its rows once, in blocks, and nobody ever holds those of another rank in full.

    Args:
        rows: ``[n, d]``; n may differ and be 0, and so may the dtypes.
        ids: ``[n]`` int64.
        ranks: the group.
    """
    header = torch.zeros(ranks.size, 2, dtype=torch.int64, device=ids.device)
    header[ranks.rank] = torch.tensor([len(rows), _DTYPES.index(rows.dtype)])
    kept_rows, kept_ids = [], []
    block = max(1, _BLOCK_NUMBERS // rows.shape[1])
    for source, (count, code) in enumerate(ranks.sum(header).tolist()):
        for start in range(0, count, block):
            size = min(block, count - start)
            if source == ranks.rank:
                sent, sent_ids = rows[start : start + size].contiguous(), ids[start : start + size].contiguous()
            else:
                sent = rows.new_empty(size, rows.shape[1], dtype=_DTYPES[code])
                sent_ids = ids.new_empty(size)
            ranks.broadcast(sent, source)
            ranks.broadcast(sent_ids, source)
            mine = sent_ids % ranks.size == ranks.rank
            kept_rows.append(sent[mine])
            kept_ids.append(sent_ids[mine])
    if not kept_rows:
        return rows[:0], ids[:0]
    return torch.cat(kept_rows), torch.cat(kept_ids)
