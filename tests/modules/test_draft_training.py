import json
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from callbacks import ModelExport
from lit_hass.data import ConversationDataModule, HTMLToTSVDataModule, TextDataModule
from lit_hass.data.batches import collate
from lit_hass.errors import RunError, UserError
from lit_hass.models import DraftModel, load_base, load_draft
from lit_hass.modules import DraftTrainingModule
from lit_hass.modules.draft_loss import DraftLossConfig
from lit_hass.modules.draft_rows import DraftRows
from lit_hass.modules.draft_validation import depth_acceptance
from tests.decoding.tiny_models import build
from tests.door.conftest import ROOT, door, questions  # noqa: F401  # fixtures
from tests.surroundings import SURROUNDINGS


def table_data(**more):
    return HTMLToTSVDataModule(
        **{"tokens_per_batch": 200, "validation": 4, "validation_difficulties": ["2x2-plain"], **more}
    )


def trainer(tmp_path, callbacks=(), logger=False, **more):
    settings = {"max_steps": 4, "val_check_interval": 2, "gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    return Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, log_every_n_steps=1, callbacks=list(callbacks),
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), use_distributed_sampler=False,
        logger=TensorBoardLogger(tmp_path, name="", version="run") if logger else False, **{**settings, **more},
    )  # fmt: skip


def module(tiny_base, **more):
    settings = {"base": str(tiny_base), "chain": 3, "validation_prompts": 3, "validation_max_new_tokens": 12}
    return DraftTrainingModule(**{**settings, "warmup_steps": 2, **more})


def best(folder):
    return ModelCheckpoint(folder, "best-{step}", monitor="val/acceptance_length", mode="max")


def last(folder):
    return ModelCheckpoint(folder, save_top_k=0, save_last=True, every_n_train_steps=2)


@pytest.fixture
def seeded():
    seed_everything(3)


class _Data(LightningDataModule):
    """The same few batches again and again."""

    def __init__(self, batches):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(self.batches * 200, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def test_a_run_writes_a_draft_that_loads(tiny_base, tmp_path, seeded):
    model = module(tiny_base, feature_noise=0.05)
    calls = [best(tmp_path / "checkpoints"), ModelExport("draft", "float32")]
    run = trainer(tmp_path, calls, logger=True)
    run.fit(model, datamodule=table_data())
    base = load_base(tiny_base)
    draft = load_draft(tmp_path / "run/draft", base)
    stored = torch.load(calls[0].best_model_path, weights_only=True)
    for key, value in draft.state_dict().items():
        assert torch.equal(value, stored["state_dict"][f"draft.{key}"]), key
    assert torch.equal(draft.embed_tokens.weight, base.get_input_embeddings().weight)
    # The base is in none of it, and nobody trains it or the embedding.
    assert {key.split(".")[0] for key in stored["state_dict"]} == {"draft"}
    numbers = [len(group["params"]) for group in stored["optimizer_states"][0]["param_groups"]]
    assert sum(numbers) == len([p for p in model.draft.parameters() if p.requires_grad]) == 10
    assert all(p.grad is None for p in model.base.model.parameters())
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    for tag in ("train/loss", "train/feature_loss", "train/soft_loss", "train/top_k_loss", "train/agreement_3"):
        assert tag in tags
    for depth in (1, 2, 3):
        assert {f"val/2x2-plain/agreement_{depth}", f"val/2x2-plain/acceptance_{depth}"} <= tags
    assert {"val/2x2-plain/acceptance_length", "val/acceptance_length", "val/2x2-plain/loss"} <= tags
    assert all(1 <= event.value <= 4 for event in events.Scalars("val/acceptance_length"))


class _Killed(Exception):
    """What ends a run in the middle."""


class _Killer(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 5:
            raise _Killed


def test_a_killed_run_resumes_to_the_same_weights(tiny_base, tmp_path):
    def run(folder, callbacks=(), ckpt_path=None):
        seed_everything(7)
        model = module(tiny_base, feature_noise=0.1)
        runner = trainer(folder, [best(folder / "checkpoints"), last(folder / "checkpoints"), *callbacks], max_steps=8)
        runner.fit(model, datamodule=table_data(), ckpt_path=ckpt_path)
        return model.draft.state_dict()

    whole = run(tmp_path / "whole")
    with pytest.raises(_Killed):
        run(tmp_path / "killed", [_Killer()])
    assert torch.load(tmp_path / "killed/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    resumed = run(tmp_path / "killed", ckpt_path=tmp_path / "killed/checkpoints/last.ckpt")
    for key, value in whole.items():
        assert torch.equal(value, resumed[key]), key


def test_training_makes_a_draft_better(tiny_base, tmp_path, seeded):
    """On one batch again and again: the loss falls, and the chain becomes longer."""
    ids = torch.randint(10, 500, (4, 24), generator=torch.Generator().manual_seed(0)).tolist()
    model = module(tiny_base, lr=1e-2)
    losses = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    runner = trainer(tmp_path, [Watch()], max_steps=60, val_check_interval=60)
    runner.fit(model, datamodule=_Data([collate([(row, 4) for row in ids])]))
    assert losses[-1] < 0.7 * losses[0]
    assert runner.callback_metrics["val/0/agreement_1"] > 0.3


def test_the_second_stage_starts_from_the_first(tiny_base, tmp_path, seeded):
    draft = DraftModel.from_base(load_base(tiny_base), intermediate_size=20)
    draft.save_pretrained(tmp_path / "draft")
    model = module(tiny_base, draft=str(tmp_path / "draft"), lr=0.0, loss=DraftLossConfig(top_k_weight=0.0))
    trainer(tmp_path, max_steps=2).fit(model, datamodule=table_data())
    for key, value in draft.state_dict().items():
        assert torch.equal(value, model.draft.state_dict()[key])
    assert model.draft.config.intermediate_size == 20
    assert model.hparams["loss"]["top_k_weight"] == 0.0


def test_mixed_precision(tiny_base, tmp_path, seeded):
    model = module(tiny_base, base_dtype="bfloat16")
    runner = trainer(tmp_path, max_steps=2, precision="bf16-mixed")
    runner.fit(model, datamodule=table_data())
    assert model.draft.dtype == torch.float32 and model.base.model.dtype == torch.bfloat16
    assert math.isfinite(runner.callback_metrics["val/acceptance_length"])


def test_plain_text(tiny_base, tmp_path, seeded):
    (tmp_path / "text.txt").write_text("one two three four five six seven eight nine ten\n" * 60)
    data = TextDataModule([str(tmp_path / "text.txt")], str(tiny_base), block_size=16)
    runner = trainer(tmp_path, max_steps=2)
    runner.fit(module(tiny_base), datamodule=data)
    assert math.isfinite(runner.callback_metrics["val/acceptance_length"])


def test_conversations(tiny_base, tmp_path, seeded):
    lines = [{"question_id": i, "turns": [f"{i}?", "and?"], "reference": [f"{i}.", "no."]} for i in range(30)]
    (tmp_path / "talk.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runner = trainer(tmp_path, max_steps=2)
    runner.fit(module(tiny_base), datamodule=ConversationDataModule(str(tmp_path / "talk.jsonl"), validation_share=0.2))
    assert math.isfinite(runner.callback_metrics["val/conversations/acceptance_length"])


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_learning_rate(tiny_base, tmp_path, decay):
    rates = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    ids = [list(range(10, 20))]
    model = module(tiny_base, lr=1.0, warmup_steps=4, final_lr=0.1, decay=decay)
    runner = trainer(tmp_path, [Watch()], max_steps=12, limit_val_batches=0)
    runner.fit(model, datamodule=_Data([collate([(row, 2) for row in ids])]))
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    middle = 0.1 + 0.9 * 0.5
    assert rates[8] == pytest.approx(middle)
    assert rates[6] == pytest.approx(0.1 + 0.9 * (0.75 if decay == "linear" else 0.5 * (1 + math.cos(math.pi / 4))))


def test_a_loss_that_is_no_number_stops_with_the_batch(tiny_base, tmp_path, seeded):
    batch = collate([(list(range(10, 20)), 3)])

    class Poison(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 1:
                with torch.no_grad():
                    pl_module.draft.fc.weight.fill_(float("nan"))

    with pytest.raises(RunError, match="loss is nan at step 1; the batch is saved as") as caught:
        trainer(tmp_path, [Poison()], limit_val_batches=0).fit(module(tiny_base), datamodule=_Data([batch]))
    path = tmp_path / "bad_batch_step1_rank0.pt"
    assert str(path) in str(caught.value)
    saved = torch.load(path, weights_only=True)
    assert torch.equal(saved["input_ids"], batch.input_ids) and torch.equal(saved["labels"], batch.labels)


def test_batches_without_a_row_to_train_on(tiny_base, tmp_path, seeded, monkeypatch):
    empty, full = collate([([10, 11], 0), ([10, 11, 12], 3)]), collate([(list(range(10, 20)), 3)])
    model = module(tiny_base)
    trainer(tmp_path, max_steps=3, val_check_interval=3).fit(model, datamodule=_Data([empty, full]))
    assert all(bool(p.isfinite().all()) for p in model.draft.parameters())
    monkeypatch.setattr("lit_hass.modules.draft_training._BARREN", 3)
    with pytest.raises(UserError, match="the first 3 batches have no token to train on"):
        trainer(tmp_path, limit_val_batches=0).fit(module(tiny_base), datamodule=_Data([empty]))


def test_noise_is_for_inputs_only_and_follows_the_length(tiny_base, tmp_path, seeded):
    batch = collate([(list(range(10, 40)), 2), (list(range(10, 25)), 2)])
    model = module(tiny_base, feature_noise=0.2)
    seen = []
    forward = model.forward

    def watch(rows, steps=None):
        seen.append(rows)
        return forward(rows, steps)

    model.forward = watch
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(model, datamodule=_Data([batch]))
    clean = DraftRows.of(batch, model.base.features(batch.input_ids))
    first, second = (rows.features - clean.features for rows in seen)
    assert all(torch.equal(rows.targets, clean.targets) for rows in seen)
    assert not torch.equal(first, second)
    for row, tokens in enumerate((30, 15)):
        assert 0.9 < first[row].abs().max() / (0.1 * 512 / tokens) <= 1.0001


def test_the_data_must_speak_the_bases_language(tiny_base, tmp_path):
    with pytest.raises(UserError, match="another tokenizer"):
        trainer(tmp_path).fit(module(tiny_base), datamodule=table_data(tokenizer="html_to_tsv"))


def test_a_draft_of_another_width(tiny_base, tmp_path):
    config = build("llama").config
    config.hidden_size = 16
    from transformers import LlamaForCausalLM

    DraftModel.from_base(LlamaForCausalLM(config)).save_pretrained(tmp_path / "draft")
    with pytest.raises(UserError, match="hidden size is 16 .* the base's is 32"):
        trainer(tmp_path).fit(module(tiny_base, draft=str(tmp_path / "draft")), datamodule=table_data())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"steps": 0}, "model.steps must be at least 1"),
        ({"chain": 0}, "model.chain must be at least 1"),
        ({"feature_noise": -0.1}, "feature_noise must not be negative"),
        ({"draft": "somewhere", "draft_settings": {"intermediate_size": 8}}, "draft_settings are for a fresh draft"),
    ],
)
def test_settings_that_are_refused(tiny_base, settings, words):
    with pytest.raises(UserError, match=words):
        module(tiny_base, **settings)


def test_a_base_that_is_not_there():
    with pytest.raises(UserError, match="no such folder"):
        DraftTrainingModule("./nowhere").check()


def test_the_door_takes_another_base_and_other_conversations(door, questions, tiny_base):  # noqa: F811
    small = ("--trainer.max_steps", 2, "--trainer.val_check_interval", 2, "--trainer.enable_progress_bar", "false")
    result = door(
        "fit", "-c", ROOT / "configs/train_draft.yaml", "--model.base", tiny_base, "--model.validation_prompts", 2,
        "--data", "ConversationDataModule", "--data.path", questions(30), "--data.validation_share", 0.2, *small,
    )  # fmt: skip
    assert result.status == 0, result.err
    load_draft("logs/train_draft/version_0/draft", load_base(tiny_base))


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [("--model.base", "./nowhere", "nowhere: no such folder"), ("--model.loss.top_k", 0, "model.loss: weights")],
)
def test_the_door_refuses_in_one_line(door, option, value, words):  # noqa: F811
    result = door("fit", "-c", ROOT / "configs/train_draft.yaml", option, value)
    assert result.status == 2 and words in result.err


def test_chains_are_counted_beyond_what_half_precision_counts():
    right, mask = torch.ones(3, 3000, dtype=torch.bool), torch.ones(3, 1000, dtype=torch.bool)
    with SURROUNDINGS["bf16-true"]():
        reached, accepted = depth_acceptance(right, mask)
    assert reached.tolist() == accepted.tolist() == [3000.0, 2997.0, 2994.0]
