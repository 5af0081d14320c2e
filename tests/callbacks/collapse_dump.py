"""Writes what a collector found, so that a test can read it from a run of its own process."""

from pathlib import Path

from lightning.pytorch import Callback

from callbacks import CollapseCollector
from lit_hass.records import write_json


class CollapseDump(Callback):
    def on_test_end(self, trainer, pl_module):
        self.on_predict_end(trainer, pl_module)

    def on_predict_end(self, trainer, pl_module):
        folder = trainer.log_dir  # a collective call
        for collector in trainer.callbacks:
            if isinstance(collector, CollapseCollector):
                metrics = collector.get_collapse_metrics()
                ids, counts, means = collector.class_means(3)
                metrics["class_means"] = [ids, counts, means]
                metrics["class_quantities"] = collector.class_quantities()
                if trainer.is_global_zero:
                    write_json(Path(folder, collector.method or "", "dump.json"), metrics)
