import json
import os
from pathlib import Path

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.decoding.chain import KnownAnswer, chain_acceptance, known_answers
from lit_hass.models import DraftModel, load_base, load_draft

from .tiny_models import build, prompt

STOP = (5, 7, 11, 20, 33)


@pytest.fixture(scope="module")
def pair():
    """A base and a random draft."""
    base = build("llama")
    torch.manual_seed(8)
    draft = DraftModel.from_base(base).eval().requires_grad_(False)
    return base, draft


@pytest.mark.parametrize("length", [1, 3, 5])
def test_acceptance_equals_drafting_without_a_cache(pair, length):
    base, draft = pair
    decoder = AutoregressiveDecoder(base)
    prompts = [prompt(n) for n in (1, 4, 9, 6)]
    answers = known_answers(decoder, prompts, 14, STOP, length)
    found = chain_acceptance(draft, decoder.forward.logits, answers, length)
    assert len(found) == 4
    for answer, steps in zip(answers, found, strict=True):
        ids, root, expected = answer.token_ids, answer.prompt_length, []
        features = base.base_model(input_ids=ids[None]).last_hidden_state[0, :-1]
        assert (features - answer.features).abs().max() < 1e-5
        while root < answer.prompt_length + answer.answer_length - 1:
            line, rows = ids[1 : root + 1], features[:root]
            for _ in range(length):
                output = draft(line[None], rows[None])[0, -1]
                line = torch.cat((line, base.lm_head(output).argmax()[None]))
                rows = torch.cat((rows, output[None]))
            drafted, truth = line[root:], ids[root + 1 : root + 1 + length]
            wrong = (drafted != truth).nonzero()
            expected.append(int(wrong[0, 0]) if len(wrong) else length)
            root += expected[-1] + 1
        assert steps == expected


class _Copy(DraftModel):
    """Its features are the tokens, one channel each."""

    def forward(self, token_ids, features, position_ids=None, cache=None, offset=0, visible=None):
        return torch.nn.functional.one_hot(token_ids, self.config.vocab_size).to(features.dtype)


def test_counting_with_a_draft_that_knows_the_answer(pair):
    """The head says token + 1: right as long as the answer counts up; the last step is not cut at its end."""
    _, draft = pair
    copy = _Copy(draft.config)

    def head(rows):
        return rows.roll(1, -1)

    ids = torch.tensor([50, 10, 11, 12, 13, 14, 15, 30, 31, 32, 33, 60, 61, 62])
    answer = KnownAnswer(ids, torch.zeros(13, draft.config.vocab_size), prompt_length=1, answer_length=9)
    assert head(copy(torch.tensor([[10]]), torch.zeros(1, 1, 1))[:, 0]).argmax() == 11
    # Roots: 10 (accepts 11 .. 14, then 15 is the base's), 15 (30 is not 16), 30 (31, 32, 33, then 60 is not 34).
    assert chain_acceptance(copy, head, [answer], 4) == [[4, 0, 3]]


def test_stops_and_limits(pair):
    base, _ = pair
    decoder = AutoregressiveDecoder(base)
    prompts = [prompt(n) for n in (3, 5, 8)]
    plain = decoder.generate(prompts, 20, stop_ids=STOP)
    answers = known_answers(decoder, prompts, 20, STOP, 4)
    for answer, generation in zip(answers, plain, strict=True):
        start = answer.prompt_length
        assert answer.answer_length == len(generation.output_ids)
        assert torch.equal(answer.token_ids[start : start + answer.answer_length], generation.output_ids)
        assert len(answer.token_ids) == start + answer.answer_length + 5 == len(answer.features) + 1


def test_nothing_to_measure(pair):
    _, draft = pair
    assert chain_acceptance(draft, lambda rows: rows, [], 3) == []


def test_published_drafts_are_as_good_as_published():
    """Two drafts of the published training: one accepts almost all of a chain, one less than the 2.4 of its tree."""
    root = os.environ.get("LIT_HASS_REFERENCE")
    if not root:
        pytest.skip("LIT_HASS_REFERENCE names no folder with reference data")
    folder = Path(root) / "speculative"
    base = load_base(folder / "tiny_trained/base")
    decoder = AutoregressiveDecoder(base)
    prompts = [torch.tensor(json.loads(line)["input_ids"]) for line in (folder / "tiny_trained/prompts.jsonl").open()]
    answers = known_answers(decoder, prompts, 58, (), 5)
    for name, low, high in (("tiny_trained", 4.7, 5.0), ("tiny_partial", 1.0, 2.4)):
        draft = load_draft(folder / name / "ea", base)
        steps = [a for row in chain_acceptance(draft, decoder.forward.logits, answers, 5) for a in row]
        assert low < sum(steps) / len(steps) <= high, name
