"""Two processes whose shares of the validation tables differ in size: the numbers are those of one process."""

import json

import pytest

from tests.modules.test_two_ranks import run

FIT = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from callbacks import ModelExport
from lit_hass.data import HTMLToTSVDataModule
from lit_hass.modules import DraftTrainingModule
base, folder, ranks = sys.argv[1], sys.argv[2], int(sys.argv[3])
seed_everything(0, verbose=False)
best = ModelCheckpoint(f"{folder}/checkpoints{ranks}", monitor="val/acceptance_length", mode="max")
trainer = Trainer(accelerator="cpu", devices=ranks, strategy="ddp_fork" if ranks > 1 else "auto", logger=False,
    enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False, max_steps=4,
    val_check_interval=2, check_val_every_n_epoch=None, num_sanity_val_steps=0, default_root_dir=f"{folder}/{ranks}",
    callbacks=[best, ModelExport("draft", "float32")], gradient_clip_val=0.5, gradient_clip_algorithm="value")
data = HTMLToTSVDataModule(tokens_per_batch=48, validation=7, validation_difficulties=["2x2-plain", "3x3"])
module = DraftTrainingModule(base, lr=0.0, chain=3, validation_prompts=7, validation_max_new_tokens=12)
trainer.fit(module, datamodule=data)
if trainer.is_global_zero:
    found = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val")}
    open(f"{folder}/metrics{ranks}.json", "w").write(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.ddp
def test_two_ranks_validate_like_one(tmp_path, tiny_base):
    for ranks in (1, 2):
        run(FIT, tiny_base, tmp_path, ranks)
        assert (tmp_path / str(ranks) / "draft/model.safetensors").is_file()
    one, two = (json.loads((tmp_path / f"metrics{ranks}.json").read_text()) for ranks in (1, 2))
    assert one.keys() == two.keys() and len(one) == 2 * 8 + 1
    for key, value in one.items():
        assert two[key] == pytest.approx(value, rel=1e-5, nan_ok=True), key
