"""Reports of plans whose tokens have made-up likelihoods: ladders, warnings, tables, plot; no model is run."""

import copy
import io
import math
import re

import pytest
from rich.console import Console

from lit_hass.errors import RunError
from lit_hass.reports.perplexity_compare import compare_perplexity
from lit_hass.reports.perplexity_compare_view import rows
from lit_hass.reports.perplexity_plot import ladder_figure, to_png
from lit_hass.reports.perplexity_result import perplexity_report
from lit_hass.reports.perplexity_rows import interval, number, result_rows
from lit_hass.reports.perplexity_view import print_perplexity, to_markdown
from lit_hass.reports.perplexity_warnings import warnings
from tests.perplexity_bases import make_base, write_text
from tests.reports.perplexity_runs import MODEL, report_of, write


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", pages=4)


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
        assert words["printed"] == {"unit": "word_ppl_est", "value": words["word_ppl_est"], "original": True}
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_brackets_are_what_the_original_prints_in_that_precision(base, text, tmp_path, dtype: str) -> None:
    """Wanda's script and the harness take the softmax in half precision, where ours is in float32."""
    model = {**MODEL, "dtype": dtype}
    made = [
        report_of(
            base,
            text,
            level=level,
            model=model,
            protocols=["wanda", "lm_eval_wikitext", "strided", "llama_cpp"],
            stride=8,
        )
        for level in (3.0, 3.1)
    ]
    report = made[0][0]
    marks = {row[0]: next(cell for cell in row[1:] if cell[0] in "[(")[0] for row in result_rows(report)}
    half = "[" if dtype == "float32" else "("
    assert marks == {"wanda": half, "lm_eval_wikitext": half, "strided": "[", "llama_cpp": "["}
    found = compare_perplexity(*(write(tmp_path / str(i), each) for i, each in enumerate(made)))
    shown = {row[0]: row[1][0] + row[2][0] for row in rows(found) if row[1][0] in "[("}
    assert shown == {"wanda / token": half * 2, "lm_eval_wikitext / word": half * 2, "strided / token": "[[",
                     "llama_cpp / token": "[["}  # fmt: skip
    warned = [w["text"] for w in report["warnings"] if w["code"] == "half_precision"]
    assert len(warned) == (dtype != "float32") and all("0.95 %" in text for text in warned)
