"""In law: draws of the first three tokens against the distribution computed in float64."""

import copy
import functools
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hass.decoding import SamplingConfig, SpeculativeDecoder, TreeConfig

from .drafts import random_draft
from .sampling_grid import processors

V, PROMPT, DRAWS = 16, (3, 9, 4, 4, 1), 20_000
CASES = {
    "T0.3": SamplingConfig(0.3),
    "T1": SamplingConfig(1.0),
    "T1.5": SamplingConfig(1.5),
    "top_p": SamplingConfig(0.7, top_p=0.5),
    "top_k": SamplingConfig(0.7, top_k=5),
    "both": SamplingConfig(0.7, top_p=0.5, top_k=5),
}
#: One level of children, so that the third token is often the one behind a fully accepted path.
TREE = TreeConfig(8, 0, 7)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(2)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        initializer_range=0.18,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def law(base):
    """Return a function from settings to ``[V, V, V]``, the probabilities of the first three tokens."""
    exact = copy.deepcopy(base).double()

    @functools.cache
    def joint(sampling):
        def following(prefixes):
            logits = exact(input_ids=torch.tensor(prefixes)).logits[:, -1]
            assert logits.dtype == torch.float64
            return processors(sampling)(torch.tensor(prefixes), logits).softmax(-1)

        lines = [[list(PROMPT)], [[*PROMPT, a] for a in range(V)]]
        lines.append([[*PROMPT, a, b] for a in range(V) for b in range(V)])
        one, two, three = (following(prefixes) for prefixes in lines)
        return (one.view(V, 1, 1) * two.view(V, V, 1) * three.view(V, V, V)).numpy()

    return joint


@dataclass
class Fit:
    """How draws fit a law."""

    p_value: float
    outside: int
    cells: int


def fit(counts, probabilities, draws):
    """Chi-square over cells that expect at least 8 draws, all others pooled."""
    expected = (probabilities * draws).ravel()
    outside = sum(number for cell, number in counts.items() if expected[cell] == 0)
    observed = np.zeros_like(expected)
    for cell, number in counts.items():
        observed[cell] = number
    large = expected >= 8
    cells = [*zip(observed[large], expected[large], strict=True)]
    rest = observed[~large].sum(), expected[~large].sum()
    if rest[1] >= 8:
        cells.append(rest)
    elif cells:  # too small for a cell of its own
        cells[0] = cells[0][0] + rest[0], cells[0][1] + rest[1]
    statistic = sum((o - e) ** 2 / e for o, e in cells)
    return Fit(float(chi2.sf(statistic, len(cells) - 1)), outside, len(cells))


def draw(base, sampling, tree, draws, first_seed):
    """Counts of the first three tokens (as one number), and accepted tokens per drafted level."""
    decoder = SpeculativeDecoder(base, random_draft(base, seed=0), tree)
    counts, accepted, steps = Counter(), 0, 0
    for start in range(0, draws, 500):
        seeds = range(first_seed + start, first_seed + start + 500)
        for answer in decoder.generate([torch.tensor(PROMPT)] * 500, 3, sampling, seeds=list(seeds)):
            a, b, c = answer.output_ids.tolist()
            counts[(a * V + b) * V + c] += 1
            accepted += sum(answer.accept_lengths)
            steps += answer.steps
    assert sum(counts.values()) == draws
    return counts, accepted / (steps * tree.depth + steps)


def check(base, law, name, tree, draws, first_seed=10**6, least=0.2):
    counts, rate = draw(base, CASES[name], tree, draws, first_seed)
    found = fit(counts, law(CASES[name]), draws)
    assert least < rate < 0.8
    assert found.outside == 0
    assert found.cells >= 8 and found.p_value > 1e-3, found
    # Rare triples are pooled; pairs are less rare.
    for axis in (0, 2):
        pairs = Counter()
        for cell, number in counts.items():
            pairs[cell % V**2 if axis == 0 else cell // V] += number
        found = fit(pairs, law(CASES[name]).sum(axis=axis), draws)
        assert found.p_value > 1e-3 and found.outside == 0, found


def test_draws_follow_the_exact_law(base, law):
    check(base, law, "both", TREE, 4000)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_many_draws_follow_the_exact_law(base, law, name):
    check(base, law, name, TREE, DRAWS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["T1", "top_p"])
def test_many_draws_with_a_deep_tree(base, law, name):
    # Of the second level, which many steps do not reach in three tokens, less is accepted.
    check(base, law, name, TreeConfig(16, 1, 6), DRAWS, least=0.15)


@pytest.mark.parametrize("name", [name for name in CASES if name != "T1"])  # where raw logits are not the law
def test_a_wrong_law_would_be_noticed(base, law, name):
    """Draws from the exact law pass; with the published code's bonus token (from the raw logits) they do not."""
    generator, draws, true = np.random.default_rng(5), DRAWS, law(CASES[name])
    found = fit(Counter(generator.choice(V**3, size=draws, p=true.ravel() / true.sum()).tolist()), true, draws)
    assert found.p_value > 1e-3 and found.outside == 0
    # Behind an accepted second token the third one is the bonus.
    raw = law(SamplingConfig(1.0))
    bonus = true.sum(axis=2, keepdims=True) * raw / raw.sum(axis=2, keepdims=True)
    wrong = np.where(accepted_children(base)[:, :, None], bonus, true)
    found = fit(Counter(generator.choice(V**3, size=draws, p=wrong.ravel() / wrong.sum()).tolist()), true, draws)
    assert found.p_value < 1e-6 or found.outside > 0


def accepted_children(base):
    """``[V, V]`` bool by the draft's own module: the tokens behind each first token that the tree holds."""
    draft = random_draft(base, seed=0)
    children = np.zeros((V, V), dtype=bool)
    features = base.base_model(input_ids=torch.tensor([PROMPT])).last_hidden_state
    for first in range(V):
        logits = base.lm_head(draft(torch.tensor([[*PROMPT[1:], first]]), features)[0, -1])
        children[first, logits.topk(TREE.top_k).indices.numpy()] = True
    return children
