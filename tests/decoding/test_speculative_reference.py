"""The published implementation's weights and what it made of them."""

import json
import os
from pathlib import Path

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.draft_forward import ModuleDraft
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.lean_draft import LeanDraft
from lit_hass.decoding.slot_forward import SlotForward
from lit_hass.models import load_base, load_draft

from .drafts import perturbed, random_draft
from .sampling_grid import DIAGONAL, GRID

REFERENCE = os.environ.get("LIT_HASS_REFERENCE")
FOLDER = Path(str(REFERENCE)) / "speculative"
pytestmark = pytest.mark.skipif(
    not REFERENCE, reason="LIT_HASS_REFERENCE is not set: the reference weights are not here"
)

RECORDED = [
    ("tiny_trained", 60, 5, 10),
    ("tiny_trained", 32, 4, 8),
    ("tiny_partial", 60, 5, 10),
    ("tiny_partial", 24, 4, 6),
]
SEEDS = [5, 2**62, 0, 77, 1, 2, 3, 4]


def lines(path):
    with path.open() as file:
        return [json.loads(line) for line in file]


@pytest.fixture(scope="module")
def base():
    return load_base(FOLDER / "tiny_trained/base")


@pytest.fixture(scope="module")
def prompts():
    return [torch.tensor(line["input_ids"]) for line in lines(FOLDER / "tiny_trained/prompts.jsonl")]


@pytest.fixture(scope="module")
def drafts(base):
    """Drafts of every quality, each built once."""
    trained, partial = (load_draft(FOLDER / name / "ea", base) for name in ("tiny_trained", "tiny_partial"))
    return {
        "trained": trained,
        "partial": partial,
        "noise 0.1": perturbed(trained, 0.1),
        "noise 0.3": perturbed(trained, 0.3),
        "noise 0.6": perturbed(trained, 0.6),
        "random": random_draft(base),
    }


def test_every_recorded_run_is_compared():
    found = {(p.parent.name, p.name) for p in FOLDER.glob("*/expected_*.jsonl")}
    assert found == {(name, f"expected_total{t}_depth{d}_topk{k}.jsonl") for name, t, d, k in RECORDED}


@pytest.mark.parametrize(
    ("recorded", "forward", "batch"),
    [(r, LeanForward, b) for r in RECORDED for b in (1, 8)] + [(r, SlotForward, 8) for r in RECORDED[1::2]],
    ids=str,
)
def test_tokens_and_accept_lengths_are_the_published_ones(base, prompts, drafts, recorded, forward, batch):
    name, total, depth, top_k = recorded
    expected = lines(FOLDER / name / f"expected_total{total}_depth{depth}_topk{top_k}.jsonl")
    decoder = SpeculativeDecoder(forward(base), drafts[name.removeprefix("tiny_")], TreeConfig(total, depth, top_k))
    if forward is LeanForward:
        assert type(decoder.draft) is LeanDraft
    else:
        decoder.draft = ModuleDraft(drafts[name.removeprefix("tiny_")])
    groups = [prompts[i : i + batch] for i in range(0, len(prompts), batch)]
    answers = [answer for group in groups for answer in decoder.generate(group, 64)]
    assert len(answers) == len(expected) == 8
    for ours, theirs in zip(answers, expected, strict=True):
        tokens = ours.output_ids.tolist()
        length = min(len(tokens), len(theirs["output_ids"]))
        assert length >= 60 and tokens[:length] == theirs["output_ids"][:length]
        assert ours.accept_lengths[:-1] == theirs["accept_length"][: len(ours.accept_lengths) - 1]
        assert len(ours.accept_lengths) <= len(theirs["accept_length"])
        assert sum(a + 1 for a in ours.accept_lengths) + 1 >= len(tokens) == 64
        assert ours.steps == len(ours.accept_lengths)


def compare(base, prompts, drafts, sampling, kinds, count):
    """Answers with every kind of draft equal those without; returns the mean of accepted tokens per step by kind."""
    seeds, means = SEEDS[: len(prompts)], {}
    plain = AutoregressiveDecoder(base).generate(prompts, count, sampling, seeds=seeds)
    for kind in kinds:
        tree = TreeConfig(24, 4, 6) if kind != "noise 0.6" else TreeConfig(8, 6, 1)
        decoder = SpeculativeDecoder(base, drafts[kind], tree)
        together = decoder.generate(prompts, count, sampling, seeds=seeds)
        for ours, theirs in zip(together, plain, strict=True):
            assert ours.output_ids.tolist() == theirs.output_ids.tolist(), kind
            assert ours.stop_reason == theirs.stop_reason
        last = len(prompts) - 1
        (alone,) = decoder.generate([prompts[last]], count, sampling, seeds=[seeds[last]])
        assert alone.output_ids.tolist() == plain[last].output_ids.tolist()
        assert alone.accept_lengths == together[last].accept_lengths
        means[kind] = sum(sum(row.accept_lengths) for row in together) / sum(row.steps for row in together)
    return means


@pytest.mark.parametrize("name", DIAGONAL)
def test_nothing_is_lost(base, prompts, drafts, name):
    means = compare(base, prompts, drafts, GRID[name], ["noise 0.3", "partial"], 24)
    assert any(0.2 < mean < 4.5 for mean in means.values())


def test_drafts_of_every_quality(base, prompts, drafts):
    means = compare(base, prompts[:4], drafts, GRID["T0.0-plain"], drafts, 24)
    assert means["trained"] == 5 > means["noise 0.1"] >= means["noise 0.3"] > means["random"] < 0.5
    assert 1 < means["noise 0.3"] < 4 and 1 < means["partial"] < 4


@pytest.mark.slow
@pytest.mark.parametrize("name", GRID)
def test_nothing_is_lost_under_any_setting(base, prompts, drafts, name):
    compare(base, prompts, drafts, GRID[name], drafts, 40)
