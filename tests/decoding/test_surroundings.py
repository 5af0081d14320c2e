"""Answers are those of the weights' dtype, whatever a Trainer or a script has switched on around the call."""

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.divergence import top_two_gap
from lit_hass.features import extract_features

from ..surroundings import SURROUNDINGS
from .drafts import random_draft
from .tiny_models import build, prompt

PROMPTS = [prompt(9), prompt(5)]
TREES = {"none": None, "tree": TreeConfig(12, 2, 3), "chain": TreeConfig(5, 3, 1, trim=True)}
#: One of each forward: lean, transformers' own, slots.
FAMILIES = {"llama": ("none", "tree", "chain"), "gpt2": ("none",), "mistral_window": ("tree", "chain")}
SAMPLINGS = (SamplingConfig(), SamplingConfig(0.9, 0.9, 20, 1.2, 2))


def decoder_of(base, draft, tree: TreeConfig | None):
    return AutoregressiveDecoder(base) if tree is None else SpeculativeDecoder(base, draft, tree)


def answers(decoder):
    found = []
    for sampling in SAMPLINGS:
        for one in decoder.generate(PROMPTS, 12, sampling, collect_features=True):
            found.append((one.output_ids, one.features.features, one.features.rejected, one.features.draft_features))
    return found


@pytest.mark.parametrize(("family", "tree"), [(f, t) for f, trees in FAMILIES.items() for t in trees])
def test_answers_do_not_change(family: str, tree: str) -> None:
    pair = build(family), random_draft(build(family))
    early = decoder_of(*pair, TREES[tree])
    expected, gap = answers(early), top_two_gap(early.forward, PROMPTS[0], SAMPLINGS[0])
    for around, switched_on in SURROUNDINGS.items():
        with switched_on():
            for decoder in (early, decoder_of(*pair, TREES[tree])):
                assert type(decoder.forward) is type(early.forward), around
                for ours, theirs in zip(answers(decoder), expected, strict=True):
                    for one, other in zip(ours, theirs, strict=True):
                        assert one.dtype == other.dtype and torch.equal(one, other), around
                assert top_two_gap(decoder.forward, PROMPTS[0], SAMPLINGS[0]) == gap, around


@pytest.mark.parametrize("around", SURROUNDINGS)
def test_extracted_features_do_not_change(around: str) -> None:
    model, ids = build("llama"), torch.stack([prompt(9), prompt(9, 1)])
    expected = extract_features(model, ids, layer=1)[0], extract_features(model, ids)[0]
    with SURROUNDINGS[around]():
        found = extract_features(model, ids, layer=1)[0], extract_features(model, ids)[0]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
