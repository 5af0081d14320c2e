import json
import os
from pathlib import Path

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.models import load_base

REFERENCE = os.environ.get("LIT_HASS_REFERENCE")


@pytest.mark.skipif(not REFERENCE, reason="LIT_HASS_REFERENCE is not set: the trained reference model is not here")
def test_greedy_equals_the_published_code():
    """The original code's own naive decoding, recorded with it; its limit is soft, so common prefixes count."""
    folder = Path(str(REFERENCE)) / "speculative" / "tiny_trained"
    prompts = [json.loads(line)["input_ids"] for line in (folder / "prompts.jsonl").open()]
    expected = [
        json.loads(line)["naive_output_ids"] for line in (folder / "expected_total60_depth5_topk10.jsonl").open()
    ]
    decoder = AutoregressiveDecoder(load_base(folder / "base"))
    results = decoder.generate([torch.tensor(ids) for ids in prompts], 64)
    for ids, theirs, ours in zip(prompts, expected, results, strict=True):
        new = theirs[len(ids) :] if theirs[: len(ids)] == ids else theirs
        length = min(len(new), 64)
        assert length >= 60
        assert ours.output_ids[:length].tolist() == new[:length]
