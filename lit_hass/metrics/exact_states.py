"""How a Metric keeps its states: in their own precision, as ordinary tensors, and never mixed up with other ones."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from lit_hass.errors import UserError
from lit_hass.metrics.parts import State

#: The settings that decide what the sums of an accumulator mean.
RULES = "ignore_ids, state_names or exclude_states"


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make tensors that may be changed in place later, also inside Lightning's inference mode."""
    with torch.inference_mode(False), torch.no_grad():
        yield


class ExactStates(Metric):
    """A Metric that does with its states what torchmetrics would do otherwise."""

    rules_code: Tensor

    def _set_rules(self, *meaning: Any) -> None:
        """Make a state of what the other states mean.

        Sums by other rules are then neither merged nor loaded, nor shared in a MetricCollection, which takes metrics
        for the same whose states are equal after one batch.
        """
        self.add_state("rules_code", torch.tensor(list(digest(*meaning)), dtype=torch.int64), dist_reduce_fx=None)

    def _same_rules(self, state: State) -> bool:
        return torch.equal(state["rules_code"].to(self.device), self.rules_code)

    def _get(self, names: Sequence[str]) -> State:
        return {name: getattr(self, name) for name in names}

    def _set(self, state: State) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def _disown_inference_tensors(self) -> None:
        for name in self._defaults:
            value = getattr(self, name)
            if isinstance(value, Tensor) and value.is_inference():
                setattr(self, name, value.clone())

    def _copy_state_dict(self) -> dict[str, Tensor | list[Any]]:
        """Return the states themselves: everything that follows a copy makes new tensors, so a copy would be waste."""
        return {name: value if isinstance(value, Tensor) else list(value) for name, value in self.metric_state.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Move the states to another device, and never to another dtype."""

        def keep(tensor: Tensor) -> Tensor:
            found = fn(tensor)
            return found if found.dtype == tensor.dtype else tensor.to(found.device)

        return super()._apply(keep, exclude_state)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take in saved states, all or none, on this metric's device and as tensors of its own."""
        saved = {name: state_dict.pop(prefix + name) for name in self._defaults if prefix + name in state_dict}
        for name, value in saved.items():
            if isinstance(value, Tensor) and value.shape[-1:] != getattr(self, name).shape[-1:] and value.ndim != 1:
                raise UserError(f"{prefix + name}: made for another number of features")
        if saved:
            if missing := [prefix + name for name in self._defaults if name not in saved]:
                raise UserError(f"a {type(self).__name__} cannot go on without {', '.join(missing)}")
            if not self._same_rules(saved):
                raise UserError(f"{prefix or type(self).__name__}: saved with other {RULES}")
            with ordinary_tensors():
                self._set({name: moved(value, self.device, copied=True) for name, value in saved.items()})
            self._computed = None
            self._update_count = max(1, self._update_count)  # compute() warns where there was no update
        super()._load_from_state_dict(state_dict, prefix, *args)

    @contextmanager
    def sync_context(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Hold the sums of all ranks for a while, and this rank's own again afterwards, also after an exception."""
        done = False
        try:
            with super().sync_context(*args, **kwargs):
                yield
                done = True
        finally:
            # torchmetrics leaves the merged sums in place: later rows and syncs would count the other ranks' again.
            if not done and self._is_synced:
                self.unsync()


def moved(value: Any, device: torch.device, copied: bool = False) -> Any:
    """Return a tensor, or a list of them, on a device."""
    if isinstance(value, Tensor):
        return value.to(device, copy=copied)
    return [item.to(device, copy=copied) for item in value]


def digest(*parts: Any) -> bytes:
    """Return seven bytes that differ for what is written differently."""
    return hashlib.sha256(repr(parts).encode()).digest()[:7]
