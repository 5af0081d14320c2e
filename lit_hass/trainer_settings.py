"""The Trainer's settings that do not work here: made to work, or refused in one line that says what to type."""

from __future__ import annotations

import logging
import os
import pkgutil
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ProgressBar

from lit_hass.errors import UserError

log = logging.getLogger(__name__)

#: Strategies that share a model's weights out; our forwards read whole ones.
_SHARDING = ("fsdp", "deepspeed", "model_parallel")


def prepare_settings(verb: str, trainer: Any) -> None:
    """Complete or refuse what was asked of the Trainer, before it is made.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        trainer: the parsed settings; callbacks that cannot be are taken out.

    Raises:
        UserError: a setting that cannot be used; names it and what to use.
    """
    if trainer.barebones:
        raise UserError(
            "trainer.barebones is refused: it takes away the logger and the callbacks, which write all that a run "
            "leaves; --trainer.enable_progress_bar false keeps a run quiet"
        )
    if trainer.enable_progress_bar is False and trainer.callbacks:
        # Our configurations name bars of their own, which Lightning would refuse beside this.
        given = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        trainer.callbacks = [each for each in given if not _is_progress_bar(each)]
    strategy = trainer.strategy
    name = strategy if isinstance(strategy, str) else getattr(strategy, "class_path", "")
    start_method = getattr(getattr(strategy, "init_args", None), "start_method", "") or ""
    if "spawn" in name or "spawn" in start_method:
        raise UserError(
            "trainer.strategy ddp_spawn is refused: its processes share the memory of metric states, which are "
            "then summed twice; use ddp"
        )
    if verb != "fit" and name.rpartition(".")[2].lower().startswith(_SHARDING):
        raise UserError(
            f"trainer.strategy {name} shares each weight out over the devices, and {verb} reads whole ones: "
            "--trainer.strategy ddp puts a model on each device, --model.device_map auto one model on several"
        )
    _check_torchrun(trainer)


def trainer_error(error: Exception, trainer: Any) -> UserError:
    """What Lightning or this machine refused while the Trainer was made, in one line with what to type."""
    text = " ".join(str(error).split())
    if "devices" in text and trainer.devices is not None:
        hint = f"; found --trainer.devices {trainer.devices}, and a CPU takes a number from 1 on: --trainer.devices 1"
    elif "requires a GPU" in text:
        hint = "; --trainer.strategy ddp works on CPUs too"
    else:
        hint = ""
    return UserError(f"trainer: {text}{hint}")


def check_limits(verb: str, trainer: Trainer) -> None:
    """Refuse, or warn of, limits that leave out what a result needs.

    A number of batches (an integer, also 1) stops a run that can be resumed; 1.0 is the share of all of them.

    Raises:
        UserError: a share of the windows of a perplexity.
    """
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    windows, batches = trainer.limit_test_batches, trainer.limit_predict_batches
    if verb == "test" and _is_limit(windows):
        if isinstance(windows, float):
            raise UserError(
                f"trainer.limit_test_batches {windows}: the perplexity of some windows is none: leave it out, or give "
                "a shorter text"
            )
        log.warning(
            "trainer.limit_test_batches %d ends the run after so many batches, without a result: the same command "
            "without it, but with this run's version, goes on",
            windows,
        )
    if verb == "predict" and _is_limit(batches):
        log.warning(
            "trainer.limit_predict_batches %s leaves the questions of all further batches without answers, and the run "
            "unfinished: the same command without it, but with this run's version, goes on; --data.question_end N "
            "takes a part instead",
            batches,
        )


def _is_limit(batches: int | float | None) -> bool:
    """Whether it is less than all: 1 is one batch, and equal to 1.0."""
    return batches is not None and (isinstance(batches, int) or batches != 1.0)


def _check_torchrun(trainer: Any) -> None:
    """Under torchrun the Trainer must be told of the machines that torchrun knows."""
    nodes, here = os.environ.get("GROUP_WORLD_SIZE", ""), os.environ.get("LOCAL_WORLD_SIZE", "")
    if "TORCHELASTIC_RUN_ID" not in os.environ or not nodes.isdigit() or not here.isdigit():
        return
    if int(nodes) != int(trainer.num_nodes):
        raise UserError(
            f"torchrun started processes on {nodes} machines, and trainer.num_nodes is {trainer.num_nodes}: "
            f"add --trainer.num_nodes {nodes} --trainer.devices {here} --trainer.strategy ddp"
        )


def _is_progress_bar(callback: Any) -> bool:
    name = getattr(callback, "class_path", None)
    try:
        kind = pkgutil.resolve_name(name) if isinstance(name, str) else type(callback)
    except (ImportError, AttributeError, ValueError):
        return False
    return isinstance(kind, type) and issubclass(kind, ProgressBar)
