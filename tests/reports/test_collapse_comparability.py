"""What of two collapse reports may be compared."""

import copy
from pathlib import Path

import pytest

from lit_hass.reports import CollapseAnalyzer
from lit_hass.reports.collapse_comparability import (
    CHUNKS,
    CKA,
    CLASSES,
    EQUAL_ROWS,
    NORMALISED,
    SPECTRA,
    TOKENS,
    comparability,
)
from lit_hass.reports.collapse_rows import NOT_COMPARABLE, collapse_rows
from lit_hass.reports.collapse_run import CollapseSubject
from tests.reports.collapse_data import metrics_dict

ALL = (SPECTRA, NORMALISED, EQUAL_ROWS, CLASSES, TOKENS, CHUNKS, CKA)


@pytest.fixture(scope="module")
def metrics():
    return metrics_dict()


def subject(metrics, label: str = "a") -> CollapseSubject:
    return CollapseSubject(label, Path(label), metrics, CollapseAnalyzer().analyze_collapse_metrics(metrics))


def judged(one, other):
    return {statement.topic: statement for statement in comparability(subject(one), subject(other, "b"))}


def changed(metrics, group: str, **values):
    other = copy.deepcopy(metrics)
    other[group].update(values)
    return other


def levels(one, other):
    return {topic: statement.level for topic, statement in judged(one, other).items()}


def test_a_run_is_comparable_to_itself(metrics) -> None:
    found = judged(metrics, metrics)
    assert set(found) == set(ALL)
    assert all(statement.level == "comparable" and not statement.reasons for statement in found.values())


@pytest.mark.parametrize(
    ("group", "key", "value", "barred", "careful"),
    [
        ("settings", "svd_variant", "b", {SPECTRA, NORMALISED, EQUAL_ROWS, TOKENS, CHUNKS}, set()),
        ("settings", "gnc2_reduction", "std", {CLASSES}, set()),
        ("settings", "chunks", 4, {CHUNKS}, set()),
        ("settings", "layer", 2, set(ALL), set()),
        ("settings", "min_samples_per_token", 5, set(), {CLASSES, TOKENS}),
        ("settings", "special_tokens", "eos_pad", set(), {SPECTRA, NORMALISED, EQUAL_ROWS, CLASSES, TOKENS, CKA}),
        ("settings", "max_buffer_size", 7, set(), set()),
        ("meta", "feature_dim", 48, {SPECTRA, TOKENS, CHUNKS}, {NORMALISED, EQUAL_ROWS, CLASSES, CKA}),
        ("meta", "feature_dtype", "bfloat16", set(), set(ALL)),
        ("meta", "question_file", "other.jsonl", set(), set(ALL)),
        ("meta", "model", "llama", set(), set(ALL)),
        ("meta", "draft", "another", set(), {CKA}),
        ("meta", "questions", 5, set(), set(ALL)),
    ],
)
def test_each_difference_has_its_consequence(metrics, group, key, value, barred, careful) -> None:
    before = metrics[group].get(key)
    found = judged(metrics, changed(metrics, group, **{key: value}))
    assert {topic for topic, s in found.items() if s.level == "not comparable"} == barred
    assert {topic for topic, s in found.items() if s.level == "with care"} == careful
    named = [reason for topic in barred | careful for reason in found[topic].reasons]
    assert all(str(value) in reason for reason in named)
    assert before is None or all(str(before).removesuffix("-hass") in reason for reason in named)


def test_a_base_with_and_without_its_draft_is_one_model(metrics) -> None:
    plain = metrics_dict(draft=False)
    assert plain["meta"]["model"] != metrics["meta"]["model"]
    found = judged(plain, metrics)
    assert found[SPECTRA].level == found[CLASSES].level == found[CHUNKS].level == "comparable"
    assert found[CKA].level == "not comparable" and "a has no draft" in str(found[CKA])
    assert CKA not in judged(plain, plain)


def test_more_text_and_other_classes_are_said() -> None:
    found = judged(metrics_dict(), metrics_dict(questions=2, seed=3))
    assert found[SPECTRA].level == "with care" and "rows" in str(found[SPECTRA])
    assert found[CLASSES].level == "with care" and "tokens in both" in str(found[CLASSES])
    assert found[CHUNKS].level == "with care" and "tokens on average" in str(found[CHUNKS])


def test_the_same_ids_of_another_vocabulary_are_other_classes(metrics) -> None:
    other = copy.deepcopy(metrics)
    for token in other["token_metrics"].values():
        token["token"] = token["token"].upper()
    assert "0 tokens in both" in str(judged(metrics, other)[CLASSES])


def test_classes_that_nobody_recorded_are_compared_with_care(metrics) -> None:
    other = {**metrics, "token_metrics": None}
    assert levels(metrics, other)[CLASSES] == levels(other, other)[CLASSES] == "with care"


def test_files_of_the_original_scripts_are_compared_with_care(metrics) -> None:
    plain = {key: metrics[key] for key in ("total_tokens", "token_metrics", "overall_metrics", "chunk_metrics")}
    found = judged(plain, plain)
    assert found[SPECTRA].level == "with care" and "not recorded" in str(found[SPECTRA])


def test_tokens_of_samples_of_other_sizes_are_not_compared(metrics) -> None:
    small, large = copy.deepcopy(metrics), copy.deepcopy(metrics)
    small["counts"]["n_kept_cap"], large["counts"]["n_kept_cap"] = 2, 256
    assert levels(small, large)[TOKENS] == "comparable"  # all rows fit
    token = max(small["token_metrics"].values(), key=lambda each: each["num_samples"])
    token["sampled"] = 2
    assert "at most 2 and at most 256 rows" in str(judged(small, large)[TOKENS])
    assert levels(small, large)[TOKENS] == "not comparable" and levels(small, large)[CLASSES] == "comparable"
    small["counts"]["n_kept_cap"], small["counts"]["classes_left_out"] = 256, 7
    assert "7 and 0 token classes are left out" in str(judged(small, large)[TOKENS])


def test_equal_rows_that_one_run_does_not_have(metrics) -> None:
    older = {key: value for key, value in metrics.items() if key != "equal_rows"}
    assert levels(metrics, older)[EQUAL_ROWS] == "not comparable" and EQUAL_ROWS not in levels(older, older)


def test_no_difference_is_shown_of_what_is_not_comparable(metrics) -> None:
    pair = subject(metrics), subject(changed(metrics, "settings", svd_variant="b"), "b")
    rows = {row.label: row for row in collapse_rows(pair, comparability(*pair))}
    assert rows["SVD entropy"].difference == NOT_COMPARABLE == rows["SVD entropy per token"].difference
    assert rows["GNC2 (mean)"].difference == "0"
