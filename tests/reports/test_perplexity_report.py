"""Reports of plans whose tokens have made-up likelihoods: ladders, warnings, tables, plot; no model is run."""

import copy
import io
import json
import math
import re

import pytest
import torch
from rich.console import Console

from lit_hass.data import PerplexityDataModule
from lit_hass.errors import RunError, UserError
from lit_hass.metrics import Perplexity
from lit_hass.modules import PerplexityModule
from lit_hass.records import write_json
from lit_hass.reports.perplexity_compare import compare_perplexity
from lit_hass.reports.perplexity_compare_view import print_perplexity_comparison
from lit_hass.reports.perplexity_files import read_perplexity, write_perplexity
from lit_hass.reports.perplexity_plot import ladder_figure, to_png
from lit_hass.reports.perplexity_result import perplexity_report
from lit_hass.reports.perplexity_rows import interval, number
from lit_hass.reports.perplexity_view import print_perplexity, to_markdown
from lit_hass.reports.perplexity_warnings import warnings
from tests.perplexity_bases import make_base, write_text

MODEL = {"base": "made up", "digest": "0", "dtype": "float32", "zero_weights": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", pages=4)


def outcomes_of(data: PerplexityDataModule, level: float = 3.0) -> list[dict]:
    """Likelihoods that depend on the token and its place: each recipe has other sums."""
    found = []
    for recipe in data.plan.recipes:
        metric = Perplexity(recipe.documents)
        batch = data.plan.batch(recipe.windows)
        nll = level + torch.sin(batch.targets.double()) + 0.2 * torch.cos(batch.positions.double())
        metric.update(nll, batch.pages, sum(batch.lengths), int((batch.targets == 0).sum()), len(batch.windows))
        metric.add_text(data.text.words, data.text.bytes)
        sums = {"document_nll": metric.nll.tolist(), "document_tokens": metric.tokens.tolist()}
        found.append({name: value.item() for name, value in metric.compute().items()} | sums)
    return found


def report_of(base, text, level: float = 3.0, model=MODEL, **settings):
    data = PerplexityDataModule(str(text), **{"window": 32, **settings})
    data.check(PerplexityModule(str(base)))
    description, outcomes = data.describe(), outcomes_of(data, level)
    return perplexity_report(description, outcomes, model), description, outcomes


def codes(report: dict) -> set[tuple[str, str]]:
    return {(w["code"], w["protocol"]) for w in report["warnings"]}


@pytest.mark.parametrize(
    "ends",
    [
        ("wanda", "lm_eval_wikitext"), ("lm_eval_wikitext", "wanda"), ("strided", "document"),
        ("document", "llama_cpp"),
        ("llama_cpp", "lm_eval_wikitext"), ("wanda", "strided"), ("document", "lm_eval_wikitext"),
    ],
)  # fmt: skip
def test_any_ladder_sums_exactly_to_the_log_ratio(base, text, ends) -> None:
    report, _, _ = report_of(base, text, protocols=list(ends), stride=8)
    rungs, summary = report["ladder"], report["ladder_summary"]
    printed = [report["protocols"][name]["printed"]["value"] for name in ends]
    total = math.log(printed[1]) - math.log(printed[0])
    assert math.fsum(rung["contribution"] for rung in rungs[1:]) == pytest.approx(total, abs=1e-12)
    assert math.fsum(rung["share"] for rung in rungs[1:]) == pytest.approx(1)
    assert rungs[0]["ppl"] == pytest.approx(printed[0]) and rungs[-1]["ppl"] == pytest.approx(printed[1])
    assert summary["order"] == [rung["switch"] for rung in rungs[1:]] and all(summary["order"])
    units = [p["printed"]["unit"] for p in report["protocols"].values()]
    assert ("is the unit" in summary["answer"]) == ("word_ppl" in units)


def test_a_ladder_to_an_estimate_adds_up_too(base, text) -> None:
    for settings in ({}, {"protocols": ["document", "lm_eval_wikitext"], "document_bos": False}):
        report, _, _ = report_of(base, text, bos_policy="none", **settings)
        words = report["protocols"]["lm_eval_wikitext"]
        assert words["printed"] == {"unit": "word_ppl_est", "value": words["word_ppl_est"]}
        assert report["ladder"][-1]["ppl"] == pytest.approx(words["word_ppl_est"], rel=1e-12)
        assert report["ladder_summary"]["sum"] == pytest.approx(report["ladder_summary"]["ln_ratio"], abs=1e-12)


def test_the_free_division_is_exact_too(base, text) -> None:
    report, _, _ = report_of(base, text)
    [gap] = report["gaps"]
    words = report["protocols"]["lm_eval_wikitext"]
    assert gap["unit"] + gap["rest"] == pytest.approx(gap["ln_ratio"], abs=1e-12)
    assert gap["tokens_per_word"] == words["tokens_scored"] / words["words"]
    assert gap["unit_alone"] == pytest.approx(report["protocols"]["wanda"]["token_ppl"] ** gap["tokens_per_word"])
    assert gap["unit_alone"] * math.exp(gap["rest"]) == pytest.approx(words["word_ppl"])


def test_a_ladder_that_does_not_add_up_is_an_error(base, text) -> None:
    _, description, outcomes = report_of(base, text)
    wrong = copy.deepcopy(outcomes)
    wrong[description["ladder"]["rungs"][-1]["plan"]]["nll"] *= 1.001
    with pytest.raises(RunError, match="adds up to"):
        perplexity_report(description, wrong, MODEL)


def test_units_of_protocols_that_leave_tokens_out_are_null_and_estimated(base, text) -> None:
    report, _, _ = report_of(base, text, protocols=["wanda", "strided", "llama_cpp", "document"])
    for protocol in report["protocols"].values():
        assert protocol["word_ppl"] is protocol["byte_ppl"] is protocol["bits_per_byte"] is None
        assert protocol["ln_word_ppl_se"] is None
        expected = protocol["nll"] / protocol["tokens_scored"] * protocol["text_tokens"] / protocol["words"]
        assert protocol["word_ppl_est"] == pytest.approx(math.exp(expected))
    whole, _, _ = report_of(base, text, protocols=["document"], window=10_000, allow_longer=True)
    assert whole["protocols"]["document"]["word_ppl"] and whole["protocols"]["document"]["word_ppl_est"] is None


def test_warnings_of_a_plain_run(base, text) -> None:
    report, _, _ = report_of(base, text)
    found = codes(report)
    assert found == {
        ("double_bos", "lm_eval_wikitext"), ("short_window", "wanda"), ("short_window", "lm_eval_wikitext"),
        ("few_documents", "wanda"), ("few_documents", "lm_eval_wikitext"),
    }  # fmt: skip
    double = next(w["text"] for w in report["warnings"] if w["code"] == "double_bos")
    step = next(r for r in report["ladder"] if "BOS as first target" in r["switch"])
    assert double.startswith("4 BOS tokens") and f"{step['contribution']:+.4f}" in double
    single, _, _ = report_of(base, text, bos_policy="single")
    assert codes(single) == found - {("double_bos", "lm_eval_wikitext")}


def test_warnings_of_windows_and_tails(base, text, tmp_path) -> None:
    longer, _, _ = report_of(base, text, window=100, allow_longer=True)
    assert ("beyond_context", "wanda") in codes(longer) and ("short_window", "wanda") not in codes(longer)
    short = write_text(tmp_path / "short.txt", pages=1)
    report, _, _ = report_of(base, short, window=5000, allow_longer=True, tail="score")
    assert {("short_text", "wanda"), ("one_page", "")} <= codes(report)
    text_of = {w["code"]: w["text"] for w in report["warnings"]}
    assert str(report["protocols"]["lm_eval_wikitext"]["longest_text"]) in text_of["short_text"]
    assert not {code for code, _ in codes(report)} & {"few_documents", "dropped"}
    tokens = report["protocols"]["wanda"]["text_tokens"] + 1
    just, _, _ = report_of(base, short, window=tokens, allow_longer=True)
    assert ("short_text", "wanda") not in codes(just) and just["protocols"]["wanda"]["windows"] == 1
    window = tokens // 2 + 3  # nearly half of it is behind the last full window
    dropped, _, _ = report_of(base, short, window=window, allow_longer=True)
    [told] = [w["text"] for w in dropped["warnings"] if w["code"] == "dropped"]
    assert told.startswith(f"{tokens - window} tokens behind the last full window") and "tail score" in told
    cut, _, _ = report_of(base, text, protocols=["document"])
    assert {("dropped", "document"), ("mean_of_texts", "document")} <= codes(cut)


def test_warnings_of_the_text(base, tmp_path) -> None:
    unknown = tmp_path / "wiki.test.raw"
    unknown.write_text(" \n = One = \n \n a <unk> c d . \n \n = Two = \n \n <unk> e . \n")
    report, _, _ = report_of(base, unknown, window=8)
    found = {w["code"]: w["text"] for w in report["warnings"]}
    assert found["unk_text"].startswith("2 of the words") and "62 pages (here 2)" in found["not_wikitext_2"]
    other = copy.deepcopy(report)
    other["text"] |= {"name": "Salesforce/wikitext, wikitext-103-raw-v1", "unk_words": 0}
    assert {w["code"] for w in warnings(other)} & {"wikitext_103", "unk_text"} == {"wikitext_103"}
    other["text"] |= {"name": "wiki.test.raw", "pages": 62, "words": 241_335, "bytes": 1_290_527}
    assert not {w["code"] for w in warnings(other)} & {"not_wikitext_2", "wikitext_103"}
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"text": "<s> one\\ntwo"}\n{"text": ""}\n{"text": "three\\nfour"}\n')
    report, _, _ = report_of(base, empty, protocols=["lm_eval_wikitext"], bos_policy="single")
    assert ("empty_documents", "lm_eval_wikitext") in codes(report)
    # Its one word counts, as in the harness; its prefix is no text that was dropped.
    found = report["protocols"]["lm_eval_wikitext"]
    assert found["words"] == 6 and found["tokens_dropped"] == 0 and found["ln_word_ppl_se"] is not None
    assert found["word_ppl"] == pytest.approx(math.exp(found["nll"] / 6)) and found["word_ppl_est"] is None


def test_warnings_of_the_model_and_of_numbers(base, text) -> None:
    half, description, outcomes = report_of(base, text, model={**MODEL, "dtype": "bfloat16"})
    assert ("half_precision", "") in codes(half)
    large = copy.deepcopy(outcomes)
    for outcome in large:
        outcome["nll"] *= 300
        outcome["document_nll"] = [300 * value for value in outcome["document_nll"]]
    report = perplexity_report(description, large, MODEL)
    assert report["protocols"]["lm_eval_wikitext"]["word_ppl"] == math.inf  # no OverflowError
    assert {("overflow", "lm_eval_wikitext"), ("not_finite", "wanda")} <= codes(report)
    assert ladder_figure(report) is not None and "inf" in to_markdown(report)
    assert "no finite number" in report["ladder_summary"]["answer"]


def test_numbers() -> None:
    shown = {0.0027838: "0.00278", 0.71601: "0.716", 1419.7312: "1,420", 4.17e9: "4.17e+09", math.nan: "–"}
    assert {value: number(value, 3) for value in shown} == shown
    assert number(None) == "–" and number(math.inf) == "inf" and number(0.0) == "0.0000"
    assert interval((3.414e9, 5.094e9)) == "3.41e+09 – 5.09e+09" and interval((1.5, math.nan)) == "–"


def test_no_figure_is_cut_on_a_narrow_screen(base, text) -> None:
    report, _, _ = report_of(base, text, level=9.0)
    for width in (40, 80, 200):
        console = Console(width=width, file=io.StringIO())
        print_perplexity(report, console)
        shown = console.file.getvalue()
        assert "…" not in shown
        for protocol in report["protocols"].values():
            assert number(protocol["token_ppl"]) in shown and number(protocol["tokens_per_byte"], 4) in shown
        assert all(f"{rung['contribution']:+.6f}" in shown for rung in report["ladder"][1:])
        if width >= 80:
            assert max(map(len, shown.splitlines())) <= width
    page = to_markdown(report, "ladder.png")
    assert "![ladder](ladder.png)" in page and f"{report['ladder_summary']['sum']:+.6f}" in page
    for table in re.findall(r"(?:^\|.*\n?)+", page, re.M):
        assert len({line.replace("\\|", "").count("|") for line in table.strip().splitlines()}) == 1


def test_the_waterfall_stands_on_the_rungs(base, text) -> None:
    report, _, _ = report_of(base, text)
    figure = ladder_figure(report)
    bars = [bar for container in figure.axes[0].containers for bar in container]
    values = [rung["ln_ppl"] for rung in report["ladder"]]
    assert [bars[0].get_width(), bars[1].get_width()] == [values[0], values[-1]]
    steps = [(bar.get_x(), bar.get_x() + bar.get_width()) for bar in bars[2:]]
    assert steps == [pytest.approx(pair) for pair in zip(values, values[1:], strict=False)]
    assert to_png(figure).startswith(b"\x89PNG")
    assert ladder_figure(report_of(base, text, ladder="none")[0]) is None


def write(folder, made) -> str:
    report, description, outcomes = made
    write_perplexity(folder, report, description, outcomes)
    return str(folder)


def test_comparing_two_models(base, text, tmp_path) -> None:
    one = write(tmp_path / "one", report_of(base, text))
    other = write(tmp_path / "other", report_of(base, text, level=3.1, model={**MODEL, "digest": "1"}))
    found = compare_perplexity(one, other)
    token = found["protocols"]["wanda"]["units"]["token"]
    # Each token is harder by the same 0.1, so that the ratio has no uncertainty at all.
    assert token["ln_ratio"] == pytest.approx(0.1) and token["se"] == pytest.approx(0, abs=1e-12)
    word = found["protocols"]["lm_eval_wikitext"]["units"]["word"]
    reports = [read_perplexity(run)[0]["protocols"]["lm_eval_wikitext"] for run in (one, other)]
    assert word["ln_ratio"] == pytest.approx(math.log(reports[1]["word_ppl"] / reports[0]["word_ppl"]))
    lines = [read_perplexity(run)[1]["lm_eval_wikitext"] for run in (one, other)]
    differences = [b["nll"] - a["nll"] for a, b in zip(*lines, strict=True)]
    words = [line["words"] for line in lines[0]]
    mean = sum(differences) / sum(words)
    squares = sum((d - mean * w) ** 2 for d, w in zip(differences, words, strict=True))
    assert word["se"] == pytest.approx(math.sqrt(4 / 3 * squares) / sum(words))
    assert word["interval"] == pytest.approx([math.exp(mean + sign * 1.959964 * word["se"]) for sign in (-1, 1)])
    console = Console(width=80, file=io.StringIO())
    print_perplexity_comparison(found, console)
    shown = console.file.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80 and f"{word['ratio'] - 1:+.2%}" in shown


def test_comparing_other_protocols_converts_the_units(base, text, tmp_path) -> None:
    one = write(tmp_path / "one", report_of(base, text, protocols=["wanda"]))
    other = write(tmp_path / "other", report_of(base, text, protocols=["lm_eval_wikitext"]))
    with pytest.raises(UserError, match="no protocol in common") as error:
        compare_perplexity(one, other, allow_differences=True)
    reports = [next(iter(read_perplexity(run)[0]["protocols"].values())) for run in (one, other)]
    converted = reports[0]["token_ppl"] ** (reports[1]["tokens_scored"] / reports[1]["words"])
    assert f"would be {number(converted)} per word" in str(error.value)
    assert f"is {number(reports[1]['token_ppl'])} per token" in str(error.value)


def test_a_result_that_is_no_result_is_refused(base, text, tmp_path) -> None:
    one = write(tmp_path / "one", report_of(base, text))
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "perplexity.json").write_text('{"protocols": {')
    with pytest.raises(UserError, match="cannot be read"):
        compare_perplexity(one, tmp_path / "half")
    write_json(tmp_path / "half" / "perplexity.json", {"protocols": {}})
    with pytest.raises(UserError, match="no result of a perplexity run"):
        compare_perplexity(one, tmp_path / "half")


@pytest.mark.parametrize(
    "where", ["gaps", "text.sha256", "model.base", "tokenizer.vocabulary", "protocols.wanda", "protocols.wanda.nll",
              "protocols.wanda.printed.value", "protocols.wanda.card", "protocols.wanda.token_ppl"]
)  # fmt: skip
def test_a_result_that_lacks_something_is_refused(base, text, tmp_path, where: str) -> None:
    one, other = (write(tmp_path / name, report_of(base, text)) for name in ("one", "other"))
    file = tmp_path / "other" / "perplexity.json"
    report = json.loads(file.read_text())
    *path, last = where.split(".")
    inner = report
    for key in path:
        inner = inner[key]
    for wrong in ("x", ...):
        inner[last] = wrong
        if wrong is ...:
            del inner[last]
        elif where in ("text.sha256", "model.base"):
            continue  # any string will do
        if where == "protocols.wanda" and wrong is ...:
            continue  # a run need not have this protocol
        file.write_text(json.dumps(report))
        with pytest.raises(UserError, match=r"perplexity\.json: is no result of a perplexity run"):
            compare_perplexity(one, other)


def test_documents_that_are_no_numbers_are_refused(base, text, tmp_path) -> None:
    one, other = (write(tmp_path / name, report_of(base, text)) for name in ("one", "other"))
    file = tmp_path / "other" / "perplexity_documents.jsonl"
    whole = file.read_text()
    for wrong in ('"nll": "5", "tokens": 3', '"nll": 5.0, "tokens": "3"', '"nll": 5.0, "tokens": 3, "words": "a"'):
        file.write_text(whole + '{"protocol": "wanda", ' + wrong + "}\n")
        with pytest.raises(UserError, match=r"documents\.jsonl:9: needs protocol, nll and tokens"):
            compare_perplexity(one, other)


def test_a_unit_beyond_float64_is_named_not_left_out(base, text, tmp_path) -> None:
    _, description, outcomes = report_of(base, text)
    for outcome in outcomes:
        outcome["nll"] *= 100
        outcome["document_nll"] = [100 * value for value in outcome["document_nll"]]
    report = perplexity_report(description, outcomes, MODEL)
    assert report["protocols"]["lm_eval_wikitext"]["word_ppl"] == math.inf
    one, other = (write(tmp_path / name, (report, description, outcomes)) for name in ("one", "other"))
    found = compare_perplexity(one, other)
    assert set(found["protocols"]["lm_eval_wikitext"]["units"]) == {"token", "byte"}
    assert any("lm_eval_wikitext / word" in note and "float64" in note for note in found["notes"])
    assert not any("wanda / word" in note for note in found["notes"])
