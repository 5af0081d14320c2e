"""Doing something on one rank and telling all of them, also when it fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from lit_hass.errors import RunError, UserError

T = TypeVar("T")


def on_rank_zero(trainer: Any, action: Callable[[], T]) -> T:
    """Run ``action`` on rank 0 and return its result on every rank; a collective call.

    A rank that did not hear of an error on rank 0 would wait for it, so errors are shared like results.

    Args:
        trainer: a Lightning Trainer whose processes can talk to each other.
        action: returns something that can be pickled.

    Raises:
        UserError: ``action`` raised it on rank 0.
        RunError: likewise.
    """
    said: tuple[str, Any] = ("", None)
    if trainer.is_global_zero:
        try:
            said = ("value", action())
        except UserError as error:
            said = ("user", str(error))
        except RunError as error:
            said = ("run", str(error))
    kind, value = trainer.strategy.broadcast(said)
    if kind == "user":
        raise UserError(value)
    if kind == "run":
        raise RunError(value)
    return value
