import pytest
import torch
from scipy.stats import chisquare
from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_hass.decoding import SamplingConfig, choose_tokens, gumbel_noise, process_logits
from lit_hass.decoding.sampling import PREFIX_PAD
from lit_hass.errors import UserError

CASES = [
    {"temperature": 1.0},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_k": 5},
    {"temperature": 0.7, "top_k": 500},
    {"temperature": 1.3, "top_p": 0.8},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.6, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"temperature": 1.0, "repetition_penalty": 0.8},
    {"temperature": 1.0, "no_repeat_ngram_size": 1},
    {"temperature": 1.0, "no_repeat_ngram_size": 3},
    {"temperature": 1.0, "no_repeat_ngram_size": 40},
]


def processors(temperature=1.0, top_k=0, top_p=1.0, repetition_penalty=1.0, no_repeat_ngram_size=0):
    chosen = LogitsProcessorList()
    if repetition_penalty != 1.0:
        chosen.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(no_repeat_ngram_size))
    chosen.append(TemperatureLogitsWarper(temperature))
    if top_k:
        chosen.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        chosen.append(TopPLogitsWarper(top_p))
    return chosen


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_processing_equals_transformers(settings):
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(6, 50, generator=generator)
    # Few different tokens, so that n-grams do repeat; lengths down to one token.
    prefixes = [torch.randint(0, 4, (n,), generator=generator) for n in (30, 1, 2, 17, 3, 30)]
    expected = torch.cat(
        [processors(**settings)(p[None], r[None].clone()) for p, r in zip(prefixes, logits, strict=True)]
    )
    before = logits.clone()
    assert torch.equal(process_logits(logits, prefixes, SamplingConfig(**settings)), expected)
    padded = torch.full((6, 35), PREFIX_PAD)
    for row, prefix in zip(padded, prefixes, strict=True):
        row[: len(prefix)] = prefix
    assert torch.equal(process_logits(logits, padded, SamplingConfig(**settings)), expected)
    assert torch.equal(logits, before)


def test_greedy_skips_what_cannot_change_it():
    logits = torch.randn(3, 20)
    assert process_logits(logits, None, SamplingConfig(temperature=1e-5, top_k=3, top_p=0.5)) is logits
    assert not SamplingConfig(temperature=1e-4).greedy
    with pytest.raises(ValueError, match="prefixes"):
        process_logits(logits, None, SamplingConfig(repetition_penalty=1.1))


def test_ids_beyond_the_output_layer_are_ignored():
    logits = torch.randn(1, 10)
    config = SamplingConfig(repetition_penalty=2.0, no_repeat_ngram_size=1)
    assert torch.equal(process_logits(logits, [torch.tensor([12, 10])], config), logits)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("temperature", "hot"),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 2.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", True),
        ("no_repeat_ngram_size", -2),
    ],
)
def test_bad_settings_name_the_field(field, value):
    with pytest.raises(UserError, match=field):
        SamplingConfig(**{field: value})


def test_broken_rows_are_marked():
    logits = torch.tensor([[0.0, 1.0], [float("nan"), 1.0], [-float("inf"), -float("inf")]])
    assert choose_tokens(logits).tolist() == [1, -1, -1]
    assert choose_tokens(logits, torch.zeros(3, 2, dtype=torch.float64)).tolist() == [1, -1, -1]


@pytest.mark.parametrize("settings", [{"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.4, "top_k": 6}], ids=str)
def test_the_law_of_the_draws(settings):
    """Chi-square of 6000 draws over a small vocabulary against the exact probabilities."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(5))
    processed = process_logits(logits, None, SamplingConfig(**settings))
    exact = processors(**settings)(torch.zeros(1, 1, dtype=torch.long), logits.clone()).double().softmax(-1)[0]
    draws = 6000
    noise = torch.stack([gumbel_noise(seed % 60, 5 + seed // 60, 12) for seed in range(draws)])
    counts = choose_tokens(processed.expand(draws, -1), noise).bincount(minlength=12)
    assert counts[exact == 0].sum() == 0
    kept = exact > 0
    assert chisquare(counts[kept].numpy(), (exact[kept] * draws).numpy()).pvalue > 1e-3
