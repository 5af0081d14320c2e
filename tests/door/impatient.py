"""The door with seconds of patience where it has minutes, and a module that keeps the other rank waiting for longer."""

import os
import sys
import time
from datetime import timedelta

from lit_hass import cli
from lit_hass.__main__ import main
from lit_hass.modules import GenerationModule

cli.MEETING_TIMEOUT = timedelta(seconds=float(os.environ.get("MEETING", "600")))


class SlowModule(GenerationModule):
    """Waits at its first batch on rank 1, so long as the environment says."""

    def predict_step(self, batch, batch_idx):
        if batch_idx == 0 and self.trainer.global_rank == 1:
            time.sleep(float(os.environ["WAITS"]))
        return super().predict_step(batch, batch_idx)


if __name__ == "__main__":
    sys.exit(main())
