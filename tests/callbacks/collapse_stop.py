"""Fails behind a batch, after the collector has taken its features."""

from lightning.pytorch import Callback

from lit_hass.errors import RunError


class Stop(Callback):
    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == self.batch:
            raise RunError("told to fail")

    def on_predict_batch_end(self, *args):
        self.on_test_batch_end(*args)
