"""Which rows of a batch count: shapes, ranges, ignored ids, numbers that are not finite."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lit_hass.metrics.parts import Batch

_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
#: Targets with this id are ignored, as losses ignore them.
IGNORE_INDEX = -100
# Without a vocabulary's size: an id beyond this is no token, and would cost eight times its size in bytes.
_LARGEST_ID = 2**24


@dataclass(frozen=True)
class RowRules:
    """What rows must look like to count.

    Attributes:
        num_features: d.
        num_paired: e of the second stream, or None where there is none.
        ignore_ids: token ids whose rows do not count.
        num_classes: V, or None.
        num_states: states are in [0, num_states).
        excluded_slots: 1 + code of the states that are no part of the text.
        drop_not_finite: leave out rows that are not finite instead of raising.
    """

    num_features: int
    num_paired: int | None
    ignore_ids: tuple[int, ...]
    num_classes: int | None
    num_states: int
    excluded_slots: tuple[int, ...]
    drop_not_finite: bool

    def accept(
        self,
        features: Tensor,
        token_ids: Tensor,
        states: Tensor | None,
        paired: Tensor | None,
        shift: Tensor,
        first: bool,
    ) -> tuple[Batch, tuple[int, int, int]]:
        """Check a batch and take out what does not count.

        Args:
            features: ``[N, d]`` floating.
            token_ids: ``[N]`` integers.
            states: ``[N]`` integers, or None.
            paired: ``[N, e]`` floating, or None.
            shift: ``[d]`` float64, whose device is that of the result.
            first: there are no rows yet, so that the shift becomes the mean of these.

        Returns:
            The rows that count, and how many are not finite, ignored and special.

        Raises:
            ValueError: something does not fit; says what.
        """
        device = shift.device
        self._check_shapes(features, token_ids, states, paired)
        ids = token_ids.to(device, torch.int64)
        ignored = ids == IGNORE_INDEX
        keep = ~ignored
        if self.ignore_ids:
            keep &= ~torch.isin(ids, torch.tensor(self.ignore_ids, device=device))
        n_ignored, n_kept = int(ignored.sum()), int(keep.sum())
        n_special = len(ids) - n_kept - n_ignored
        rows = features.detach().to(device)
        slots = None if states is None else states.to(device, torch.int64) + 1
        other = None if paired is None else paired.detach().to(device)
        if n_kept < len(ids):
            rows, ids = rows[keep], ids[keep]
            slots, other = (None if x is None else x[keep] for x in (slots, other))
        if self.num_classes is None and len(ids) and int(ids.max()) >= _LARGEST_ID:
            raise ValueError(f"token id {int(ids.max())} is above {_LARGEST_ID - 1}: give num_classes if that is right")
        _check_range("token id", ids, self.num_classes or _LARGEST_ID)
        counted = None
        if slots is not None:
            _check_range("state", slots - 1, self.num_states)
            counted = ~torch.isin(slots, torch.tensor(self.excluded_slots, dtype=torch.int64, device=device))
        x = rows.to(torch.float64)
        if first:
            finite = x[torch.isfinite(x).all(1)]
            shift = finite.mean(0) if len(finite) else shift
        x = x - shift if x is rows else x.sub_(shift)
        sqnorms = torch.linalg.vector_norm(x, dim=1).square_()  # a third of the time of squares and their sum
        finite = torch.isfinite(sqnorms)
        if other is not None:
            finite &= torch.isfinite(other).all(1)
        batch = Batch(x, sqnorms, ids, slots, counted, rows, other, shift)
        n_bad = len(ids) - int(finite.sum())
        if n_bad and not self.drop_not_finite:
            raise ValueError(f"{n_bad} feature rows hold numbers that are not finite")
        return batch.select(finite) if n_bad else batch, (n_bad, n_ignored, n_special)

    def _check_shapes(self, features: Tensor, token_ids: Tensor, states: Tensor | None, paired: Tensor | None) -> None:
        given = {"features": features, "token_ids": token_ids, "states": states, "paired_features": paired}
        for name, value in given.items():
            if not isinstance(value, Tensor) and (value is not None or name in ("features", "token_ids")):
                raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
        n = len(features) if features.ndim else 0
        for name, tensor, width in (
            ("features", features, self.num_features),
            ("paired_features", paired, self.num_paired),
        ):
            if tensor is None:
                continue
            if width is None:
                raise ValueError(f"this metric compares no streams: it takes no {name}")
            if tuple(tensor.shape) != (n, width) or not tensor.is_floating_point():
                raise ValueError(f"{name} must be [{n}, {width}] floating, got {tuple(tensor.shape)} {tensor.dtype}")
        for name, codes in (("token_ids", token_ids), ("states", states)):
            if codes is not None and (tuple(codes.shape) != (n,) or codes.dtype not in _INTEGERS):
                raise ValueError(f"{name} must be [{n}] integers, got {tuple(codes.shape)} {codes.dtype}")


def _check_range(what: str, codes: Tensor, limit: int) -> None:
    if codes.numel():
        low, high = (int(x) for x in codes.aminmax())
        if low < 0 or high >= limit:
            raise ValueError(f"a {what} is out of range: {low if low < 0 else high} is not in [0, {limit})")
