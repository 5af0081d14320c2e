"""`CollapseAnalyzer`: the original's keys and formulas, what is beside them, and what is refused."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from lit_hass.errors import UserError
from lit_hass.reports import CollapseAnalyzer, write_collapse_report
from lit_hass.reports.collapse_chunks import analyze_chunks, analyze_sequence, corrected_fall
from tests.reports.collapse_data import metrics_dict

SUMMARY = [
    "total_tokens_analyzed", "tokens_with_metrics", "avg_svd_entropy", "std_svd_entropy", "avg_samples_per_token",
    "min_samples", "max_samples",
]  # fmt: skip
CHUNKS = ["num_chunks", "avg_svd_entropy", "std_svd_entropy", "chunk_entropies", "collapse_pattern"]


@pytest.fixture(scope="module")
def metrics():
    return metrics_dict()


def analyze(metrics, config=None):
    return CollapseAnalyzer(config).analyze_collapse_metrics(metrics)


def test_the_original_keys_and_their_numbers(metrics) -> None:
    found = analyze(metrics)
    assert list(found["summary"]) == SUMMARY
    assert list(found["overall_analysis"]) == ["overall_svd_entropy", "overall_gnc2", "overall_unc3"]
    assert list(found["chunk_analysis"])[:5] == CHUNKS
    entropies = np.array([token["svd_entropy"] for token in metrics["token_metrics"].values()])
    samples = np.array([token["num_samples"] for token in metrics["token_metrics"].values()])
    assert len(entropies) > 30
    summary = found["summary"]
    assert summary["total_tokens_analyzed"] == metrics["total_tokens"] > samples.sum()
    assert summary["tokens_with_metrics"] == len(entropies)
    assert summary["avg_svd_entropy"] == pytest.approx(np.mean(entropies), rel=1e-12)
    assert summary["std_svd_entropy"] == pytest.approx(np.std(entropies), rel=1e-12)  # the population's, as np.std
    assert summary["avg_samples_per_token"] == pytest.approx(np.mean(samples), rel=1e-12)
    assert (summary["min_samples"], summary["max_samples"]) == (samples.min(), samples.max())
    overall = metrics["overall_metrics"]
    assert found["overall_analysis"] == {f"overall_{key}": overall[key] for key in ("svd_entropy", "gnc2", "unc3")}
    ids = [int(key) for key in found["token_analysis"]]
    assert ids == sorted(ids) and found["token_analysis"]["7"]["token"] == "<tok\n7>"


def test_the_family_stands_beside_them(metrics) -> None:
    found = analyze(metrics)
    family = metrics["family"]
    k = metrics["counts"]["classes_eligible"]
    gnc2 = found["class_metrics"]["gnc2"]
    assert gnc2["mean"] == family["overall"]["gnc2/mean"] and gnc2["pairs"] == k * (k - 1) // 2
    assert found["scopes"]["answer"]["unc3"]["cov_abs"] == family["answer"]["unc3/cov_abs"]
    assert found["spectra"]["cka"]["linear"] == family["answer"]["cka/linear"] < 1
    assert found["spectra"]["states"]["rejected"] == metrics["states"]["rejected"]
    assert found["spectra"]["states"]["baseline"] is None
    assert found["diagnostics"]["n_special"] == metrics["counts"]["n_special"] > 0
    assert found["meta"]["config"] == metrics["settings"] and found["meta"]["schema_version"] == 2


def test_what_is_switched_off_is_null_and_its_keys_are_there(metrics) -> None:
    off = SimpleNamespace(
        compute_token_metrics=False, compute_overall_metrics=False, compute_class_metrics=False
    )  # fmt: skip
    found = analyze(metrics, off)
    assert found["token_analysis"] is None and found["summary"]["tokens_with_metrics"] is None
    assert found["summary"]["total_tokens_analyzed"] == metrics["total_tokens"]
    assert set(found["overall_analysis"].values()) == {None} == set(found["class_metrics"].values())
    empty = dict.fromkeys(
        ("token_metrics", "overall_metrics", "chunk_metrics", "family", "states", "spectra"), None
    )  # fmt: skip
    found = analyze({**metrics, **empty, "chunks": []})
    assert found["chunk_analysis"] is None and found["token_analysis"] is None


@pytest.mark.parametrize("off", ["compute_overall_metrics", "compute_class_metrics"])
def test_each_switch_takes_its_own_numbers_and_no_others(metrics, off) -> None:
    names = ("compute_token_metrics", "compute_overall_metrics", "compute_class_metrics")
    found = analyze(metrics, SimpleNamespace(**{name: name != off for name in names}))
    entropies, classes = off != "compute_overall_metrics", off != "compute_class_metrics"
    chief = found["overall_analysis"]
    assert (chief["overall_svd_entropy"] is not None) == entropies == (found["spectra"]["overall"] is not None)
    assert (chief["overall_gnc2"] is not None) == (chief["overall_unc3"] is not None) == classes
    assert (found["class_metrics"]["nc1"] is not None) == classes and found["token_analysis"]


def test_no_tokens() -> None:
    nothing = {"num_chunks": 5, "chunk_svd_entropies": [], "avg_svd_entropy": math.nan, "std_svd_entropy": math.nan}
    found = analyze({"total_tokens": 0, "token_metrics": {}, "overall_metrics": {}, "chunk_metrics": nothing})
    assert found["summary"] == dict.fromkeys(SUMMARY, None) | {"total_tokens_analyzed": 0, "tokens_with_metrics": 0}
    assert found["chunk_analysis"]["collapse_pattern"] == "undefined"
    assert found["chunk_analysis"]["avg_svd_entropy"] is None


def test_tokens_without_a_defined_entropy_do_not_count() -> None:
    tokens = {
        10: {"svd_entropy": 1.0, "num_samples": 3},
        9: {"svd_entropy": float("nan"), "num_samples": 50},
        2: {"svd_entropy": 3.0, "num_samples": 5},
    }
    found = analyze({"total_tokens": 60, "token_metrics": tokens})
    assert found["summary"]["tokens_with_metrics"] == 2 and found["summary"]["max_samples"] == 5
    assert found["summary"]["avg_svd_entropy"] == 2.0 and found["summary"]["std_svd_entropy"] == 1.0
    assert list(found["token_analysis"]) == ["2", "9", "10"] and found["token_analysis"]["9"]["svd_entropy"] is None


def test_files_are_strict_json_and_read_back(metrics, tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    returned = CollapseAnalyzer().generate_report({**metrics, "extra": math.inf}, path)
    written = json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert written == returned
    folder = tmp_path / "run"
    assert write_collapse_report(folder, metrics) == returned
    again = json.loads((folder / "collapse_metrics.json").read_text(encoding="utf-8"))
    assert CollapseAnalyzer().analyze_collapse_metrics(again) == returned
    assert {file.name for file in folder.iterdir()} == {"collapse_metrics.json", "collapse_report.json"}


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({}, "total_tokens"),
        ({"total_tokens": 1, "token_metrics": [1]}, "token_metrics"),
        ({"total_tokens": 1, "token_metrics": {"the": {}}}, "'the'"),
        ({"total_tokens": 1, "family": 3}, "family"),
    ],
)
def test_other_files_are_refused_by_name(bad, named) -> None:
    with pytest.raises(UserError, match=named):
        analyze(bad)


def test_unequal_chunks_fake_a_rise_that_the_correction_takes_away() -> None:
    # 14 rows of full entropy in chunks of 2, 2, 2, 2 and 6 rows: every chunk is at its bound, ln of its rows.
    entropies = [math.log(2)] * 4 + [math.log(6)]
    sequence = {
        "question_id": 1, "entropies": entropies[::-1], "normalized": [1.0] * 5,
        "first_minus_last": math.log(3), "pattern": "strong_decline",
    }  # fmt: skip
    found = analyze_sequence(sequence)
    assert found["pattern"] == "strong_decline" and found["corrected_pattern"] == "no_decline"
    assert found["corrected_first_minus_last"] == 0


def test_with_equal_chunks_the_correction_changes_nothing(metrics) -> None:
    for sequence in analyze(metrics)["chunks"]:
        if sequence["length"] % 5 == 0:
            fall = sequence["first_minus_last"]
            assert sequence["corrected_first_minus_last"] == pytest.approx(fall, abs=1e-12)
    # A real fall stays one.
    assert corrected_fall([1.6, 0.8], [1.6 / math.log(8), 0.8 / math.log(8)]) == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("entropies", "normalized", "fall"),
    [
        ([], [], None),
        ([1.0], [0.5], None),
        ([0.0, 0.0], [None, None], None),  # chunks of one row have no bound
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0, 1.0], [0.0, 0.5], -1.0),
    ],
)
def test_falls_at_the_edges(entropies, normalized, fall) -> None:
    assert corrected_fall(entropies, normalized) == fall


def test_the_summary_of_chunks(metrics) -> None:
    found = analyze(metrics)["chunk_analysis"]
    rows = np.array([chunk["normalized"] for chunk in metrics["chunks"]])
    assert found["normalized_entropies"] == pytest.approx(rows.mean(0))
    assert found["first_minus_last"] == pytest.approx(found["chunk_entropies"][0] - found["chunk_entropies"][-1])
    assert sum(found["patterns"].values()) == found["sequences"] == len(metrics["chunks"])
    short = analyze_sequence({"question_id": 1, "length": 3, "entropies": [], "normalized": [], "pattern": "undefined"})
    found = analyze_chunks({"num_chunks": 5, "chunk_svd_entropies": []}, [short])
    assert found["sequences_undefined"] == 1 and found["corrected_pattern"] == "undefined"
