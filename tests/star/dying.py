"""A module that dies as a process may die."""

import os
import signal

from lit_hass.modules import RationaleModule


class DyingRationaleModule(RationaleModule):
    """Is killed at its second batch of training questions on the rank that the environment names."""

    def predict_step(self, batch, batch_idx):
        if batch_idx == 1 and os.environ.get("DIES") == str(self.trainer.global_rank):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().predict_step(batch, batch_idx)
