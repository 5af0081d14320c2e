"""Every target of the reference: what the original evaluators return for a tiny model and 22 pages."""

import json
import math
import os
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lit_hass.data import PerplexityDataModule
from lit_hass.modules import PerplexityModule
from lit_hass.reports.perplexity_result import perplexity_report

FOLDER = Path(os.environ.get("LIT_HASS_REFERENCE") or "nowhere") / "perplexity"
pytestmark = pytest.mark.skipif(
    not os.environ.get("LIT_HASS_REFERENCE"), reason="LIT_HASS_REFERENCE is not set: no reference values here"
)


@pytest.fixture(scope="module")
def expected() -> dict:
    return json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))


def run(**settings):
    data = PerplexityDataModule(str(FOLDER / "valid_head.txt"), **settings)
    module = PerplexityModule(str(FOLDER / "tiny_model"))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    Trainer(accelerator="cpu", **quiet, enable_checkpointing=False).test(module, datamodule=data, verbose=False)
    description = data.describe()
    return data, description, module.outcomes, perplexity_report(description, module.outcomes, {"base": "tiny_model"})


@pytest.fixture(scope="module")
def climbed():
    return run(window=256)


def check_wanda(found: dict, want: dict) -> None:
    exact = want["exact"]
    assert found["nll"] == pytest.approx(exact["nll"], rel=1e-6)
    assert found["token_ppl"] == pytest.approx(exact["token_ppl"], rel=1e-6)
    assert found["token_ppl"] == pytest.approx(want["ppl"], rel=1e-6)  # the original's own, summed in float32
    assert found["nll"] / found["tokens_scored"] == pytest.approx(exact["mean_nll"], rel=1e-6)
    counts = {"windows": "windows", "tokens_scored": "tokens_scored", "tokens_dropped": "tokens_dropped_tail",
              "tokens_unscored": "tokens_unscored_first"}  # fmt: skip
    assert {mine: found[mine] for mine in counts} == {mine: want[theirs] for mine, theirs in counts.items()}
    assert found["text_tokens"] + 1 == want["tokens_total"]
    assert found["word_ppl"] is found["byte_ppl"] is found["bits_per_byte"] is found["ln_word_ppl_se"] is None
    estimate = math.exp(found["nll"] / found["tokens_scored"] * (want["tokens_total"] - 1) / 58611)
    assert found["word_ppl_est"] == pytest.approx(estimate, rel=1e-12)


def check_lm_eval(found: dict, want: dict) -> None:
    assert found["nll"] == pytest.approx(want["nll"], rel=1e-7)
    pairs = {"word_ppl": "word_perplexity", "byte_ppl": "byte_perplexity", "bits_per_byte": "bits_per_byte",
             "token_ppl": "token_ppl", "tokens_per_word": "tokens_per_word"}  # fmt: skip
    for mine, theirs in pairs.items():
        assert found[mine] == pytest.approx(want[theirs], rel=1e-6), mine
    for name in ("windows", "tokens_scored", "bos_targets", "tokens_forwarded"):
        assert found[name] == want[name], name


def test_text(climbed, expected) -> None:
    text, inputs = climbed[3]["text"], expected["inputs"]
    assert (text["sha256"], text["rows"], text["pages"], text["words"], text["bytes"], text["file_bytes"]) == (
        inputs["text_sha256"], inputs["rows"], inputs["pages"], inputs["words"], inputs["page_bytes"],
        inputs["text_bytes"],
    )  # fmt: skip
    data, tokens = climbed[0], expected["token_counts"]
    forms = {"joined": 1, "file": 0, "pages": 0, "detokenised": 0}
    found = {form: sum(len(ids) for ids, _ in data.tokens._tokens(form)) + bos for form, bos in forms.items()}
    assert list(found.values()) == [
        tokens["join_stream_with_bos"], tokens["file"], tokens["pages_raw"], tokens["pages_detokenized"]
    ]  # fmt: skip
    sizes = expected["byte_counts"]
    assert len(data.text.joined.encode()) == sizes["join_stream"]
    detokenised = data.tokens._form_texts("detokenised")
    assert sum(len(page.encode()) for page in detokenised) == sizes["pages_detokenized"]


def test_wanda_and_lm_eval(climbed, expected) -> None:
    protocols = climbed[3]["protocols"]
    check_wanda(protocols["wanda"], expected["wanda"]["256"])
    check_lm_eval(protocols["lm_eval_wikitext"], expected["lm_eval"]["default_bos"]["256"])


def test_documents(climbed, expected) -> None:
    _, description, outcomes, report = climbed
    want = expected["lm_eval_per_document"]
    assert [page["words"] for page in description["documents"]] == want["words"]
    assert [page["bytes"] for page in description["documents"]] == want["bytes"]
    default = outcomes[1]
    assert default["document_nll"] == pytest.approx(want["nll_default_bos"], rel=1e-6)
    assert [tokens - 1 for tokens in default["document_tokens"]] == want["tokens_detokenized"]
    single = outcomes[next(r["plan"] for r in description["ladder"]["rungs"] if r["switch"] == "detokeniser")]
    assert single["document_nll"] == pytest.approx(want["nll_add_bos_token_false"], rel=1e-6)
    error = report["protocols"]["lm_eval_wikitext"]["ln_word_ppl_se"]
    assert error == pytest.approx(want["se_ln_word_ppl_default_bos"], rel=1e-6)
    from lit_hass.metrics.functional.perplexity import paired_estimate

    paired = paired_estimate(single["document_nll"], default["document_nll"], want["words"])
    assert paired.mean == pytest.approx(want["paired_default_minus_false"]["diff_ln_word_ppl"], rel=1e-4)
    assert paired.standard_error == pytest.approx(want["paired_default_minus_false"]["se"], rel=1e-4)


def test_ladder(climbed, expected) -> None:
    report = climbed[3]
    rungs, want = report["ladder"], expected["ladder_wanda256_to_lm_eval256"]
    assert [(r["tokens_scored"], r["windows"]) for r in rungs[:-1]] == [(w["tokens"], w["windows"]) for w in want]
    assert [r["nll"] for r in rungs[:-1]] == pytest.approx([w["nll"] for w in want], rel=1e-6)
    # The reference page's table.
    contributions = [-0.000169, 0.000462, -0.224763, 0.001437, 1.167781, 0.001469, 3.598444]
    assert [r["contribution"] for r in rungs[1:]] == pytest.approx(contributions, abs=1e-6)
    printed = [report["protocols"][name]["printed"]["value"] for name in ("wanda", "lm_eval_wikitext")]
    total = math.log(printed[1] / printed[0])
    assert math.fsum(r["contribution"] for r in rungs[1:]) == pytest.approx(total, abs=1e-9)
    assert total == pytest.approx(4.544661, abs=1e-6)


def test_strided(expected) -> None:
    _, _, _, report = run(protocols=["strided"], window=256, stride=200)
    check_strided(report, expected["hf_strided"]["L256_s200"])


def check_strided(report: dict, want: dict) -> None:
    found = report["protocols"]["strided"]
    assert found["nll"] == pytest.approx(want["nll"], rel=1e-6)
    assert found["token_ppl"] == pytest.approx(want["token_ppl"], rel=1e-6)
    for name in ("tokens_scored", "windows", "tokens_forwarded"):
        assert found[name] == want[name], name


@pytest.mark.slow
def test_the_rest(expected) -> None:
    _, _, _, report = run(protocols=["strided"], window=256, stride=64)
    check_strided(report, expected["hf_strided"]["L256_s64"])
    for policy, name in (("lm_eval_default", "default_bos"), ("single", "add_bos_token_false")):
        for window in (128, 256):
            wanted = ["wanda", "lm_eval_wikitext"]
            _, _, _, report = run(protocols=wanted, window=window, bos_policy=policy, ladder="none")
            check_wanda(report["protocols"]["wanda"], expected["wanda"][str(window)])
            check_lm_eval(report["protocols"]["lm_eval_wikitext"], expected["lm_eval"][name][str(window)])
