"""One pass over the questions, and one training: each can be killed at any moment and goes on when asked again."""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.utilities import rank_zero_only

from callbacks.correct_data_writer import CorrectDataWriter
from callbacks.generation_progress import GenerationProgressBar
from lit_hass.checkpoints import AtomicCheckpointIO
from lit_hass.data.commonsense_qa_datamodule import CommonsenseQADataModule
from lit_hass.data.completion_datamodule import CompletionDataModule
from lit_hass.errors import RunError
from lit_hass.modules.language_modeling import LanguageModelingModule
from lit_hass.modules.out_of_memory import is_out_of_memory
from lit_hass.modules.rationale import RationaleModule
from lit_hass.ranks import on_rank_zero
from lit_hass.records import read_object
from lit_hass.records.atomic import write_folder
from lit_hass.records.predictions import Prediction, PredictionFolder
from lit_hass.star.settings import FitSettings, Settings, TrainerSettings

log = logging.getLogger(__name__)


def on_first_rank() -> bool:
    """Whether this process is rank 0 of its run, asked before there is a process group."""
    return getattr(rank_zero_only, "rank", 0) == 0


def predict_pass(
    settings: Settings, folder: Path, module: RationaleModule, data: CommonsenseQADataModule
) -> tuple[list[Prediction], dict[str, Any]]:
    """Answer the questions of ``data`` into ``folder``, unless that is done already.

    Returns:
        the predictions in the questions' order, and the pass's statistics; the same on every rank.
    """
    place = PredictionFolder(folder)
    if not (place.is_finished and place.metrics.exists()):
        callbacks = [CorrectDataWriter(str(folder)), GenerationProgressBar()]
        trainer = _trainer(settings.trainer, callbacks, enable_progress_bar=True)
        trainer.predict(module, datamodule=data, return_predictions=False)
    return place.read(), read_object(place.metrics) or {}


def train_on(settings: Settings, folder: Path, base: str, iteration: int, max_length: int) -> dict[str, Any]:
    """Train ``base`` on ``folder/correct.jsonl`` and write the model as ``folder/checkpoint``.

    Returns:
        steps, seconds of this process's share of the training, rows left out as too long, and the last loss.
    """
    fit: FitSettings = settings.fit
    steps = fit.steps_of(iteration)
    started = time.perf_counter()
    # The same training wherever it is resumed: what is random is drawn from the seed and the step.
    seed_everything(settings.seed + iteration, verbose=False)
    module = LanguageModelingModule(
        base=base,
        lr=fit.lr,
        warmup_steps=fit.warmup_steps,
        final_lr=fit.final_lr,
        weight_decay=fit.weight_decay,
    )
    data = CompletionDataModule(
        str(PredictionFolder(folder).correct),
        tokenizer=base,
        max_length=max_length,
        batch_size=fit.batch_size,
        seed=settings.seed + iteration,
    )
    resume = folder / "training.ckpt"
    checkpoints = _Checkpoints(resume, fit.checkpoint_every)
    trainer = _trainer(
        settings.trainer,
        [checkpoints],
        enable_progress_bar=False,
        max_steps=steps,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        precision=settings.trainer.precision,
    )
    if resume.exists() and on_first_rank():
        log.info("iteration %d: resuming its training", iteration)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=str(resume) if resume.exists() else None)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory while training with {fit.batch_size} completions a step; "
            f"--fit.batch_size {max(1, fit.batch_size // 2)} needs about half; run the same command again to go on"
        ) from error
    if trainer.global_step < steps:
        raise RunError(f"the training of iteration {iteration} ended at step {trainer.global_step} of {steps}")
    dtype = getattr(torch, fit.dtype)
    on_rank_zero(trainer, lambda: write_folder(folder / "checkpoint", lambda path: module.save_pretrained(path, dtype)))
    return {
        "steps": steps,
        "seconds": time.perf_counter() - started,
        "skipped_long": data.skipped_long,
        "loss": checkpoints.loss,
    }


class _Checkpoints(Callback):
    """A checkpoint every so many steps, each moved into the place of the one before.

    It carries the last loss, which a training that was killed after its last step would not see again.
    """

    def __init__(self, path: Path, every: int) -> None:
        self.path, self.every = path, every
        self.loss = math.nan

    def state_dict(self) -> dict[str, Any]:
        return {"loss": self.loss}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loss = state_dict["loss"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step % self.every and step < trainer.max_steps:
            return
        self.loss = float(trainer.callback_metrics["train/loss"])
        trainer.save_checkpoint(self.path)


def _trainer(settings: TrainerSettings, callbacks: list[Callback], **more: Any) -> Trainer:
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=settings.strategy,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        plugins=AtomicCheckpointIO(),
        **more,
    )
