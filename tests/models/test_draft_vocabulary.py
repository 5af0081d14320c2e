"""The tokens that a draft scores: how they are chosen and kept, and that answers stay the base's own."""

import json

import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.chain import chain_acceptance, known_answers
from lit_hass.decoding.select_draft import DraftScorer
from lit_hass.decoding.select_forward import make_forward
from lit_hass.errors import UserError
from lit_hass.models import load_draft
from lit_hass.models.draft_vocabulary import VOCABULARY_FILE, DraftVocabulary
from tests.decoding.drafts import random_draft
from tests.decoding.tiny_models import VOCAB, build, prompt

HALF = DraftVocabulary(tuple(range(1, VOCAB, 2)), VOCAB)


def test_the_most_frequent_tokens_are_taken_and_the_required_ones_in_any_case():
    counts = torch.tensor([5, 0, 9, 5, 0, 1])
    chosen = DraftVocabulary.choose(counts, 3, [4])
    assert chosen.ids == (0, 2, 4)  # 9, then the lower of two fives; 4 is required
    assert chosen.coverage == 14 / 20
    for size in range(1, 7):
        ids = DraftVocabulary.choose(counts, size, []).ids
        dropped = set(range(6)) - set(ids)
        assert len(ids) == size and all(counts[d] <= min(counts[i] for i in ids) for d in dropped)


@pytest.mark.parametrize("size", [0, 1, 7])
def test_sizes_that_cannot_be(size):
    with pytest.raises(UserError, match="draft vocabulary of"):
        DraftVocabulary.choose(torch.ones(6, dtype=torch.long), size, [2, 3])


@pytest.mark.parametrize("family", ["llama", "llama_biases", "gpt2", "gemma2", "granite"])
def test_logits_of_some_tokens_are_those_of_all_at_their_places(family):
    forward = make_forward(build(family))
    hidden = torch.randn(2, 3, forward.hidden_size, generator=torch.Generator().manual_seed(0))
    ids = HALF.tensor()
    torch.testing.assert_close(forward.logits_of(ids)(hidden), forward.logits(hidden)[..., ids], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tree", [TreeConfig(6, 4, 1), TreeConfig(12, 2, 4)])
@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=1.2, top_p=0.9)])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_answers_are_the_bases_own_and_only_known_tokens_are_accepted(family, tree, sampling):
    base = build(family)
    draft = random_draft(base)
    draft.vocabulary = HALF
    prompts, seeds = [prompt(7), prompt(4, 1), prompt(9, 2)], [3, 4, 5]
    plain = AutoregressiveDecoder(base).generate(prompts, 24, sampling, seeds=seeds)
    found = SpeculativeDecoder(base, draft, tree).generate(prompts, 24, sampling, seeds=seeds, collect_features=True)
    for a, b in zip(plain, found, strict=True):
        assert a.output_ids.tolist() == b.output_ids.tolist()
    accepted = 0
    for answer in found:
        place = 1  # behind the first token, which no draft proposed
        for count in answer.accept_lengths:
            said = answer.output_ids[place : place + count].tolist()
            assert set(said) <= set(HALF.ids)
            accepted += len(said)
            place += count + 1
    assert accepted or tree.top_k == 1


def test_chains_over_known_answers_accept_what_decoding_accepts():
    base = build("llama")
    draft = random_draft(base)
    draft.vocabulary = HALF
    decoder = AutoregressiveDecoder(base)
    prompts = [prompt(6, seed) for seed in range(6)]
    scorer = DraftScorer.of(decoder.forward, draft)
    found = chain_acceptance(draft, scorer.logits, known_answers(decoder, prompts, 20, (), 4), 4, scorer.ids)
    expected = SpeculativeDecoder(base, draft, TreeConfig(5, 3, 1)).generate(prompts, 20)
    assert found == [list(answer.accept_lengths) for answer in expected]


def test_it_is_kept_beside_the_weights_and_goes_with_them(tmp_path):
    base = build("llama")
    draft = random_draft(base)
    draft.vocabulary = DraftVocabulary((1, 2, 30), VOCAB, 0.5)
    draft.save_pretrained(tmp_path)
    assert load_draft(tmp_path, base).vocabulary == draft.vocabulary
    draft.vocabulary = None
    draft.save_pretrained(tmp_path)
    assert not (tmp_path / VOCABULARY_FILE).exists() and load_draft(tmp_path, base).vocabulary is None


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("[]", "no draft vocabulary"),
        ("{", "no draft vocabulary"),
        ('{"ids": [1, 2]}', "vocab_size"),
        ('{"ids": [2, 1], "vocab_size": 97}', "ascending"),
        ('{"ids": [1, 1], "vocab_size": 97}', "each once"),
        ('{"ids": [1, true], "vocab_size": 97}', "must be integers"),
        ('{"ids": [], "vocab_size": 97}', "ascending"),
        ('{"ids": [97], "vocab_size": 97}', "97 is not one of"),
        ('{"ids": [1, 2], "vocab_size": 98}', "98 tokens, this one has 97"),
        ('{"ids": [1], "vocab_size": 97, "coverage": 2}', "coverage"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, content, cause):
    base = build("llama")
    random_draft(base).save_pretrained(tmp_path)
    (tmp_path / VOCABULARY_FILE).write_text(content)
    with pytest.raises(UserError, match=cause) as error:
        load_draft(tmp_path, base)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_tree_wider_than_the_vocabulary_is_refused():
    base = build("llama")
    draft = random_draft(base)
    draft.vocabulary = DraftVocabulary((1, 2, 30), VOCAB)
    with pytest.raises(UserError, match="top_k is 4, the vocabulary has 3"):
        SpeculativeDecoder(base, draft, TreeConfig(12, 2, 4))


def test_a_vocabulary_without_the_end_of_answers_is_refused_where_it_is_asked_for():
    with pytest.raises(UserError, match="lacks token 2, which ends an answer"):
        HALF.check(VOCAB, [1, 2])


def test_the_file_is_plain_json(tmp_path):
    chosen = DraftVocabulary((0, 5), 6, 0.25)
    path = tmp_path / "v.json"
    path.write_text(chosen.to_json())
    assert json.loads(path.read_text()) == {"vocab_size": 6, "coverage": 0.25, "ids": [0, 5]}
    assert DraftVocabulary.read(path) == chosen
