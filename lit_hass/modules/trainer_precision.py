"""A Trainer's precision, where the base's own dtype is what decides."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.plugins import BitsandbytesPrecision

from lit_hass.errors import UserError

_DTYPES = {"bf16": "bfloat16", "16": "float16", "64": "float64"}


def refuse_trainer_precision(trainer: Any) -> None:
    """Refuse a precision that answers and likelihoods do not have.

    They are computed in the dtype of the base's weights, which ``model.dtype`` says and the run's key and report hold.
    A precision of the Trainer beside it would either be ignored, or make numbers that are not what they are called.

    Args:
        trainer: of Lightning.

    Raises:
        UserError: it is not ``32-true``; says what to type.
    """
    precision = str(getattr(trainer, "precision", "32-true"))
    plugin = getattr(trainer, "precision_plugin", None)
    quantised = isinstance(plugin, BitsandbytesPrecision)
    if precision == "32-true" and not quantised:
        return
    wanted = _DTYPES.get(precision.split("-")[0])
    cure = f"--model.dtype {wanted}" if wanted and not quantised else "model.dtype"
    name = type(plugin).__name__ if quantised else precision
    raise UserError(
        f"trainer.precision {name} does not reach the base, which computes in its weights' own dtype: leave "
        f"trainer.precision at 32-true and use {cure}"
    )
