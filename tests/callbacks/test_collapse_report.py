"""`CollapseReport` on real runs: files, table, TensorBoard, two methods, another run beside it, and refusals."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

import callbacks.collapse_report
from callbacks import (
    AnswerWriter,
    CollapseCollector,
    CollapseReport,
    ComparisonReport,
    FeatureBuffer,
    GenerationStatistics,
    ResourceMonitor,
)
from lit_hass.data import QuestionDataModule
from lit_hass.decoding import TreeConfig
from lit_hass.errors import UserError
from lit_hass.models import DraftModel, load_base
from lit_hass.modules import EvaluationModule, GenerationModule
from tests.callbacks.collapse_runs import ask
from tests.door.conftest import ROOT, process  # noqa: F401  # a fixture

SIZES = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}


@pytest.fixture(scope="module")
def draft(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("draft")
    DraftModel.from_base(load_base(tiny_base)).save_pretrained(folder)
    return folder


def predict(folder: Path, module, n: int, *callbacks, version: int = 0, **settings) -> Path:
    logger = TensorBoardLogger(folder, "run", version, default_hp_metric=False)
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=logger, callbacks=list(callbacks), use_distributed_sampler=False, **quiet,
        **settings,
    )  # fmt: skip
    data = QuestionDataModule(str(ask(folder, n)))
    data.check(module)
    for callback in trainer.callbacks:
        if hasattr(callback, "check"):
            callback.check(trainer, module, data)
    trainer.predict(module, datamodule=data, return_predictions=False)
    return folder / "run" / f"version_{version}"


def of_method(method, **settings):
    return [CollapseCollector(method=method), CollapseReport(method, **settings)]


def read(path: Path):
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


def charts(board: EventAccumulator) -> dict[str, list[str]]:
    """Title -> tags of the custom tab, as the plugin reads them."""
    (event,) = board.Tensors("custom_scalars__config__")
    parsed = layout_pb2.Layout()
    parsed.ParseFromString(event.tensor_proto.string_val[0])
    return {
        f"{category.title}: {chart.title}": list(chart.multiline.tag)
        for category in parsed.category
        for chart in category.chart
    }


def test_a_run_with_a_draft(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("callbacks.collapse_report._LONG_LOOK", math.inf)  # on a loaded machine looks take long
    # The shipped pair: of a random draft's tokens hardly one is accepted.
    module = GenerationModule("html_to_tsv", "html_to_tsv", TreeConfig(6, 4, 1), max_new_tokens=12, warmup=0)
    report = CollapseReport(every_n_questions=2, projector_classes=5)
    collector = CollapseCollector()
    run = predict(tmp_path, module, 5, AnswerWriter(), collector, FeatureBuffer(), report)
    metrics, analysis = read(run / "collapse_metrics.json"), read(run / "collapse_report.json")
    assert report.subject is not None and report.subject.metrics == metrics
    assert analysis["summary"]["total_tokens_analyzed"] == metrics["total_tokens"] > 50
    assert analysis["meta"]["questions"] == 5 and analysis["spectra"]["states"]["rejected"]["rows"] > 0
    assert analysis["spectra"]["cka"]["linear"] == metrics["family"]["answer"]["cka/linear"]
    printed = capsys.readouterr().out
    assert "Representation collapse" in printed and "draft and base, CKA" in printed
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == 4 and "version_0" in page
    board = EventAccumulator(str(run), size_guidance=SIZES).Reload()
    tags = board.Tags()
    (event,) = board.Scalars("collapse/gnc2/mean")
    assert (event.step, event.value) == (5, pytest.approx(metrics["overall_metrics"]["gnc2"], rel=1e-6))
    state = board.Scalars("collapse/state/normalized_entropy/accepted")[-1]
    assert state.value == pytest.approx(metrics["states"]["accepted"]["normalized_entropy"], rel=1e-6)
    assert all(np.isfinite(e.value) for tag in tags["scalars"] for e in board.Scalars(tag))
    # As the run goes: after 2 and 4 of 5 questions, growing.
    rows = [(e.step, e.value) for e in board.Scalars("collapse/running/state/rows/prompt")]
    assert [step for step, _ in rows] == [2, 4] and 0 < rows[0][1] < rows[1][1] < metrics["states"]["prompt"]["rows"]
    along = [e.value for e in board.Scalars("collapse/along_the_text/svd_entropy")]
    assert along == pytest.approx(analysis["chunk_analysis"]["chunk_entropies"], rel=1e-6)
    assert {"collapse/class/classifier_cosine", "collapse/token_entropy"} <= set(tags["histograms"])
    assert {"collapse/spectrum", "collapse/tokens", "collapse/class_cosines"} <= set(tags["images"])
    (labels,) = run.rglob("metadata.tsv")
    assert len(labels.read_text(encoding="utf-8").splitlines()) == 1 + 5
    drawn = charts(board)
    assert len(drawn) == 10 and all(set(wanted) & set(tags["scalars"]) for wanted in drawn.values())


def test_looks_that_take_long_are_left_out(tiny_base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(callbacks.collapse_report, "_LONG_LOOK", 0.0)
    module = GenerationModule(str(tiny_base), max_new_tokens=4, warmup=0)
    slow = CollapseCollector()
    measure = slow.get_collapse_metrics
    monkeypatch.setattr(slow, "get_collapse_metrics", lambda *how, **more: (time.sleep(0.5), measure(*how, **more))[1])
    run = predict(tmp_path, module, 4, AnswerWriter(), slow, CollapseReport(every_n_questions=1))
    board = EventAccumulator(str(run), size_guidance=SIZES).Reload()
    assert [e.step for e in board.Scalars("collapse/running/state/rows/prompt")] == [1]


def test_two_methods_stand_side_by_side(tiny_base: Path, draft: Path, tmp_path: Path, capsys) -> None:
    module = EvaluationModule(
        str(tiny_base), str(draft), TreeConfig(6, 4, 1), max_new_tokens=10, warmup=0, repeats=1
    )  # fmt: skip
    parts = [*of_method("baseline", projector_classes=0), *of_method("hass", projector_classes=0)]
    answers = [kind(method=method) for kind in (AnswerWriter, GenerationStatistics) for method in ("baseline", "hass")]
    run = predict(tmp_path, module, 3, *answers, *parts, ComparisonReport(), ResourceMonitor())
    found = {name: read(run / name / "collapse_metrics.json") for name in ("baseline", "hass")}
    # Greedy answers are the baseline's own, and so are the features behind them.
    for name, value in found["baseline"]["family"]["answer"].items():
        if not name.startswith(("cka", "svd_entropy/", "nc1/pinv")) and value is not None:
            assert found["hass"]["family"]["answer"][name] == pytest.approx(value, rel=1e-3, abs=1e-3), name
    board = EventAccumulator(str(run), size_guidance=SIZES).Reload()
    assert {"baseline/collapse/gnc2/mean", "hass/collapse/gnc2/mean"} <= set(board.Tags()["scalars"])
    assert "collapse_side_by_side/prompt_against_answer" in board.Tags()["images"]
    tab = charts(board)["representation collapse: GNC2, prompt against answer"]
    assert {"baseline/collapse/prompt/gnc2/mean", "hass/collapse/answer/gnc2/mean"} <= set(tab)
    # One table: that of the comparison.
    rows = {line[1:23].rstrip(): line[23:].split() for line in capsys.readouterr().out.splitlines()}
    for label, key in (("SVD entropy", "svd_entropy"), ("GNC2", "gnc2"), ("UNC3", "unc3")):
        assert rows[label] == [f"{found[name]['overall_metrics'][key]:.4f}" for name in ("baseline", "hass")]
    assert "Representation collapse" not in rows
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "host memory, peak" in page  # though it was measured last
    assert "Draft against baseline" in page and "What may be compared" in page and page.count("<img") == 5
    assert not list(run.rglob("metadata.tsv"))


def test_another_run_beside_it(tiny_base: Path, tmp_path: Path, capsys) -> None:
    def module():
        return GenerationModule(str(tiny_base), max_new_tokens=8, warmup=0)

    first = predict(tmp_path, module(), 2, AnswerWriter(), *of_method(None))
    capsys.readouterr()
    report = CollapseReport(against=str(first), every_n_questions=0)
    run = predict(tmp_path, module(), 3, AnswerWriter(), CollapseCollector(), report, version=1)
    printed = " ".join(capsys.readouterr().out.split())
    assert "version_0 version_1 difference" in printed and "rows, and entropies grow with the rows" in printed
    board = EventAccumulator(str(run), size_guidance=SIZES).Reload()
    assert "collapse_side_by_side/spectrum" in board.Tags()["images"]
    assert not any("running" in tag for tag in board.Tags()["scalars"])


def test_a_trial_run_writes_nothing(tiny_base: Path, tmp_path: Path) -> None:
    module = GenerationModule(str(tiny_base), max_new_tokens=4, warmup=0)
    predict(tmp_path, module, 2, AnswerWriter(), *of_method(None), fast_dev_run=True)
    assert not list(tmp_path.rglob("collapse*")) and not list(tmp_path.rglob("report.html"))


def test_refusals(tiny_base: Path, tmp_path: Path) -> None:
    module = GenerationModule(str(tiny_base), max_new_tokens=4, warmup=0)
    with pytest.raises(UserError, match=r"add callbacks\.CollapseCollector"):
        predict(tmp_path, module, 1, AnswerWriter(), CollapseReport())
    with pytest.raises(UserError, match=r"FeatureBuffer keeps .* add callbacks\.CollapseCollector"):
        predict(tmp_path, module, 1, AnswerWriter(), FeatureBuffer())
    with pytest.raises(UserError, match="two CollapseReports"):
        predict(tmp_path, module, 1, AnswerWriter(), *of_method(None), CollapseReport())
    with pytest.raises(UserError, match="no such run folder"):
        predict(tmp_path, module, 1, AnswerWriter(), *of_method(None, against=str(tmp_path / "none")))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "resources.json").write_text('{"ranks": []}')
    with pytest.raises(UserError, match="with collapse metrics"):
        predict(tmp_path, module, 1, AnswerWriter(), *of_method(None, against=str(tmp_path / "other")))
    for bad in ({"every_n_questions": -1}, {"projector_classes": -1}):
        with pytest.raises(UserError, match=next(iter(bad))):
            CollapseReport(**bad)
    assert not (tmp_path / "run").exists()


def numbers(found, name: str = "") -> dict[str, float]:
    """Every number by its path; NaN for null."""
    if isinstance(found, dict | list):
        items = found.items() if isinstance(found, dict) else enumerate(found)
        return {key: value for k, each in items for key, value in numbers(each, f"{name}/{k}").items()}
    return {name: math.nan if found is None else found} if isinstance(found, float | int | None) else {}


@pytest.mark.ddp
def test_two_processes_report_what_one_does(process, tiny_base: Path, tmp_path: Path) -> None:  # noqa: F811
    path, found = ask(tmp_path, 5), []
    for version, more in enumerate([(), ("-c", ROOT / "configs" / "trainer" / "ddp.yaml")]):
        run = process(
            [
                "predict", "-c", ROOT / "configs" / "generate_baseline.yaml", *more,
                *(arg for name in ("collapse", "resources") for arg in ("-c", ROOT / f"configs/callbacks/{name}.yaml")),
                "--model.base", tiny_base, "--data.questions", path, "--model.max_new_tokens", 8, "--model.dtype",
                "float64", "--trainer.accelerator", "cpu", "--trainer.logger.init_args.version", version,
            ]
        )  # fmt: skip
        assert run.wait() == 0, run.text()
        assert run.text().count("Representation collapse") == 1
        folder = tmp_path / "logs" / "generate_baseline" / f"version_{version}"
        found.append((read(folder / "collapse_report.json"), read(folder / "resources.json")))
    (one, alone), (two, both) = found
    for group in ("summary", "overall_analysis", "chunk_analysis", "token_analysis", "chunks", "diagnostics"):
        assert numbers(two[group]) == pytest.approx(numbers(one[group]), rel=1e-9, abs=1e-7, nan_ok=True), group
    assert two["meta"]["world_size"] == 2 and [rank["rank"] for rank in both["ranks"]] == [0, 1]
    assert sum(rank["questions"] for rank in both["ranks"]) == alone["ranks"][0]["questions"] == 5
    assert sum(rank["tokens"] for rank in both["ranks"]) == alone["ranks"][0]["tokens"] > 0
