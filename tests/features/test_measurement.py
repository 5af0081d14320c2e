"""A measurement without a Trainer: by definitions, by ten lines, and with what users get wrong."""

import dataclasses
import gc
import json
import logging
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_hass.errors import RunError
from lit_hass.features import CollapseConfig, CollapseMeasurement, FeatureStore, extract_features, special_ids
from lit_hass.features.row_keys import row_keys
from lit_hass.features.sequences import on_host
from lit_hass.metrics import CollapseMetrics
from tests.features.plain_metrics import assert_plain, entropy, plain_metrics
from tests.features.sequences import (
    CLASSES,
    SPECIAL,
    WIDTH,
    assert_close,
    classifier,
    expected_values,
    make_sequence,
    new_measurement,
)
from tests.features.ten_lines import collapse_report

TEXTS = [f"<tr><td>{a}</td><td>{b}</td></tr> {a} {b}" for a in ("ham", "eggs", "tea") for b in ("12", "7.5", "green")]


def test_ten_lines_measure_any_model(tiny_base, tmp_path):
    report = collapse_report(str(tiny_base), TEXTS, str(tmp_path / "new" / "report.json"))
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    rows, ids = [], []
    for text in TEXTS:
        tokens = tokenizer(text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            rows.append(model(tokens, output_hidden_states=True).hidden_states[-1][0, :-1])
        ids.append(tokens[0, 1:])
    head = model.lm_head.weight.detach()
    plain = plain_metrics(torch.cat(rows), torch.cat(ids), head, special_ids(tokenizer))
    assert report["summary"]["total_tokens_analyzed"] == plain["total_tokens"]
    assert report["summary"]["tokens_with_metrics"] == len(plain["tokens"])
    entropies = [value for _, value in plain["tokens"].values()]
    assert report["summary"]["avg_svd_entropy"] == pytest.approx(sum(entropies) / len(entropies), abs=1e-6)
    overall = report["overall_analysis"]
    assert overall["overall_svd_entropy"] == pytest.approx(plain["svd_entropy/overall"], abs=1e-6)
    assert overall["overall_gnc2"] == pytest.approx(plain["gnc2/mean"], abs=1e-6)
    assert overall["overall_unc3"] == pytest.approx(plain["unc3/cov_abs"], abs=1e-6)
    assert json.loads((tmp_path / "new" / "report.json").read_text())["overall_analysis"] == overall


def test_a_store_and_a_metric_work_without_a_measurement(tiny_base):
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    metric = CollapseMetrics(32, model.lm_head.weight.detach())
    chance = torch.Generator().manual_seed(0)
    rows, ids = [], []
    config = CollapseConfig(save_every=7, max_buffer_size=20)
    with FeatureStore(32, config, lambda block: metric.update(block.features, block.token_ids)) as store:
        for _ in range(9):
            features, targets = extract_features(model, torch.randint(5, 40, (2, 12), generator=chance))
            store.add_features(features, targets)
            rows.append(features)
            ids.append(targets)
        store.consolidate()
    plain = plain_metrics(torch.cat(rows), torch.cat(ids), model.lm_head.weight.detach())
    values = metric.compute()
    for name in ("svd_entropy/overall", "gnc2/mean", "unc3/cov_abs", "nc1/cdnv", "nc2/equinorm"):
        assert float(values[name]) == pytest.approx(plain[name], abs=1e-6), name


@pytest.mark.parametrize("buffer", [1, 37, 10000])
def test_values_are_those_of_the_definitions_however_rows_are_buffered(buffer):
    sequences = [make_sequence(question, drafts=False) for question in range(8)]
    measurement = new_measurement(CollapseConfig(max_buffer_size=buffer, save_every=buffer, max_samples_per_class=9999))
    for sequence in sequences:
        measurement.add_question([sequence])
    metrics = measurement.get_collapse_metrics()
    for scope in ("overall", "prompt", "answer"):
        rows, ids = [], []
        for sequence in sequences:
            wanted = {"overall": sequence.states >= 0, "prompt": sequence.states == 0, "answer": sequence.states > 0}
            rows.append(sequence.features[wanted[scope]])
            ids.append(sequence.token_ids[wanted[scope]])
        plain = plain_metrics(torch.cat(rows), torch.cat(ids), classifier(), SPECIAL)
        assert_plain(metrics, scope, plain, 1e-9)
        assert_close(metrics["family"][scope], {"gnc2/mean": expected_values(sequences, scope)["gnc2/mean"]})
    counts = metrics["counts"]
    assert counts["rows_added"] == counts["rows_in_statistics"] + counts["n_special"] == 8 * 45
    assert counts["reservoir_reproducible"] and counts["n_rejected"] == 40


def test_rows_that_are_not_finite_are_left_out_of_everything_and_counted():
    clean, dirty = new_measurement(), new_measurement()
    for question in range(4):
        sequence = make_sequence(question)
        clean.add_question([sequence])
        if question == 2:
            n, kept = len(sequence.token_ids), torch.ones(len(sequence.token_ids), dtype=torch.bool)
            features = torch.cat((sequence.features, sequence.features[:2] * torch.tensor([[math.nan], [math.inf]])))
            ids, states = (torch.cat((x, x[:2])) for x in (sequence.token_ids, sequence.states))
            ids[-2:] = 5  # not special
            sequence = type(sequence)(
                sequence.name, features, ids, states, sequence.rejected, sequence.draft_features, sequence.draft_rows
            )
            assert len(kept) == n
        dirty.add_question([sequence])
    a, b = clean.get_collapse_metrics(), dirty.get_collapse_metrics()
    assert b["counts"]["n_nonfinite"] == 2 and b["counts"]["rows_added"] == a["counts"]["rows_added"] + 2
    # The order in which rows arrive at the sums is another, so equal but for rounding.
    for scope, values in a["family"].items():
        assert_close(b["family"][scope], {k: math.nan if v is None else v for k, v in values.items()}, 1e-9)
    assert a["token_metrics"].keys() == b["token_metrics"].keys() and a["chunks"] == b["chunks"]


def test_rows_that_are_not_finite_end_the_run_where_that_was_asked_for():
    measurement = new_measurement(CollapseConfig(nan_strategy="error", storage_dtype="float16"))
    sequence = make_sequence(3)
    measurement.add_question([sequence])
    before = measurement.get_collapse_metrics()
    sequence.features[4, 1] = 1e6  # has no place in float16
    with pytest.raises(RunError, match="3, 0, 0: 1 feature rows are not finite"):
        measurement.add_question([sequence])
    with pytest.raises(RunError, match="a batch of 40 rows: 1 feature rows"):
        measurement.add_batch_features(sequence.features, sequence.token_ids)
    assert measurement.get_collapse_metrics() == before


def test_rows_that_the_sums_do_not_have_for_their_draft_are_not_kept_either():
    measurement = new_measurement()
    for question in range(3):
        sequence = make_sequence(question)
        bad = torch.full_like(sequence.draft_features, math.nan)
        measurement.add_question([dataclasses.replace(sequence, draft_features=bad)])
    metrics = measurement.get_collapse_metrics()
    assert metrics["counts"]["n_nonfinite"] > 20 and len(metrics["token_metrics"]) > 5
    assert all(token["sampled"] == token["num_samples"] for token in metrics["token_metrics"].values())


def test_chunks_too_are_of_what_is_stored():
    sequence = make_sequence(1)
    one, other = (new_measurement(CollapseConfig(storage_dtype="bfloat16")) for _ in range(2))
    one.add_question([sequence])
    other.add_question(on_host([sequence], torch.bfloat16))  # as a journal hands them on
    plain = new_measurement()
    plain.add_question([sequence])
    assert one.chunks == other.chunks != plain.chunks


def test_what_is_undefined_is_logged_once_and_told_each_time(caplog):
    measurement = new_measurement()
    with caplog.at_level(logging.WARNING):
        for question in range(3):
            measurement.add_question([make_sequence(question, length=150, drafts=False)])
            assert "cka/linear" in measurement.get_collapse_metrics()["undefined"]["answer"]
    told = [record.getMessage() for record in caplog.records if "undefined" in record.getMessage()]
    assert len(told) == 1 and "cka/linear" in told[0] and "does not vary" in told[0]
    measurement.clear()
    measurement.add_question([make_sequence(1, length=150, drafts=False)])
    with caplog.at_level(logging.WARNING):
        measurement.get_collapse_metrics()
    assert sum("cka/linear" in record.getMessage() for record in caplog.records) == 2


def test_settings_that_decide_what_is_counted_may_not_change_under_it():
    measurement = new_measurement(CollapseConfig())
    measurement.add_question([make_sequence(1)])
    measurement.config.gnc2_reduction = "min"  # decides what is told
    assert measurement.get_collapse_metrics()["overall_metrics"]["gnc2"] < 0
    measurement.config.chunks = 3
    for action in (measurement.get_collapse_metrics, lambda: measurement.add_question([make_sequence(2)])):
        with pytest.raises(ValueError, match="chunks decide what is counted"):
            action()
    measurement.clear()
    measurement.add_question([make_sequence(1)])
    assert measurement.get_collapse_metrics()["chunk_metrics"]["num_chunks"] == 3


FAMILIES = ("compute_token_metrics", "compute_overall_metrics", "compute_class_metrics")


@pytest.mark.parametrize("on", [(), FAMILIES[:1], FAMILIES[1:2], FAMILIES[2:]], ids=str)
def test_families_that_are_switched_off_keep_nothing_and_are_null(on):
    measurement = new_measurement(CollapseConfig(**{name: name in on for name in FAMILIES}))
    for question in range(3):
        measurement.add_question([make_sequence(question)])
    metrics = measurement.get_collapse_metrics()
    whole = new_measurement()
    for question in range(3):
        whole.add_question([make_sequence(question)])
    expected = whole.get_collapse_metrics()
    assert (metrics["token_metrics"] is None) == (FAMILIES[0] not in on)
    assert (metrics["states"] is None) == (metrics["chunk_metrics"] is None) == (FAMILIES[1] not in on)
    assert (metrics["overall_metrics"]["gnc2"] is None) == (FAMILIES[2] not in on)
    if FAMILIES[0] not in on and FAMILIES[2] not in on:
        # Nothing but a bounded sample of each state, which only the spectra ask for.
        assert measurement.store.nbytes()["host"] == measurement.store.streams.nbytes
        assert bool(measurement.store.streams.nbytes) == (FAMILIES[1] in on)
    for name in ("token_metrics", "chunk_metrics", "states"):
        if metrics[name] is not None:
            assert metrics[name].keys() == expected[name].keys()
    assert metrics["errors"] == [] and json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize("count", [300, 900, 2000])
def test_a_sample_with_too_little_room_leaves_out_classes_and_never_keeps_one_row(count, caplog):
    """26 rows of each class, and room for 1,724: caps of one or none would report total collapse."""
    chance = torch.Generator().manual_seed(0)
    rows = torch.randn(26 * count, 64, generator=chance).bfloat16()
    ids = torch.randperm(26 * count, generator=chance) % count
    config = CollapseConfig(host_bytes=2**20, special_tokens=[])
    with CollapseMeasurement(64, config) as measurement, caplog.at_level(logging.WARNING):
        for part in torch.arange(len(ids)).split(2000):
            measurement.add_batch_features(rows[part], ids[part])
        metrics, again = measurement.get_collapse_metrics(), measurement.get_collapse_metrics()
    counts, tokens = metrics["counts"], metrics["token_metrics"]
    chosen = {token: one for token, one in tokens.items() if one["sampled"]}
    cap = counts["n_kept_cap"]
    assert cap == {300: 4, 900: 2, 2000: 2}[count] and {one["sampled"] for one in chosen.values()} == {cap}
    assert len(tokens) == count and counts["classes_left_out"] == count - len(chosen)
    assert 300 <= len(chosen) <= 862  # all, half or a quarter of the classes, not a few
    keys = row_keys(0, 0, len(ids))
    for token, one in tokens.items():
        if token not in chosen:
            assert one["svd_entropy"] is None and one["num_samples"] == 26
            continue
        mine = (ids == int(token)).nonzero()[:, 0]
        mine = mine[keys[mine].argsort()[:cap]]
        assert one["svd_entropy"] == pytest.approx(entropy(rows[mine].double()), abs=1e-9)
        assert one["svd_entropy"] > 0.9 * math.log(cap)  # rows at random are not collapsed
    values = [one["svd_entropy"] for one in chosen.values()]
    family = metrics["family"]["overall"]
    assert family["svd_entropy/token_mean"] == pytest.approx(sum(values) / len(values))
    assert family["nc4/nearest_accuracy"] is not None
    said = [line for line in caplog.messages if "leave out" in line]
    assert again["counts"] == counts and len(said) == (count > 300)
    assert all(f"{counts['classes_left_out']} of {count} classes" in line for line in said)


def test_a_class_of_which_one_row_was_kept_has_no_entropy():
    """As of a run that an earlier version began."""
    with CollapseMeasurement(4, CollapseConfig(special_tokens=[])) as measurement:
        measurement.add_batch_features(torch.randn(40, 4), torch.arange(40) % 4)
        measurement.store.consolidate()
        measurement.store.kept._sample(torch.float32).shrink_to(1)
        metrics = measurement.get_collapse_metrics()
    assert {one["svd_entropy"] for one in metrics["token_metrics"].values()} == {None}
    assert metrics["family"]["overall"]["svd_entropy/token_mean"] is None and metrics["counts"]["n_kept_cap"] == 1
    assert "entropy" in metrics["undefined"]["overall"]["svd_entropy/token_mean"]


def test_room_grows_with_the_rows_width():
    """Of 4,096 numbers in bfloat16: 16,000 tokens in prompts and in answers have room for rows, two of each."""
    rows = 4 * 16000
    assert CollapseConfig().host_budget(4096) // 4 >= rows * (2 * 4096 + 24)
    assert CollapseConfig().host_budget(64) == 2**30 and CollapseConfig(host_bytes=2**21).host_budget(4096) == 2**21


@pytest.mark.parametrize("variant", ["a", "b"])
def test_states_stand_beside_each_other_by_as_many_rows_of_each(variant):
    sequences = [make_sequence(question) for question in range(8)]
    config = CollapseConfig(svd_variant=variant, max_samples_per_class=2)
    measurement = new_measurement(config)
    for sequence in sequences:
        measurement.add_question([sequence])
    found = measurement.get_collapse_metrics()
    rows = {"rejected": torch.cat([sequence.rejected for sequence in sequences])}
    for name, codes in (("prompt", [0]), ("accepted", [1]), ("bonus", [3]), ("answer", [1, 3])):
        special, wanted = torch.tensor(SPECIAL), torch.tensor(codes)
        rows[name] = torch.cat(
            [s.features[torch.isin(s.states, wanted) & ~torch.isin(s.token_ids, special)] for s in sequences]
        )
    assert found["equal_rows"].keys() == {*rows, "baseline"} and found["equal_rows"]["baseline"] == {}
    chance = np.random.default_rng(0)
    for name, x in rows.items():
        sizes = [m for m in (16, 24, 32, 48, 64, 96, 128, 256) if m <= 0.8 * len(x)]
        assert list(found["equal_rows"][name]) == [str(m) for m in sizes] and sizes, (name, len(x))
        for m in sizes[-1:]:
            draws = []
            for _ in range(200):
                some = x[chance.permutation(len(x))[:m]].double().numpy()
                s = np.linalg.svd(some - some.mean(0) if variant == "b" else some, compute_uv=False)
                p = s**2 / (s**2).sum() if variant == "b" else s / s.sum()
                draws.append(-(p[p > 0] * np.log(p[p > 0])).sum() / (math.log(2) if variant == "b" else 1))
            one = found["equal_rows"][name][str(m)]
            assert abs(one["svd_entropy"] - np.mean(draws)) <= 4 * np.std(draws) * math.sqrt(1 / 200 + 1 / 64), name
            assert one["low"] < one["svd_entropy"] < one["high"]
            share = math.log(min(m - (variant == "b"), WIDTH)) / (math.log(2) if variant == "b" else 1)
            assert one["normalized_entropy"] == pytest.approx(one["svd_entropy"] / share)
    # However they came, and whoever had them.
    halves = [
        new_measurement(config),
        new_measurement(CollapseConfig(**{**dataclasses.asdict(config), "save_every": 5})),
    ]
    for number in (5, 1, 7, 0, 2, 6, 3, 4):
        halves[number % 2].add_question([sequences[number]])
    halves[1].merge(*halves[0].state())
    assert halves[1].get_collapse_metrics()["equal_rows"] == found["equal_rows"]


def test_a_run_that_an_earlier_version_began_has_no_rows_of_its_states():
    measurement, resumed = new_measurement(), new_measurement()
    measurement.add_question([make_sequence(0)])
    tensors, plain = measurement.state()
    del plain["store"]["streams"]
    resumed.merge({name: value for name, value in tensors.items() if ".streams." not in name}, plain)
    resumed.add_question([make_sequence(1)])
    again = new_measurement()
    again.merge(*resumed.state())
    for each in (resumed, again):
        metrics = each.get_collapse_metrics()
        assert not any(metrics["equal_rows"].values()) and metrics["states"]["accepted"]["rows"]
        assert "earlier version" in metrics["undefined"]["overall"]["equal_rows"]


def test_states_that_are_not_asked_for_are_left_out_and_counted():
    measurement = new_measurement(CollapseConfig(states=("bonus", "rejected")))
    sequence = make_sequence(1)
    measurement.add_question([sequence])
    metrics = measurement.get_collapse_metrics()
    bonus = int((sequence.states == 3).sum())
    assert metrics["counts"]["n_left_out_states"] == 40 - bonus and metrics["states"]["rejected"]["rows"] == 5
    special = torch.isin(sequence.token_ids, torch.tensor(SPECIAL)) & (sequence.states == 3)
    assert metrics["total_tokens"] == bonus - int(special.sum())


def test_nothing_at_all_is_a_result_too():
    metrics = new_measurement().get_collapse_metrics()
    assert metrics["total_tokens"] == 0 and metrics["token_metrics"] == {} and metrics["errors"] == []
    assert metrics["overall_metrics"] == {"svd_entropy": None, "gnc2": None, "unc3": None}
    assert metrics["undefined"]["overall"]["gnc2/mean"]


def test_memory_comes_back():
    def tensors():
        gc.collect()
        return sum(isinstance(x, torch.Tensor) for x in gc.get_objects())

    with CollapseMeasurement(WIDTH, CollapseConfig(), classifier(), num_classes=CLASSES) as first:
        first.add_batch_features(torch.randn(50, WIDTH), torch.randint(0, CLASSES, (50,)))
        first.get_collapse_metrics()
    before = tensors()
    for _ in range(3):
        with (
            pytest.raises(ZeroDivisionError),
            CollapseMeasurement(WIDTH, CollapseConfig(), classifier(), num_classes=CLASSES) as measurement,
        ):
            measurement.add_batch_features(torch.randn(5000, WIDTH), torch.randint(0, CLASSES, (5000,)))
            raise ZeroDivisionError
    del measurement
    assert tensors() <= before + 2
