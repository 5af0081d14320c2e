"""``lit-hass test -c configs/perplexity.yaml`` and ``lit-hass compare`` of two such runs, as a user has them."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_hass.modules.window_scorer import WindowScorer
from lit_hass.records.scored_windows import parse_scored
from tests.door.conftest import ROOT, lines
from tests.perplexity_bases import make_base, write_text

CONFIG = ROOT / "configs" / "perplexity.yaml"
RUN = Path("logs/perplexity/version_0")
KEYS = {
    "nll", "tokens_scored", "tokens_forwarded", "tokens_dropped", "words", "bytes", "bos_targets", "windows",
    "token_ppl", "word_ppl", "byte_ppl", "bits_per_byte", "ln_word_ppl_se",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", pages=4)


def args(base, text, *more):
    return ["test", "-c", CONFIG, "--model.base", base, "--data.path", text, "--trainer.accelerator", "cpu", *more]


def test_a_run(door, base, text) -> None:
    protocols = "[wanda, strided, document, llama_cpp, lm_eval_wikitext]"
    result = door(*args(base, text, "--data.protocols", protocols, "--data.window", 32, "--data.stride", 8))
    assert result.status == 0, result.err
    found = json.loads((RUN / "perplexity.json").read_text())
    assert set(found["protocols"]) == {"wanda", "strided", "document", "llama_cpp", "lm_eval_wikitext"}
    assert all(protocol.keys() >= KEYS for protocol in found["protocols"].values())
    for name in ("wanda", "strided"):
        protocol = found["protocols"][name]
        assert protocol["word_ppl"] is protocol["byte_ppl"] is protocol["bits_per_byte"] is None
        assert protocol["word_ppl_est"] > protocol["token_ppl"]
    assert isinstance(found["ladder"], list) and found["ladder_summary"]["from"] == "wanda"
    total = math.log(found["protocols"]["lm_eval_wikitext"]["word_ppl"] / found["protocols"]["wanda"]["token_ppl"])
    assert math.fsum(rung["contribution"] for rung in found["ladder"][1:]) == pytest.approx(total, abs=1e-9)
    documents = lines(RUN / "perplexity_documents.jsonl")
    for name, protocol in found["protocols"].items():
        sums = [document["nll"] for document in documents if document["protocol"] == name]
        assert len(sums) == 4 and math.fsum(sums) == pytest.approx(protocol["nll"], rel=1e-12)
    assert "wanda" in result.out and "ln contribution" in result.out and "warning" in result.out
    assert (RUN / "perplexity_ladder.png").read_bytes().startswith(b"\x89PNG") and (RUN / "perplexity.md").is_file()
    _check_board(found)


def _check_board(found: dict) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(RUN), size_guidance={"scalars": 0, "images": 0, "histograms": 0, "tensors": 0})
    board.Reload()
    tags = board.Tags()
    units = ("token_ppl", "word_ppl", "byte_ppl", "bits_per_byte")
    numbers = {
        f"ppl/{name}/{unit}": protocol[unit]
        for name, protocol in found["protocols"].items()
        for unit in units
        if protocol[unit] is not None
    }
    assert {tag for tag in tags["scalars"] if tag.startswith("ppl/")} == numbers.keys() and len(numbers) == 8
    for tag, value in numbers.items():
        assert board.Scalars(tag)[-1].value == pytest.approx(value, rel=1e-5), tag
    assert board.Images("perplexity/ladder")[-1].encoded_image_string.startswith(b"\x89PNG")
    documents = lines(RUN / "perplexity_documents.jsonl")
    for name in found["protocols"]:
        values = [d["nll"] / d["tokens"] for d in documents if d["protocol"] == name]
        histogram = board.Histograms(f"perplexity/{name}/ln_ppl_of_pages")[-1].histogram_value
        assert histogram.num == len(values) == 4 and histogram.sum == pytest.approx(sum(values))
    assert "perplexity/text_summary" in tags["tensors"]


def test_without_a_ladder_the_gap_is_divided_for_free(door, base, text) -> None:
    result = door(*args(base, text, "--data.window", 32, "--data.ladder", "none"))
    found = json.loads((RUN / "perplexity.json").read_text())
    assert result.status == 0 and found["ladder"] == [] and found["ladder_summary"] is None
    [gap] = found["gaps"]
    assert gap["unit"] + gap["rest"] == pytest.approx(gap["ln_ratio"]) and "is the unit" in result.out
    assert not (RUN / "perplexity_ladder.png").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--data.window", 65), "beyond the 64"),
        (("--data.window", 16, "--data.stride", 17, "--data.protocols", "[strided]"), "stride of 17"),
        (("--data.protocols", "[wand]"), "wand"),
        (("--data.path", "nowhere.txt"), "nowhere.txt"),
        (("--model.base", "./nowhere"), "nowhere"),
        (("--data.tail", "perhaps"), "tail"),
        (("--model.dtype", "float31"), "float31"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_run(door, base, text, more, named) -> None:
    result = door(*args(base, text, *more))
    assert result.status == 2 and named in result.err and result.out == ""
    assert "Traceback" not in result.err and not RUN.exists()


@pytest.mark.parametrize(
    ("content", "named", "who"),
    [(b"", "no text", "bad.txt"), (b"ab\xff", "byte 2", "bad.txt"), (b"a b\n", "fewer than the window 64", "wanda")],
)
def test_bad_text(door, base, tmp_path, content, named, who) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    result = door(*args(base, path))
    assert result.status == 2 and named in result.err and who in result.err
    assert "Traceback" not in result.err and not RUN.exists()


def test_nan_weights_name_the_window_and_leave_no_result(door, tmp_path, text) -> None:
    base = make_base(tmp_path / "broken")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = math.nan
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    result = door(*args(base, text, "--data.window", 32))
    assert result.status == 1 and "window" in result.err and "page" in result.err and "nan" in result.err
    assert not (RUN / "perplexity.json").exists()


def test_a_finished_run_is_not_overwritten(door, base, text) -> None:
    more = ("--data.window", 32, "--data.ladder", "none", "--trainer.logger.init_args.version", 0)
    assert door(*args(base, text, *more)).status == 0
    before = (RUN / "perplexity.json").read_bytes()
    again = door(*args(base, text, *more))
    assert again.status == 2 and "finished run" in again.err and (RUN / "perplexity.json").read_bytes() == before


def stopped(door, *command, batches):
    """Run so many batches of version 0, and return which windows they were."""
    result = door(*command, "--trainer.limit_test_batches", batches, "--trainer.logger.init_args.version", 0)
    assert result.status == 1 and "windows were not scored" in result.err
    assert f"limit_test_batches {batches} ends the run after so many batches, without a result" in result.err
    assert not list(RUN.glob("perplexity*"))
    return [window for line in lines(RUN / "windows.rank0.jsonl") for window in line["windows"]]


@pytest.fixture
def scored(monkeypatch) -> list[int]:
    """Indices of all windows that a model reads."""
    found = []
    score = WindowScorer.__call__
    monkeypatch.setattr(
        WindowScorer, "__call__", lambda self, batch: (found.extend(batch.windows), score(self, batch))[1]
    )
    return found


def test_a_stopped_run_resumes_with_nothing_scored_twice(door, base, text, scored) -> None:
    protocols = ("--data.protocols", "[wanda, strided, document]")
    command = args(base, text, *protocols, "--data.window", 32, "--data.stride", 8, "--data.batch_tokens", 100)
    resume = ("--trainer.logger.init_args.version", 0)
    first = stopped(door, *command, batches=3)
    second = stopped(door, *command, batches=1)[len(first) :]
    assert first and second and scored == [*first, *second]
    refused = door(*command, *resume, "--data.window", 16)
    assert refused.status == 2 and "protocols.wanda.window: was 32, now 16" in refused.err
    with (RUN / "windows.rank0.jsonl").open("a") as shard:
        shard.write('{"windows": [0], "su')  # what a kill leaves
    result = door(*command, *resume)
    assert result.status == 0, result.err
    assert len(scored) == len(set(scored)) and f"resuming: {len(first) + len(second)} of {len(scored)}" in result.err
    assert door(*command).status == 0
    again = RUN.with_name("version_1")
    for name in ("perplexity.json", "perplexity.md", "perplexity_documents.jsonl", "perplexity_ladder.png"):
        assert (RUN / name).read_bytes() == (again / name).read_bytes(), name
    assert {path.name.partition(".tfevents")[0] for path in RUN.iterdir()} == {
        path.name.partition(".tfevents")[0] for path in again.iterdir()
    }


def test_killed_between_the_result_and_its_last_step_nothing_is_scored_again(
    door, base, text, scored, monkeypatch
) -> None:
    command = args(base, text, "--data.window", 32, "--data.ladder", "none", "--data.batch_tokens", 100)
    with monkeypatch.context() as patch:
        patch.setattr("callbacks.PerplexityReport.finish", lambda self: None)
        patch.setattr("lit_hass.records.HeldFolder.finish", lambda self: None)
        assert door(*command).status == 0
    before, count = (RUN / "perplexity.json").read_bytes(), len(scored)
    assert (RUN / "windows.rank0.jsonl").exists()
    result = door(*command, "--trainer.logger.init_args.version", 0)
    assert result.status == 0 and len(scored) == count > 0, result.err
    assert (RUN / "perplexity.json").read_bytes() == before and not list(RUN.glob("windows.*"))


@pytest.mark.parametrize("line", ['{"windows": [0]}', '{"windows": [0], "sums": [[1, 0, 2.0, 3]]}',
                                  '{"windows": [0], "sums": [[0, 0, 1e999, 3]]}', '{"windows": "0", "sums": []}',
                                  '{"windows": [0], "sums": [[0, 0, 2.0, 0]]}'])  # fmt: skip
def test_a_line_that_is_none_does_not_count(line) -> None:
    with pytest.raises(ValueError):
        parse_scored(json.loads(line))


def test_a_line_of_many_windows_is_read_in_linear_time() -> None:
    count, began = 40_000, time.process_time()
    found = parse_scored({"windows": list(range(count)), "sums": [[i, 0, 1.0, 1] for i in range(count)]})
    assert len(found.sums) == count and time.process_time() - began < 3


@pytest.mark.ddp
@pytest.mark.parametrize("pages", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_two_ranks_score_what_one_does(process, door, base, tmp_path, pages) -> None:
    text = write_text(tmp_path / "text.txt", pages=pages)
    # With one page and large batches, the second rank has one batch or none.
    size = 100 if pages > 1 else 100_000
    more = ("--data.protocols", "[wanda, strided, lm_eval_wikitext]", "--data.window", 32, "--data.stride", 8,
            "--data.batch_tokens", size)  # fmt: skip
    ddp = ("-c", ROOT / "configs" / "trainer" / "ddp.yaml")
    two = process(args(base, text, *more, *ddp))
    assert two.wait() == 0, two.text()
    assert door(*args(base, text, *more)).status == 0
    results = [json.loads((folder / RUN / "perplexity.json").read_text()) for folder in (tmp_path, Path())]
    for name, one in results[1]["protocols"].items():
        other = results[0]["protocols"][name]
        for key, value in one.items():
            if isinstance(value, int | str | dict | None) and not key.endswith("printed"):
                assert other[key] == value, (name, key)
            elif isinstance(value, float):
                assert other[key] == value, (name, key)  # to the last bit: sums are taken in the text's order
    counted = [[(r["tokens_scored"], r["windows"]) for r in result["ladder"]] for result in results]
    assert counted[0] == counted[1]
    sums = [[d["nll"] for d in lines(folder / RUN / "perplexity_documents.jsonl")] for folder in (tmp_path, Path())]
    assert sums[0] == sums[1]


@pytest.mark.parametrize("ending", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_an_interrupted_run_leaves_no_result(process, base, text, tmp_path, ending) -> None:
    run = process(args(base, text, "--data.window", 32, "--data.batch_tokens", 1, "--data.stride", 1,
                       "--data.protocols", "[strided]"))  # fmt: skip
    run.wait_for(lambda: (tmp_path / RUN / "config.yaml").exists() and "loaded" in run.text())
    if ending == signal.SIGKILL:
        run.kill()
    else:
        os.kill(run.process.pid, ending)
        assert run.wait() == 130, run.text()
        assert "Traceback" not in run.text()
    assert not [path.name for path in (tmp_path / RUN).iterdir() if path.name.startswith("perplexity")]
    assert not (tmp_path / RUN / "run.lock").exists() or ending == signal.SIGKILL


@pytest.fixture
def pair(door, base, text, tmp_path):
    """A base and one with half of its weights at zero, run with the same settings in two folders."""

    def make(one=("--data.window", 32), other=("--data.window", 32)) -> tuple[Path, Path]:
        pruned = make_base(tmp_path / "pruned")
        weights = load_file(pruned / "model.safetensors")
        generator = torch.Generator().manual_seed(1)
        for name, weight in weights.items():
            if "proj" in name:
                weight[torch.rand(weight.shape, generator=generator) < 0.5] = 0
        save_file(weights, pruned / "model.safetensors", metadata={"format": "pt"})
        for folder, more in ((base, one), (pruned, other)):
            result = door(*args(folder, text, "--data.ladder", "none", *more))
            assert result.status == 0, result.err
        return RUN, RUN.with_name("version_1")

    return make


def test_compare_dense_and_pruned(door, pair) -> None:
    one, other = pair()
    result = door("compare", one, other)
    assert result.status == 0, result.err
    found = json.loads((other / "comparison" / "comparison.json").read_text())
    words = found["protocols"]["lm_eval_wikitext"]["units"]["word"]
    reports = [json.loads((run / "perplexity.json").read_text()) for run in (one, other)]
    values = [report["protocols"]["lm_eval_wikitext"]["word_ppl"] for report in reports]
    assert words["ratio"] == pytest.approx(values[1] / values[0], rel=1e-9)
    assert words["se"] > 0 and words["documents"] == 4
    assert words["interval"] is None and "4 documents are too few" in " ".join(result.out.split())
    assert set(found["protocols"]["wanda"]["units"]) == {"token"}
    assert reports[1]["model"]["zero_weights"] > 0.1 and "effective exponent" in result.out.lower()
    assert (other / "comparison" / "comparison.md").is_file()


def test_compare_refuses_other_protocols_and_says_what_each_would_be(door, pair) -> None:
    window = ("--data.window", 32)
    one, other = pair((*window, "--data.protocols", "[wanda]"), (*window, "--data.protocols", "[lm_eval_wikitext]"))
    result = door("compare", one, other)
    assert result.status == 2 and result.out == "" and "no protocol in common" in result.err
    token = json.loads((one / "perplexity.json").read_text())["protocols"]["wanda"]["token_ppl"]
    exponent = json.loads((other / "perplexity.json").read_text())["protocols"]["lm_eval_wikitext"]["tokens_per_word"]
    said = result.err.split("would be ")[1].split(" per word")[0]
    assert float(said.replace(",", "")) == pytest.approx(token**exponent, rel=1e-3)
    assert "per token" in result.err and not (other / "comparison").exists()


def test_compare_refuses_other_settings_unless_allowed(door, pair) -> None:
    one, other = pair(other=("--data.window", 16))
    result = door("compare", one, other)
    assert result.status == 2 and "wanda: window 32 against 16" in result.err
    assert door("compare", one, other, "--allow-differences").status == 0


def test_compare_refuses_other_texts_and_other_runs(door, pair, base, tmp_path) -> None:
    one, _ = pair()
    text = write_text(tmp_path / "other.txt", pages=2)
    assert door(*args(base, text, "--data.window", 32, "--data.ladder", "none")).status == 0
    assert "different texts" in door("compare", one, RUN.with_name("version_2"), "--allow-differences").err
    assert "no perplexity run" in door("compare", one, tmp_path).err
    (one / "perplexity_documents.jsonl").write_text('{"protocol": "wanda", "nll": 1.0, "tokens": 2}\n')
    assert "does not add up" in door("compare", one, RUN.with_name("version_1")).err


def test_compare_of_other_tokenizers(door, tmp_path, base, text, tiny_base) -> None:
    for folder in (base, tiny_base):
        assert door(*args(folder, text, "--data.window", 32, "--data.ladder", "none")).status == 0
    one, other = RUN, RUN.with_name("version_1")
    assert "tokenizers differ" in door("compare", one, other).err
    assert door("compare", one, other, "--allow-differences").status == 0
    found = json.loads((other / "comparison" / "comparison.json").read_text())
    assert "token" not in found["protocols"]["wanda"]["units"]
    assert set(found["protocols"]["lm_eval_wikitext"]["units"]) == {"word", "byte"}


def test_compare_imports_neither_torch_nor_lightning(door, pair) -> None:
    one, other = map(str, pair())
    heavy = ("torch", "lightning", "transformers", "torchmetrics", "datasets", "scipy")
    code = (
        "import sys, json\nfrom lit_hass.__main__ import main\n"
        f"status = main(['compare', {one!r}, {other!r}])\n"
        f"print('\\n' + json.dumps([status, [m for m in {heavy!r} if m in sys.modules]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
