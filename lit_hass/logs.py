"""Logging: one handler, one logger per module, the level of every verb set by -v and -q."""

from __future__ import annotations

import logging
import os
import sys
import warnings

from lit_hass.terminal import printable

#: Loggers of this project; those of libraries keep to warnings unless everything is asked for.
_OURS = ("lit_hass", "callbacks")


class _ShortName(logging.Formatter):
    """``step: message``, where the step is the module's name without the packages before it, or the verb's name."""

    def format(self, record: logging.LogRecord) -> str:
        rank = os.environ.get("LOCAL_RANK") or os.environ.get("RANK")
        prefix = f"[rank {rank}] " if rank not in (None, "0") else ""
        level = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        package, _, module = record.name.rpartition(".")
        step = package.rpartition(".")[2] if module == "verb" else module.removesuffix("_verb")
        text = f"{prefix}{step}: {level}{printable(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


def configure_logging(verbosity: int) -> None:
    """Send the project's log to the standard error.

    Args:
        verbosity: -1 and below: warnings only; 0: what was done and written; 1: each step; 2: everything, of all
            libraries.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_ShortName())
    level = logging.WARNING if verbosity < 0 else logging.INFO if verbosity == 0 else logging.DEBUG
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.propagate = False
        logger.setLevel(level)
    if verbosity >= 2:
        logging.basicConfig(level=logging.DEBUG, handlers=[handler], force=True)


def quiet_libraries() -> None:
    """Keep the notes of libraries for whoever asks for detail (-v); call it once they are imported.

    Warnings stay, but for those that speak of what we do on purpose.
    """
    if logging.getLogger(_OURS[0]).level <= logging.DEBUG:
        return
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # What the hub's client tries again is reported once, when it has failed for good.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    for message in (
        # The door takes -v and -q out of the arguments, so it hands over a list.
        ".*LightningCLI's args parameter is intended.*",
        # Our loaders hand over ready batches from memory; workers would only copy them.
        ".*does not have many workers.*",
        # Lightning 2.6 under a newer torch; nothing that a user could change.
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", message=message)
