"""Writing the best model of a training run as a folder that ``load_base`` reads."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_hass.errors import UserError
from lit_hass.records.atomic import write_folder

log = logging.getLogger(__name__)


class ModelExport(Callback):
    """At the end of a fit, write the best checkpoint's model in its own format under the run's folder.

    The module must have ``save_pretrained(folder, dtype)``. The best is what the run's `ModelCheckpoint` monitored;
    without one it is the last state. The folder is there whole or not at all, and none that was there before a training
    began is written over.

    Args:
        folder: name of the folder below the run's folder.
        dtype: of the weights on disk.
    """

    def __init__(self, folder: str = "model", dtype: Literal["float16", "bfloat16", "float32"] = "float16") -> None:
        """See the class."""
        if Path(folder).name != folder:
            raise UserError(f"ModelExport.folder is a name below the run's folder, not a path: {folder!r}")
        self.folder = folder
        self.dtype: torch.dtype = getattr(torch, dtype)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a place where there is something already, unless the training that made it goes on.

        Raises:
            UserError: names it.
        """
        # Asking for the run's folder is a collective call, so every rank does.
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.folder
        if not trainer.ckpt_path and not trainer.fast_dev_run and folder.exists():  # type: ignore[attr-defined]
            raise UserError(
                f"{folder} is there already; give ModelExport.folder another name, or the run another folder"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the best weights and write them (rank 0); not of a trial run."""
        checkpoint = trainer.checkpoint_callback
        best = checkpoint.best_model_path if isinstance(checkpoint, ModelCheckpoint) else ""
        if best:
            pl_module.load_state_dict(torch.load(best, map_location="cpu", weights_only=True)["state_dict"])
        folder = Path(trainer.log_dir or trainer.default_root_dir) / self.folder
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            write_folder(folder, lambda path: pl_module.save_pretrained(path, self.dtype))  # type: ignore[operator]
            log.info("wrote %s (%s)", folder, f"from {best}" if best else "the last state")
