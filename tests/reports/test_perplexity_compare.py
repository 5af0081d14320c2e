"""Comparisons of perplexity runs, and runs that are none; no model is run."""

import io
import json
import math

import pytest
from rich.console import Console

from lit_hass.errors import UserError
from lit_hass.records import write_json
from lit_hass.reports.perplexity_compare import compare_perplexity
from lit_hass.reports.perplexity_compare_view import print_perplexity_comparison
from lit_hass.reports.perplexity_files import read_perplexity
from lit_hass.reports.perplexity_result import perplexity_report
from lit_hass.reports.perplexity_rows import number
from tests.perplexity_bases import make_base, write_text
from tests.reports.perplexity_runs import MODEL, report_of, write


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text") / "text.txt", pages=6)


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
    assert word["se"] == pytest.approx(math.sqrt(6 / 5 * squares) / sum(words))
    # Well beyond two standard errors, as six documents must have it: t of 5 degrees of freedom is 2.57.
    low, high = (math.log(bound) for bound in word["interval"])
    assert low < mean - 2.4 * word["se"] and high > mean + 2.4 * word["se"]
    console = Console(width=80, file=io.StringIO())
    print_perplexity_comparison(found, console)
    shown = console.file.getvalue()
    assert "…" not in shown and max(map(len, shown.splitlines())) <= 80 and f"{word['ratio'] - 1:+.2%}" in shown


def test_of_few_documents_there_is_no_interval_and_the_comparison_says_so(base, tmp_path) -> None:
    text = write_text(tmp_path / "text.txt", pages=4)
    made = [report_of(base, text, level=level) for level in (3.0, 3.1)]
    for report, _, _ in made:
        assert report["protocols"]["wanda"]["token_ppl_interval"] is None
        assert any(w["code"] == "few_documents" and "4 documents" in w["text"] for w in report["warnings"])
    found = compare_perplexity(*(write(tmp_path / str(i), one) for i, one in enumerate(made)))
    token = found["protocols"]["wanda"]["units"]["token"]
    assert token["interval"] is None and token["se"] is not None and "4 documents" in token["undefined"]
    console = Console(width=80, file=io.StringIO())
    print_perplexity_comparison(found, console)
    assert "wanda / token has no interval: 4 documents are too few" in " ".join(console.file.getvalue().split())


def test_a_mean_of_texts_is_told_beside_what_is_paired(base, text, tmp_path) -> None:
    made = [report_of(base, text, level=level, protocols=["document"]) for level in (3.0, 3.1)]
    found = compare_perplexity(*(write(tmp_path / str(i), one) for i, one in enumerate(made)))
    means = [number(report["protocols"]["document"]["mean_text_ppl"]) for report, _, _ in made]
    assert means[0] != means[1] and any(f"{means[0]} and {means[1]}" in note for note in found["notes"])


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
        with pytest.raises(UserError, match=r"documents\.jsonl:13: needs protocol, nll and tokens"):
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


def test_attention_and_versions_that_differ_are_told(base, text, tmp_path) -> None:
    def run(name: str, attention: str, torch_version: str) -> str:
        report, description, outcomes = report_of(base, text, model={**MODEL, "attention": attention})
        report["environment"] = {"packages": {"torch": torch_version, "transformers": "5.0"}}
        return write(tmp_path / name, (report, description, outcomes))

    notes = compare_perplexity(run("one", "sdpa", "2.9"), run("other", "eager", "2.8"))["notes"]
    assert any("attention is computed by sdpa and by eager" in note for note in notes)
    assert any("torch 2.9 and 2.8" in note for note in notes) and not any("transformers" in note for note in notes)
    alike = compare_perplexity(run("third", "sdpa", "2.9"), run("fourth", "sdpa", "2.9"))["notes"]
    assert not any("attention" in note or "torch" in note for note in alike)
