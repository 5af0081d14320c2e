"""The shipped base, with a draft that knows nothing and (where it is shipped) with the trained one."""

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.lean_draft import LeanDraft
from lit_hass.models import load_base, load_tokenizer, shipped_names, stop_ids

from . import drafts as drafts_of
from .sampling_grid import DIAGONAL, GRID

NAME = "html_to_tsv"
SEEDS = [11, 2**63 - 1, 3, 8, 0, 1, 2, 4]
CHAIN, TREE = TreeConfig(8, 6, 1), TreeConfig(16, 3, 4)


@pytest.fixture(scope="module")
def base():
    assert NAME in shipped_names()
    return load_base(NAME)


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(NAME)
    cells = [
        ["1.5", "2.5 kg"],
        ["Anna Berg"],
        ["7", "8", "9"],
        ["x"],
        ["a b", "c", "12 %"],
        ["0.1"],
        ["q", "r"],
        ["End"],
    ]
    tables = ["".join(f"<tr><td>{'</td><td>'.join(row)}</td></tr>" for row in (line, line[::-1])) for line in cells]
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": f"Convert this HTML table to TSV:\n<table>{table}</table>"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=False,
        )[0]
        for table in tables
    ]


@pytest.fixture(scope="module")
def drafts(base):
    """Random always; trained, and the same with noise, where a trained one is shipped."""
    found = {"random": drafts_of.random_draft(base)}
    trained = drafts_of.shipped_draft(base)
    if trained is not None:
        found |= {"trained": trained, "noise": drafts_of.perturbed(trained, 0.2)}
    return found


def compare(base, prompts, draft, sampling, tree, count, stop=()):
    seeds = SEEDS[: len(prompts)]
    plain = AutoregressiveDecoder(base).generate(prompts, count, sampling, stop, seeds)
    decoder = SpeculativeDecoder(base, draft, tree)
    together = decoder.generate(prompts, count, sampling, stop, seeds)
    alone = [decoder.generate([p], count, sampling, stop, [s])[0] for p, s in zip(prompts[:2], seeds, strict=False)]
    for ours, theirs in [*zip(together, plain, strict=True), *zip(alone, plain, strict=False)]:
        assert ours.output_ids.tolist() == theirs.output_ids.tolist()
        assert ours.stop_reason == theirs.stop_reason
        assert len(ours.output_ids) <= sum(a + 1 for a in ours.accept_lengths) + 1
    assert [row.accept_lengths for row in alone] == [row.accept_lengths for row in together[:2]]
    return sum(sum(row.accept_lengths) for row in together) / sum(row.steps for row in together)


@pytest.mark.parametrize("name", DIAGONAL)
def test_nothing_is_lost(base, prompts, drafts, name):
    for kind, draft in drafts.items():
        tree = CHAIN if kind == "trained" else TREE
        mean = compare(base, prompts[:4], draft, GRID[name], tree, 10 if kind == "random" else 24)
        assert mean > 0.5 or kind != "trained"


def test_a_batch_of_eight_until_each_stops(base, prompts, drafts):
    stop = stop_ids(base, load_tokenizer(NAME))
    for kind in set(drafts) - {"random"} or drafts:
        compare(base, prompts, drafts[kind], GRID["T0.0-plain"], CHAIN, 40, stop)


def test_the_hand_written_forwards_are_used(base, drafts):
    decoder = SpeculativeDecoder(base, drafts["random"], TREE)
    assert type(decoder.forward) is LeanForward and type(decoder.draft) is LeanDraft


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_shipped_base_in_half_precision_is_not_refused(dtype):
    base = load_base(NAME).to(dtype)
    decoder = SpeculativeDecoder(base, drafts_of.random_draft(base), CHAIN)
    assert len(decoder.generate([torch.arange(3, 12)], 6)[0].output_ids) == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", GRID)
def test_nothing_is_lost_under_any_setting(base, prompts, drafts, name):
    for draft in drafts.values():
        for tree in (CHAIN, TREE):
            compare(base, prompts, draft, GRID[name], tree, 32)
