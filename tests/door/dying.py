"""A module that dies as a process may die, to see what the others make of it."""

import os
import signal

from lit_hass.modules import GenerationModule


class DyingModule(GenerationModule):
    """Ends one rank at its second batch, as the environment says."""

    def predict_step(self, batch, batch_idx):
        if batch_idx == 1 and os.environ.get("DIES") == str(self.trainer.global_rank):
            if os.environ["HOW"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("told to fail")
        return super().predict_step(batch, batch_idx)
