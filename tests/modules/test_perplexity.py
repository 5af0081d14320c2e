"""Scores of any decoder-only model against the model's own logits, window by window, in float64."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.torch import load_file, save_file

from callbacks import PerplexityProgressBar
from lit_hass.data import PerplexityDataModule
from lit_hass.decoding import TokenState
from lit_hass.errors import RunError, UserError
from lit_hass.models import load_base
from lit_hass.modules import PerplexityModule
from lit_hass.modules.window_scorer import WindowScorer
from tests.perplexity_bases import make_base, write_text
from tests.surroundings import SURROUNDINGS

#: Families whose logits come about in different ways: plain, scaled, capped, learned positions, no attention at all.
FAMILIES = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "do_layer_norm_before": True},
    "gpt_neox": {},
    "qwen2": {},
    "gemma2": {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"state_size": 8, "expand": 2},
}


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", pages=2)


def run(base: Path, text: Path, module=None, callbacks=(), trainer=(), **settings):
    settings = {"window": 32, "stride": 12, **settings}
    data = PerplexityDataModule(str(text), **settings)
    module = module or PerplexityModule(str(base))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    more = {**quiet, "enable_checkpointing": False, **dict(trainer)}
    runner = Trainer(accelerator="cpu", callbacks=list(callbacks), **more)
    runner.test(module, datamodule=data, verbose=False)
    return data, module


def plain(base: Path, data: PerplexityDataModule, name: str) -> tuple[float, int]:
    """Sum and count of a protocol, one window at a time, from the whole model's logits in float64."""
    model = load_base(base)
    plan = data.scored[name]
    tokens, total, count = data.tokens.sequences(plan.recipe), 0.0, 0
    for sequence in tokens:
        for window in plan.recipe.plan(len(sequence), data.tokens.bos):
            ids = sequence.ids[window.start : window.stop].clone()
            if window.first is not None:
                ids[0] = window.first
            with torch.no_grad():
                scores = model(input_ids=ids[None], use_cache=False).logits[0].double().log_softmax(-1)
            targets = sequence.ids[window.stop - window.scored + 1 : window.stop + 1]
            total -= float(scores[-window.scored :].gather(1, targets[:, None]).sum())
            count += window.scored
    return total, count


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path, text, family: str) -> None:
    base = make_base(tmp_path / family, model_type=family, **FAMILIES[family])
    data, module = run(base, text, protocols=["wanda", "lm_eval_wikitext"], ladder="none", batch_tokens=200)
    for name, outcome in zip(data.scored, module.outcomes, strict=True):
        total, count = plain(base, data, name)
        assert outcome["tokens_scored"] == count and outcome["nll"] == pytest.approx(total, rel=1e-6), name
    assert module.scorer.takes_apart


def test_every_protocol_whatever_the_batch(tmp_path, text) -> None:
    base = make_base(tmp_path / "base")
    names = ["wanda", "lm_eval_wikitext", "strided", "document", "llama_cpp"]
    found = []
    for settings, rows in (({"batch_tokens": 1, "ladder": "none"}, 1), ({"batch_tokens": 5000}, None)):
        data, module = run(base, text, PerplexityModule(str(base), head_rows=rows), protocols=names, **settings)
        found.append([outcome["nll"] for outcome in module.outcomes])
        for plan, outcome in zip(data.plan.recipes, module.outcomes, strict=True):
            for key, value in (("tokens_scored", plan.scored), ("tokens_forwarded", plan.forwarded),
                               ("bos_targets", plan.bos_targets), ("windows", len(plan.windows))):  # fmt: skip
                assert outcome[key] == value, (plan.recipe, key)
    assert len(found[1]) > len(names) == len(found[0])
    assert found[0] == pytest.approx(found[1][: len(names)], rel=1e-6)
    for name, nll in zip(data.scored, found[1], strict=False):
        assert nll == pytest.approx(plain(base, data, name)[0], rel=1e-6), name


def test_a_model_that_cannot_be_taken_apart_is_called_as_a_whole(tmp_path, text, monkeypatch, caplog) -> None:
    base = make_base(tmp_path / "base")
    expected = run(base, text, ladder="none")[1].outcomes[0]["nll"]

    class Odd(WindowScorer):
        def __init__(self, model, rows=None):
            super().__init__(model, rows)
            head = self._head
            self._head = lambda hidden: head(hidden) * 1.001  # what a cap of small logits looks like

    monkeypatch.setattr("lit_hass.modules.perplexity.WindowScorer", Odd)
    data, module = run(base, text, ladder="none")
    assert not module.scorer.takes_apart and module.outcomes[0]["nll"] == pytest.approx(expected, rel=1e-6)
    collecting = PerplexityModule(str(base))
    collecting.collect_features = True
    with pytest.raises(RunError, match="features"):
        run(base, text, collecting)


@pytest.mark.parametrize("around", ["bf16-true", "16-true", "bf16-mixed"])
def test_sums_stay_exact_whatever_is_set_around_them(tmp_path, text, around: str) -> None:
    base = make_base(tmp_path / "base")
    expected = run(base, text)[1].outcomes[0]
    with SURROUNDINGS[around]():
        _, module = run(base, text)
    assert module.metrics[0].nll.dtype == torch.float64 and module.metrics[0].tokens.dtype == torch.int64
    assert module.outcomes[0]["nll"] == pytest.approx(expected["nll"], rel=1e-9)  # the base is not Lightning's to cast


def test_half_precision_takes_its_loss_in_float32(tmp_path, text) -> None:
    base = make_base(tmp_path / "base")
    exact = run(base, text)[1].outcomes[0]["nll"]
    half = run(base, text, PerplexityModule(str(base), dtype="bfloat16"))[1].outcomes[0]["nll"]
    assert half != exact and half == pytest.approx(exact, rel=3e-3)


class Collector(Callback):
    def __init__(self) -> None:
        self.features, self.ids, self.states = [], [], []

    def on_test_start(self, trainer, pl_module) -> None:
        pl_module.collect_features = True

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
        found = outputs["features"]
        self.features.append(found.features)
        self.ids.append(found.token_ids)
        self.states.append(found.states)


def test_features_are_what_the_output_layer_reads_each_token_once(tmp_path, text) -> None:
    base = make_base(tmp_path / "base")
    collector = Collector()
    data, module = run(base, text, callbacks=[collector], protocols=["strided", "lm_eval_wikitext"], batch_tokens=200)
    features, ids, states = (torch.cat(parts) for parts in (collector.features, collector.ids, collector.states))
    assert features.shape == (data.scored["strided"].scored, 32) and not features.is_inference()
    assert set(states.tolist()) == {int(TokenState.PROMPT)} and ids.dtype == torch.int64
    logits = load_base(base).lm_head(features).double().log_softmax(-1)
    assert -float(logits.gather(1, ids[:, None]).sum()) == pytest.approx(module.outcomes[0]["nll"], rel=1e-6)


def test_nothing_is_collected_unless_asked_for(tmp_path, text, monkeypatch) -> None:
    base = make_base(tmp_path / "base")
    collector = Collector()
    collector.on_test_start = lambda trainer, pl_module: None
    collector.on_test_batch_end = lambda trainer, pl_module, outputs, *more: collector.features.append(outputs)

    def refuse(*_):
        raise AssertionError("features were made")

    monkeypatch.setattr(PerplexityModule, "_features", refuse)
    run(base, text, callbacks=[collector])
    assert collector.features and all(outputs["features"] is None for outputs in collector.features)


def test_the_progress_bar_shows_the_running_perplexity(tmp_path, text, capsys) -> None:
    base = make_base(tmp_path / "base")
    running = []

    class Looks(PerplexityProgressBar):
        def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0) -> None:
            super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
            running.append((outputs["running"], self._progress.tasks[0].fields["running"], self._progress.tasks[0]))

    data, module = run(
        base, text, callbacks=[Looks()], protocols=["wanda"], batch_tokens=100, trainer={"enable_progress_bar": True}
    )
    assert all(shown == f"wanda: token PPL {value:.2f}" for (_, value), shown, _ in running)
    assert running[-1][0] == ("wanda", pytest.approx(module.outcomes[0]["token_ppl"]))
    assert len({value for (_, value), _, _ in running}) == len(running) == len(data.plan.batches)
    assert running[-1][2].finished and "PPL" in capsys.readouterr().err


def test_nan_names_the_window(tmp_path, text) -> None:
    base = make_base(tmp_path / "base")
    module = PerplexityModule(str(base))

    def broken(hidden):
        logits = module.scorer.model.lm_head(hidden).float()
        if broken.calls > 0:
            logits[3, 7] = math.nan
        broken.calls += 1
        return logits

    broken.calls = 0

    class Breaks(Callback):
        def on_test_start(self, trainer, pl_module) -> None:
            pl_module.scorer._head = broken
            pl_module.scorer._verified = True

    named = r"(wanda|lm_eval_wikitext|ladder step \d): window \d+, page \d: 1 of its tokens"
    with pytest.raises(RunError, match=named):
        run(base, text, module, [Breaks()])
    assert module.outcomes == []


def test_a_run_that_stops_early_has_no_result(tmp_path, text) -> None:
    base = make_base(tmp_path / "base")
    module = PerplexityModule(str(base))
    with pytest.raises(RunError, match="windows were not scored"):
        run(base, text, module, trainer={"limit_test_batches": 1}, batch_tokens=100)
    assert module.outcomes == []
    run(base, text, module, trainer={"fast_dev_run": True}, batch_tokens=100)
    assert module.outcomes == []


def test_bad_settings(tmp_path, text) -> None:
    with pytest.raises(UserError, match="head_rows"):
        PerplexityModule(head_rows=0)
    with pytest.raises(UserError, match="no such folder"):
        run(tmp_path / "nowhere", text)
    with pytest.raises(UserError, match="PerplexityDataModule"):
        module = PerplexityModule(str(make_base(tmp_path / "base")))
        Trainer(accelerator="cpu", logger=False, enable_progress_bar=False).test(module, [1])


def test_resume_settings_hold_what_decides_the_likelihoods_and_no_more(tmp_path, text) -> None:
    base, pruned, eager = (make_base(tmp_path / name) for name in ("base", "pruned", "eager"))
    weights = load_file(pruned / "model.safetensors")
    weights["lm_head.weight"][3, 5] = 0
    save_file(weights, pruned / "model.safetensors", {"format": "pt"})
    # Caps its attention logits, which SDPA leaves out.
    make_base(eager, model_type="gemma2", query_pre_attn_scalar=8)

    def settings(folder: Path = base, **arguments) -> dict:
        return PerplexityModule(str(folder), **arguments).resume_settings()

    assert settings() == settings(head_rows=3)
    assert settings(dtype="bf16") == settings(dtype="bfloat16")
    spread = load_base(base, device_map="auto")
    found = [settings(device_map="auto")["dtype"], settings(eager)["attention"], settings()["attention"]]
    assert found == [str(spread.dtype).removeprefix("torch."), "eager", "sdpa"]
    _, module = run(base, text, ladder="none")
    about = module.describe_model()
    assert [settings()[name] for name in ("base", "attention")] == [about["digest"], about["attention"]]
    changed = [settings(), settings(pruned), settings(eager), settings(dtype="bfloat16"), settings(dtype="float16")]
    assert len({json.dumps(one, sort_keys=True) for one in changed}) == len(changed)


def test_the_key_holds_the_text_whatever_its_file_is_called(tmp_path, text) -> None:
    base = make_base(tmp_path / "base")

    def settings(path: Path, **more) -> dict:
        data = PerplexityDataModule(str(path), window=32, ladder="none", **more)
        data.check(PerplexityModule(str(base)))
        return data.resume_settings()

    moved, other = tmp_path / "moved.txt", tmp_path / "other.txt"
    moved.write_bytes(text.read_bytes())
    other.write_bytes(text.read_bytes().replace(b"e", b"a", 1))
    assert settings(text) == settings(moved) == settings(text, batch_tokens=100)
    assert settings(text)["text"] != settings(other)["text"]
