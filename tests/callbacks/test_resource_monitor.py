"""`ResourceMonitor`: what it logs and writes in each kind of run, and after an error."""

import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from callbacks import AnswerWriter, ResourceMonitor
from lit_hass.data import QuestionDataModule
from lit_hass.data.batches import TokenBatch
from lit_hass.errors import UserError
from lit_hass.modules import GenerationModule
from tests.callbacks.collapse_runs import ask


def trainer_of(folder: Path, *callbacks, **settings) -> Trainer:
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    logger = TensorBoardLogger(folder, "run", 0, default_hp_metric=False)
    return Trainer(accelerator="cpu", devices=1, logger=logger, callbacks=list(callbacks), **quiet, **settings)


def written(folder: Path):
    return json.loads((folder / "run" / "version_0" / "resources.json").read_text(), parse_constant=pytest.fail)


def scalars(folder: Path):
    board = EventAccumulator(str(folder / "run" / "version_0"), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in board.Tags()["scalars"] if tag.startswith("resources/")]
    return {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in tags}


def test_a_predict_run(tiny_base: Path, tmp_path: Path) -> None:
    monitor = ResourceMonitor(every_seconds=0)
    trainer = trainer_of(tmp_path, AnswerWriter(), monitor)
    module = GenerationModule(str(tiny_base), max_new_tokens=6, warmup=0)
    trainer.predict(module, datamodule=QuestionDataModule(str(ask(tmp_path, 3))), return_predictions=False)
    found = written(tmp_path)
    assert found == json.loads(json.dumps(monitor.resources)) and found["finished"] and found["stage"] == "predict"
    (rank,) = found["ranks"]
    answers = [json.loads(line) for line in (tmp_path / "run/version_0/answers.jsonl").read_text().splitlines()]
    tokens = sum(n for answer in answers for choice in answer["choices"] for n in choice["new_tokens"])
    assert (rank["rank"], rank["batches"], rank["questions"], rank["tokens"]) == (0, 3, 3, tokens)
    assert rank["host"]["peak_bytes"] >= rank["host"]["current_bytes"] > 100 * 2**20
    assert rank["host"]["total_bytes"] > rank["host"]["peak_bytes"] and 0 < rank["host"]["mean_cpus"]
    assert rank["device"]["type"] == "cpu" and rank["device"]["peak_bytes"] is None
    assert rank["device"]["utilization_unknown"] == "no GPU"
    throughput = rank["throughput"]
    assert throughput["tokens_per_second"] / throughput["questions_per_second"] == pytest.approx(tokens / 3)
    assert 3 / throughput["batches_per_second"] <= rank["seconds"]
    logged = scalars(tmp_path)
    assert set(logged) == {
        f"resources/{name}"
        for name in (
            "host_mib", "host_peak_mib", "cpus", "batches_per_second", "tokens_per_second", "questions_per_second",
        )
    }  # fmt: skip
    assert all([step for step, _ in points] == [1, 2, 3] for points in logged.values())
    assert 100 < logged["resources/host_mib"][-1][1] <= logged["resources/host_peak_mib"][-1][1] * 1.0001


class Sums(LightningModule):
    """The least that can be trained on token batches; fails in a batch, if asked to."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight, self.fail_at = torch.nn.Parameter(torch.ones(())), fail_at

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fail_at:
            raise RuntimeError("broken batch")
        return self.weight * batch.input_ids.float().mean()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(batches: int = 4):
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    batch = TokenBatch(torch.ones(2, 3, dtype=torch.int64), mask, torch.ones(2, 3, dtype=torch.int64))
    return DataLoader([batch] * batches, batch_size=None)


def test_a_training_counts_its_own_batches_and_real_tokens(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, ResourceMonitor(0), max_epochs=2)
    trainer.fit(Sums(), loader(), loader(3))
    (rank,) = written(tmp_path)["ranks"]
    assert written(tmp_path)["stage"] == "fit" and (rank["batches"], rank["tokens"]) == (8, 8 * 4)
    assert rank["questions"] == 0 and rank["throughput"]["questions_per_second"] is None
    assert [step for step, _ in scalars(tmp_path)["resources/tokens_per_second"]] == list(range(1, 9))


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_other_stages(tmp_path: Path, stage: str) -> None:
    getattr(trainer_of(tmp_path, ResourceMonitor(0)), stage)(Sums(), loader(), verbose=False)
    (rank,) = written(tmp_path)["ranks"]
    assert written(tmp_path)["stage"] == stage and (rank["batches"], rank["tokens"]) == (4, 16)


def test_after_an_error_what_was_seen_is_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="broken batch"):
        trainer_of(tmp_path, ResourceMonitor(0), max_epochs=1).fit(Sums(fail_at=2), loader())
    found = written(tmp_path)
    assert found["finished"] is False and found["ranks"][0]["batches"] == 2


def test_a_full_disk_does_not_hide_the_error(tmp_path: Path, caplog) -> None:
    monitor = ResourceMonitor(0)

    class Obstacle(Callback):
        def on_train_start(self, trainer, pl_module):
            monitor._folder = Path("/dev/null")

    with pytest.raises(RuntimeError, match="broken batch"):
        trainer_of(tmp_path, monitor, Obstacle(), max_epochs=1).fit(Sums(fail_at=2), loader())
    assert "no resources are recorded: cannot write" in caplog.text


def test_looks_are_not_more_frequent_than_asked(tmp_path: Path) -> None:
    trainer_of(tmp_path, ResourceMonitor(3600), max_epochs=1).fit(Sums(), loader())
    assert [step for step, _ in scalars(tmp_path)["resources/host_mib"]] == [1]
    assert written(tmp_path)["ranks"][0]["samples"] == 2  # and one at the end


def test_a_trial_run_writes_nothing_and_bad_settings_are_refused(tmp_path: Path) -> None:
    monitor = ResourceMonitor(0)
    trainer_of(tmp_path, monitor, fast_dev_run=True).fit(Sums(), loader())
    assert not list(tmp_path.rglob("resources.json")) and monitor.resources["finished"]
    for bad in (-1, float("inf"), float("nan")):
        with pytest.raises(UserError, match="every_seconds"):
            ResourceMonitor(bad)
