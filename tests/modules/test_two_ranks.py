"""Two processes on one machine whose shares of the work differ in size. Each case takes some 20 seconds."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lit_hass.records import RunFolder, read_answers

ROOT = Path(__file__).resolve().parents[2]

HEAD = """
import sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
seed_everything(0, verbose=False)
base, folder, ranks = sys.argv[1], sys.argv[2], int(sys.argv[3])
common = dict(accelerator="cpu", devices=ranks, strategy="ddp_fork" if ranks > 1 else "auto",
    enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False)
"""

PREDICT = (
    HEAD
    + """
from callbacks import AnswerWriter
from lit_hass.data import QuestionDataModule
from lit_hass.modules import GenerationModule
trainer = Trainer(logger=TensorBoardLogger(folder, "run", 0), callbacks=[AnswerWriter()], **common)
module = GenerationModule(base, max_new_tokens=3, warmup=1)
trainer.predict(module, datamodule=QuestionDataModule(folder + "/q.jsonl"), return_predictions=False)
"""
)

# 7 tables to validate on in batches of few tokens: the ranks have different numbers of batches.
FIT = (
    HEAD
    + """
import json
from lit_hass.data import HTMLToTSVDataModule
from lit_hass.modules import LanguageModelingModule
from lightning.pytorch import Callback
class NoSync(Callback):
    # gloo forgives a broadcast that only one rank takes part in, NCCL waits for the other for ever
    def on_validation_start(self, trainer, pl_module):
        if ranks > 1:
            sizes = [None] * ranks
            torch.distributed.all_gather_object(sizes, trainer.num_val_batches)
            assert sizes[0] != sizes[1]
            assert not trainer.strategy.model.will_sync_module_buffers()
trainer = Trainer(logger=False, callbacks=[NoSync()], max_steps=4, val_check_interval=2, check_val_every_n_epoch=None,
    num_sanity_val_steps=0, default_root_dir=folder, **common)
data = HTMLToTSVDataModule(base, tokens_per_batch=48, validation=7, validation_difficulties=["2x2-plain", "3x3"])
module = LanguageModelingModule(base=base, lr=0.0, warmup_steps=1)
trainer.fit(module, datamodule=data)
if trainer.is_global_zero:
    found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
    open(f"{folder}/metrics{ranks}.json", "w").write(json.dumps(found))
"""
)


def run(code: str, *arguments: object) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that a hang can be ended with its children
    )
    try:
        _, errors = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, errors = process.communicate()
        pytest.fail(f"the ranks wait for each other: {errors[-2000:]}")
    assert process.returncode == 0, errors[-3000:]


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.parametrize("count", [1, 3])
def test_a_rank_with_fewer_questions_or_none_does_not_hold_up_the_run(tiny_base, tmp_path, count: int) -> None:
    lines = [json.dumps({"question_id": i, "turns": [f"row {i}"]}) for i in range(count)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines), encoding="utf-8")
    run(PREDICT, tiny_base, tmp_path, 2)
    folder = RunFolder(tmp_path / "run" / "version_0")
    assert [a["question_id"] for a in read_answers(folder.answers)] == list(range(count)) and folder.is_finished


@pytest.mark.slow
@pytest.mark.ddp
def test_validation_on_two_ranks_is_that_on_one(tiny_base, tmp_path) -> None:
    for ranks in (1, 2):
        run(FIT, tiny_base, tmp_path, ranks)
    one, two = (json.loads((tmp_path / f"metrics{ranks}.json").read_text()) for ranks in (1, 2))
    assert len(one) == 8 and two == pytest.approx(one, rel=1e-5)
