"""Each metric logged from a LightningModule's test_step on two ranks, and read back from TensorBoard."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_hass.metrics import GNC2, UNC3, CollapseMetrics, SVDEntropy
from tests.metrics.ranks import run_script
from tests.metrics.synthetic import SPECIAL, WIDTH, make, part

SCRIPT = """
import json, sys, warnings
warnings.filterwarnings("ignore")
import torch
torch.set_num_threads(1)
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader
from lit_hass.metrics import CollapseMetrics, GNC2, SVDEntropy, UNC3
from tests.metrics.synthetic import SPECIAL, WIDTH, make, part
folder, precision = sys.argv[1], sys.argv[2]

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(WIDTH, 40, bias=False)
        self.head.weight.data.copy_(make()["lm_head"])
        common = dict(num_features=WIDTH, ignore_ids=SPECIAL)
        self.entropy, self.gnc2 = SVDEntropy(**common), GNC2(**common)
        self.unc3 = UNC3(classifier=lambda: self.head.weight, **common)
        self.entropy_of_classes = SVDEntropy(scope="class", **common)
        self.collapse = CollapseMetrics(classifier=lambda: self.head.weight, keep_rows=True, **common)
        assert "unc3" not in " ".join(self.state_dict()) and len(list(self.parameters())) == 1

    def test_step(self, batch, batch_idx):
        rows = part(make(), batch, "features", "token_ids")
        for name in ("entropy", "gnc2", "unc3", "entropy_of_classes"):
            getattr(self, name).update(**rows)
            self.log(name, getattr(self, name), on_step=False, on_epoch=True)
        self.collapse.update(**rows)

    def on_test_epoch_end(self):
        self.log_dict({f"collapse/{k}": v for k, v in self.collapse.compute().items()})
        for metric in (self.collapse, self.gnc2):
            assert all(v.dtype in (torch.float64, torch.int64) for v in metric.metric_state.values()
                if isinstance(v, torch.Tensor))

class ByRank(torch.utils.data.Sampler):
    def __init__(self, rank):
        self.rows = range(0, 450) if rank == 0 else range(450, 600)
    def __iter__(self):
        return iter(self.rows)
    def __len__(self):
        return len(self.rows)

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 600
    def __getitem__(self, i):
        return i

trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", precision=precision, enable_progress_bar=False,
    enable_model_summary=False, enable_checkpointing=False, use_distributed_sampler=False,
    logger=TensorBoardLogger(folder, "run", 0))

class Module(Model):
    def test_dataloader(self):
        return DataLoader(Data(), batch_size=50, sampler=ByRank(self.trainer.global_rank))

trainer.test(Module(), verbose=False)
if trainer.is_global_zero:
    found = {k: float(v) for k, v in trainer.callback_metrics.items()}
    open(folder + "/metrics.json", "w").write(json.dumps(found))
"""


@pytest.mark.ddp
@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_logged_on_two_ranks_and_read_back(tmp_path, precision):
    run_script(SCRIPT, tmp_path, precision)
    events = EventAccumulator(str(tmp_path / "run" / "version_0"), size_guidance={"scalars": 0})
    events.Reload()
    read = {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}
    data = make()
    # Under bf16-true the module's own weight is bfloat16; the features of this test are not the module's.
    head = data["lm_head"] if precision == "32-true" else data["lm_head"].bfloat16()
    common = {"num_features": WIDTH, "ignore_ids": SPECIAL}
    alone = {
        "entropy": SVDEntropy(**common),
        "gnc2": GNC2(**common),
        "unc3": UNC3(classifier=head, **common),
        "entropy_of_classes": SVDEntropy(scope="class", **common),
        "collapse": CollapseMetrics(classifier=head, keep_rows=True, **common),
    }
    expected = {}
    for name, metric in alone.items():
        metric.update(**part(data, slice(0, 600), "features", "token_ids"))
        value = metric.compute()
        expected |= {f"{name}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {name: value}
    logged = json.loads((tmp_path / "metrics.json").read_text())
    assert len(expected) > 50 and all(math.isfinite(v) for v in expected.values())
    for name, value in expected.items():
        assert logged[name] == pytest.approx(float(value), rel=1e-9, abs=1e-9), name
        assert [event.value for event in read[name]] == [pytest.approx(float(value), rel=1e-6, abs=1e-7)], name
    assert torch.get_default_dtype() == torch.float32
