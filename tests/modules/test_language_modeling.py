import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader
from transformers import Gemma2Config, Gemma2ForCausalLM

from callbacks import ModelExport
from lit_hass.data import HTMLToTSVDataModule, TextDataModule
from lit_hass.data.batches import IGNORE, TokenBatch, collate
from lit_hass.data.html_to_tsv_datamodule import Stage
from lit_hass.errors import RunError, UserError
from lit_hass.models import load_base, load_tokenizer
from lit_hass.modules import LanguageModelingModule

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def module(**arguments) -> LanguageModelingModule:
    arguments = {"architecture": ARCHITECTURE, "lr": 4e-3, "warmup_steps": 5, **arguments}
    return LanguageModelingModule(**arguments)


def data(base: Path, **arguments) -> HTMLToTSVDataModule:
    arguments = {"tokens_per_batch": 256, "curriculum": [Stage("1x2-plain", 1.0)], "validation": 40, **arguments}
    return HTMLToTSVDataModule(tokenizer=str(base), **{"validation_difficulties": ["1x2-plain"], **arguments})


def trainer(folder: Path, steps: int, callbacks: list[Callback] | None = None, **arguments) -> Trainer:
    seed_everything(0, verbose=False)
    return Trainer(
        **{
            "max_steps": steps,
            "accelerator": "cpu",
            "devices": 1,
            "default_root_dir": folder,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": bool(callbacks),
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": steps,
            "gradient_clip_val": 1.0,
            "callbacks": callbacks,
            **arguments,
        }
    )


class Copying(LightningDataModule):
    """Sequences ``x y x y``: the second half is learnt within seconds, and not at once by a small model."""

    def __init__(self, tokenizer, train: list[TokenBatch], validation: list[TokenBatch]) -> None:
        super().__init__()
        self.tokenizer, self.train, self.validation = tokenizer, train, validation
        self.validation_names = ["copy"]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=None)

    def val_dataloader(self):
        return DataLoader(self.validation, batch_size=None)


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory, tsv_tokenizer):
    """A model that copies some sequences right and others not, its trainer and its validation batches."""
    generator = torch.Generator().manual_seed(0)

    def batch(size: int) -> TokenBatch:
        rows = []
        for _ in range(size):
            n = int(torch.randint(1, 6, (1,), generator=generator))
            word = torch.randint(10, 20, (n,), generator=generator).tolist()
            rows.append(([*word, 4, *word, tsv_tokenizer.eos_token_id], n + 1))
        return collate(rows)

    copying = Copying(tsv_tokenizer, [batch(16) for _ in range(120)], [batch(20) for _ in range(3)])
    run = trainer(tmp_path_factory.mktemp("copying"), 120)
    trained = module()
    run.fit(trained, datamodule=copying)
    return trained, run, copying


def test_the_loss_falls(tmp_path, tiny_base) -> None:
    losses: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            losses.append(float(outputs["loss"]))

    run = trainer(tmp_path, 40, [Watch()], enable_checkpointing=False)
    run.fit(module(), datamodule=data(tiny_base))
    assert len(losses) == 40
    assert losses[0] == pytest.approx(math.log(600), rel=0.25)
    assert sum(losses[-5:]) / 5 < 0.75 * losses[0]
    logged = run.callback_metrics
    assert {"val/1x2-plain/loss", "val/1x2-plain/token_accuracy", "val/1x2-plain/exact_match"} <= set(logged)


def test_exact_match_is_what_greedy_decoding_gives(half_trained) -> None:
    trained, run, copying = half_trained
    model = trained.model.eval()
    matches, right, scored = [], 0, 0
    for batch in copying.validation:
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels, strict=True):
            answer = ids[labels != IGNORE]
            prompt = ids[mask.bool()][: -len(answer)][None]
            with torch.no_grad():
                out = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=False,
                    max_new_tokens=len(answer),
                    min_new_tokens=None,
                )[0, prompt.shape[1] :]
                logits = model(ids[mask.bool()][None]).logits[0, :-1].argmax(-1)
            matches.append(out.tolist() == answer.tolist())
            right += int((logits[-len(answer) :] == answer).sum())
            scored += len(answer)
    assert 0 < sum(matches) < len(matches)
    value = run.validate(trained, datamodule=copying, verbose=False)[0]
    assert value["val/copy/exact_match"] == pytest.approx(sum(matches) / len(matches), abs=1e-6)
    assert value["val/exact_match"] == value["val/copy/exact_match"] == value["val/selection"]
    assert value["val/copy/token_accuracy"] == pytest.approx(right / scored, abs=1e-6)


def plain_loss(logits: torch.Tensor, batch: TokenBatch) -> float:
    """Mean negative log-probability of the scored tokens, token by token in float64."""
    total, count = 0.0, 0
    for b in range(batch.size):
        for t in range(1, batch.labels.shape[1]):
            if batch.labels[b, t] != IGNORE:
                row = logits[b, t - 1].double()
                total += float(torch.log(torch.exp(row - row.max()).sum()) + row.max() - row[batch.labels[b, t]])
                count += 1
    return total / count


def test_the_loss_is_that_of_the_scored_tokens(half_trained) -> None:
    trained, run, copying = half_trained
    losses, weights = [], []
    for batch in copying.validation:
        with torch.no_grad():
            logits = trained.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
            loss = torch.nn.functional.cross_entropy(*trained(batch))
        losses.append(plain_loss(logits, batch))
        weights.append(int((batch.labels != IGNORE).sum()))
        assert float(loss) == pytest.approx(losses[-1], rel=1e-5)
    mean = sum(x * w for x, w in zip(losses, weights, strict=True)) / sum(weights)
    value = run.validate(trained, datamodule=copying, verbose=False)[0]["val/copy/loss"]
    assert value == pytest.approx(mean, rel=1e-5)


def test_padding_does_not_change_the_loss(half_trained) -> None:
    trained, _, copying = half_trained
    batch = copying.validation[0]
    row = next(i for i in range(batch.size) if not batch.attention_mask[i].all())
    n = int(batch.attention_mask[row].sum())
    alone = TokenBatch(batch.input_ids[[row], :n], batch.attention_mask[[row], :n], batch.labels[[row], :n])
    padded = TokenBatch(batch.input_ids[[row]], batch.attention_mask[[row]], batch.labels[[row]])
    with torch.no_grad():
        torch.testing.assert_close(trained(alone)[0], trained(padded)[0], rtol=1e-5, atol=1e-5)


def test_models_that_cap_their_logits_are_scored_with_the_capped_ones(tmp_path, tsv_tokenizer) -> None:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tsv_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    tsv_tokenizer.save_pretrained(tmp_path)
    capped = LanguageModelingModule(base=str(tmp_path))
    capped.configure_model()
    batch = collate([([7, 8, 9, 10, 11], 2), ([12, 13], 0)])
    with torch.no_grad():
        logits = capped.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        loss = torch.nn.functional.cross_entropy(*capped(batch))
    assert float(loss) == pytest.approx(plain_loss(logits, batch), rel=1e-5)


class StopAt(Callback):
    """Ends the process's work in the middle of a run, as a kill would, right behind a checkpoint."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize("stop", [7, 12])  # within a pool of batches, and within the next
def test_a_resumed_run_ends_with_the_very_weights(tmp_path, tiny_base, stop: int) -> None:
    stages = [Stage("1x1-plain", 0.5), Stage("2x2", 1.0)]
    whole = module()
    trainer(tmp_path, 16).fit(whole, datamodule=data(tiny_base, curriculum=stages))

    saving = ModelCheckpoint(tmp_path / f"saved{stop}", every_n_train_steps=stop, save_top_k=-1, filename="at")
    with pytest.raises(InterruptedError):
        trainer(tmp_path, 16, [StopAt(stop), saving]).fit(module(), datamodule=data(tiny_base, curriculum=stages))
    resumed = module()
    seen = trainer(tmp_path, 16)
    torch.manual_seed(123)
    seen.fit(resumed, datamodule=data(tiny_base, curriculum=stages), ckpt_path=tmp_path / f"saved{stop}" / "at.ckpt")
    assert seen.global_step == 16
    for (name, a), (_, b) in zip(whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def test_the_learning_rate_warms_up_and_follows_a_cosine(tmp_path, tiny_base) -> None:
    rates: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])
            assert [g["weight_decay"] for g in trainer.optimizers[0].param_groups] == [0.1, 0.0]
            assert {p.ndim for p in trainer.optimizers[0].param_groups[1]["params"]} == {1}

    run = trainer(tmp_path, 12, [Watch()], enable_checkpointing=False)
    run.fit(module(lr=1e-2, warmup_steps=4, final_lr=0.1, weight_decay=0.1), datamodule=data(tiny_base))
    expected = [1e-2 * k / 4 for k in (1, 2, 3, 4)]
    expected += [1e-2 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 8)) / 2) for k in range(8)]
    assert rates == pytest.approx(expected, rel=1e-6)


def test_a_run_without_an_end_is_refused(tmp_path, tiny_base) -> None:
    run = trainer(tmp_path, -1, max_epochs=1, val_check_interval=None, limit_val_batches=0, check_val_every_n_epoch=1)
    with pytest.raises(UserError, match="trainer.max_steps is needed"):
        run.fit(module(), datamodule=data(tiny_base))


def test_a_loss_that_is_no_number_ends_the_run(tmp_path, tiny_base) -> None:
    broken = module()

    class Break(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                with torch.no_grad():
                    pl_module.model.lm_head.weight[0, 0] = math.nan

    run = trainer(tmp_path, 5, [Break()], enable_checkpointing=False)
    with pytest.raises(RunError, match="training loss is nan at step 2; lower model.lr"):
        run.fit(broken, datamodule=data(tiny_base))


@pytest.mark.parametrize("arguments", [{}, {"architecture": ARCHITECTURE, "base": "x"}])
def test_architecture_or_base_is_needed_and_not_both(arguments) -> None:
    with pytest.raises(UserError, match="either architecture .* or base"):
        LanguageModelingModule(**arguments)


@pytest.mark.parametrize(
    ("changes", "cause"),
    [
        ({"model_type": "lama"}, "model.architecture: .*lama"),
        ({"hidden_size": 30}, "not a multiple of the number of attention heads"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"vocab_size": 5}, "vocab_size"),
        ({"num_attention_heads": 0}, "model.architecture"),
        ({"model_type": None}, "model.architecture"),
        ({"model_type": "t5"}, "model.architecture"),
    ],
)
def test_an_architecture_that_cannot_be_built_is_refused(tmp_path, tiny_base, changes, cause: str) -> None:
    with pytest.raises(UserError, match=cause) as caught:
        trainer(tmp_path, 1).fit(module(architecture={**ARCHITECTURE, **changes}), datamodule=data(tiny_base))
    assert "\n" not in str(caught.value)


def test_an_architecture_without_a_type_is_refused(tmp_path, tiny_base) -> None:
    with pytest.raises(UserError, match="model.architecture: 'model_type' is missing"):
        trainer(tmp_path, 1).fit(module(architecture={"hidden_size": 8}), datamodule=data(tiny_base))


def test_a_base_that_is_not_there_is_refused_before_the_run(tmp_path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        LanguageModelingModule(base=str(tmp_path / "none")).check()


def test_training_needs_a_tokenizer(tmp_path) -> None:
    with pytest.raises(UserError, match="DataModule with a tokenizer"):
        trainer(tmp_path, 1).fit(module(), datamodule=Copying(None, [], []))


def test_the_start_is_as_configured(tmp_path, tiny_base) -> None:
    fresh = module(embedding_std=0.3, weight_std=0.05)
    trainer(tmp_path, 1, limit_train_batches=0, limit_val_batches=0).fit(fresh, datamodule=data(tiny_base))
    model = fresh.model
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    assert float(model.model.embed_tokens.weight.detach().std()) == pytest.approx(0.3, rel=0.05)
    assert float(model.model.layers[0].mlp.up_proj.weight.detach().std()) == pytest.approx(0.05, rel=0.1)
    assert bool((model.model.norm.weight == 1).all())
    assert model.config.vocab_size == 600


def test_going_on_from_a_base_changes_it(tmp_path, tiny_base) -> None:
    further = LanguageModelingModule(base=str(tiny_base), gradient_checkpointing=True)
    trainer(tmp_path, 2, limit_val_batches=0).fit(further, datamodule=data(tiny_base))
    before = load_base(tiny_base).state_dict()
    assert all(not torch.equal(before[name], tensor) for name, tensor in further.model.state_dict().items())


def exported(folder: Path, base: Path, dtype: str, **settings):
    """A run whose best checkpoint is its first: returns the module, and the best's and the last's weights."""
    settings_of_best = {"monitor": "val/score", "mode": "max", "save_on_train_epoch_end": False}
    best = ModelCheckpoint(folder, filename="best-{step}", **settings_of_best)

    class Score(Callback):
        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.log("val/score", -float(trainer.global_step))

    states = []

    class Keep(Callback):
        def on_validation_end(self, trainer, pl_module):
            states.append({k: v.clone() for k, v in pl_module.model.state_dict().items()})

    run = trainer(folder, 6, [Score(), Keep(), best, ModelExport("out", dtype)], val_check_interval=2)
    trained = module(**settings)
    run.fit(trained, datamodule=data(base, validation=4))
    assert len(states) == 3 and best.best_model_path.endswith("best-step=2.ckpt")
    return states[0], states[-1]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_the_export_is_the_best_checkpoint_and_loads(tmp_path, tiny_base, dtype: str) -> None:
    best, last = exported(tmp_path, tiny_base, dtype)
    model = load_base(tmp_path / "out")
    found = model.state_dict()
    assert set(found) == set(best)
    for name, tensor in best.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(found[name], tensor.to(getattr(torch, dtype)).float()), name
    assert any(not torch.equal(best[name], last[name]) for name in best)
    assert str(load_base(tmp_path / "out", dtype=dtype).dtype) == f"torch.{dtype}"
    assert f'"dtype": "{dtype}"' in (tmp_path / "out" / "config.json").read_text()
    tokenizer = load_tokenizer(tmp_path / "out")
    assert tokenizer.chat_template == load_tokenizer(tiny_base).chat_template
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id


def test_tied_weights_are_exported(tmp_path, tiny_base) -> None:
    best, _ = exported(tmp_path, tiny_base, "float16", architecture={**ARCHITECTURE, "tie_word_embeddings": True})
    model = load_base(tmp_path / "out")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, best["lm_head.weight"].half().float())


def test_without_a_checkpoint_the_last_state_is_exported(tmp_path, tiny_base) -> None:
    trained = module()
    run = trainer(tmp_path, 2, [ModelExport("out", "float32")], enable_checkpointing=False, limit_val_batches=0)
    run.fit(trained, datamodule=data(tiny_base))
    found = load_base(tmp_path / "out").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in trained.model.state_dict().items())


def test_weights_beyond_half_precision_are_not_written_as_infinite(tmp_path, tiny_base) -> None:
    trained = module()
    run = trainer(tmp_path, 1, limit_val_batches=0)
    run.fit(trained, datamodule=data(tiny_base))
    with torch.no_grad():
        trained.model.lm_head.weight[0, 0] = 1e5
    with pytest.raises(RunError, match="lm_head.weight.*float16"):
        trained.save_pretrained(tmp_path / "out", torch.float16)
    assert not (tmp_path / "out").exists()
    trained.save_pretrained(tmp_path / "out", torch.bfloat16)


def test_an_encoder_is_refused(tmp_path, tsv_tokenizer):
    tsv_tokenizer.save_pretrained(tmp_path)
    module = LanguageModelingModule(
        architecture={
            "model_type": "bert",
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 16,
        }
    )
    data = HTMLToTSVDataModule(tokenizer=str(tmp_path), validation=1)
    trainer = Trainer(max_steps=1, logger=False, enable_checkpointing=False, accelerator="cpu")
    with pytest.raises(UserError, match="bert"):
        trainer.fit(module, datamodule=data)


def test_plain_text_is_selected_by_its_loss(tmp_path, tiny_base) -> None:
    """No block is ever matched whole, and the first of equal scores would be kept for ever."""
    text = tmp_path / "text.txt"
    text.write_text("one two three four five six seven eight nine ten\n" * 80, encoding="utf-8")
    best = ModelCheckpoint(
        tmp_path, filename="best-{step}", monitor="val/selection", mode="max", save_on_train_epoch_end=False
    )
    losses = []

    class Watch(Callback):
        def on_validation_end(self, trainer, pl_module):
            found = trainer.callback_metrics
            assert found["val/selection"] == -found["val/text/loss"] and found["val/exact_match"] == 0
            losses.append(float(found["val/text/loss"]))

    run = trainer(tmp_path, 9, [Watch(), best], val_check_interval=3)
    run.fit(module(), datamodule=TextDataModule([str(text)], str(tiny_base), block_size=16))
    assert losses[0] > losses[-1] and best.best_model_path.endswith("best-step=9.ckpt")


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_a_trainer_s_precision_trains_and_validates(tiny_base, tmp_path, precision: str) -> None:
    runner = trainer(tmp_path, 2, precision=precision)
    runner.fit(module(), datamodule=data(tiny_base))
    assert math.isfinite(runner.callback_metrics["val/1x2-plain/loss"])
