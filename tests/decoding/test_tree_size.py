import pytest

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TreeConfig, tree_size
from lit_hass.decoding.speculative import SpeculativeBatch

from .drafts import random_draft
from .tiny_models import build, prompt

SAMPLED = SamplingConfig(temperature=0.9, top_p=0.9, repetition_penalty=1.1)


def ids(answers):
    return [answer.output_ids.tolist() for answer in answers]


@pytest.fixture(scope="module")
def base():
    return build("llama")


@pytest.fixture(scope="module")
def plain(base):
    return AutoregressiveDecoder(base)


def test_the_size_is_chosen_by_timing_and_changes_no_answer(base, plain, monkeypatch):
    monkeypatch.setattr(tree_size, "_ROUNDS", 1)
    decoder = SpeculativeDecoder(base, random_draft(base), TreeConfig(-1, 2, 3))
    assert decoder.total_tokens is None
    prompts = [prompt(6), prompt(1)]
    for sampling in (SamplingConfig(), SAMPLED):
        assert ids(decoder.generate(prompts, 9, sampling)) == ids(plain.generate(prompts, 9, sampling))
    assert decoder.total_tokens in {1, 4, 6, 8, 10, 12, 16, 22}


def test_the_size_is_that_of_the_least_time():
    asked = []

    def seconds(tree):
        asked.append(tree.total_tokens)
        return {8: 0.5, 12: 0.4}.get(tree.total_tokens, 1.0) + (10.0 if len(asked) < 9 else 0.0)

    assert tree_size.choose_size(seconds, TreeConfig(-1, 3, 2)) == 12
    assert set(asked) == {1, 4, 6, 8, 10, 12, 15}


def test_a_prompt_that_fills_the_context_decides_no_size(base, monkeypatch):
    """A trial of one token takes no time with any tree."""
    monkeypatch.setattr(tree_size, "_ROUNDS", 1)
    decoder, counts = SpeculativeDecoder(base, random_draft(base), TreeConfig(-1, 2, 3)), []
    true_trial = decoder._seconds_per_token

    def trial(*args):
        counts.append(true_trial(*args))
        return counts[-1]

    monkeypatch.setattr(decoder, "_seconds_per_token", trial)
    (answer,) = decoder.generate([prompt(255)], 9)
    assert len(answer.output_ids) == 1 and counts and min(counts) > 0


def test_a_size_is_chosen_on_the_answer_and_not_on_what_stands_behind_its_end(base, plain, monkeypatch):
    """Behind a stop token no draft is at home, which would favour small trees."""
    monkeypatch.setattr(tree_size, "_ROUNDS", 1)
    (free,) = plain.generate([prompt(6)], 40, SAMPLED, seeds=[5])
    stop = int(free.output_ids[20])
    end = free.output_ids.tolist().index(stop) + 1
    lengths, true_run = [], SpeculativeBatch.run

    def run(batch):
        (row,) = batch.rows
        true_run(batch)
        lengths.append(len(row.tokens))

    monkeypatch.setattr(SpeculativeBatch, "run", run)
    decoder = SpeculativeDecoder(base, random_draft(base), TreeConfig(-1, 2, 3))
    (answer,) = decoder.generate([prompt(6)], 40, SAMPLED, [stop], [5])
    assert answer.output_ids.tolist() == free.output_ids[:end].tolist()
    assert end >= 8 and len(lengths) > 8 and set(lengths) == {end}
