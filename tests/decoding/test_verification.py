import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_hass.decoding import SamplingConfig, gumbel_noise, verification
from lit_hass.decoding.sampling import PREFIX_PAD
from lit_hass.decoding.tree import DraftTree, root_only
from lit_hass.decoding.verification import NodeNoise, accepted_path, choose_at_nodes

from .plain_tree import closure
from .sampling_grid import processors

V = 23
SETTINGS = [
    {},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_k": 5},
    {"temperature": 1.4, "top_p": 0.6},
    {"temperature": 0.8, "top_k": 9, "top_p": 0.8, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    {"temperature": 1.2, "no_repeat_ngram_size": 1},
]


def make_tree(tokens, parents, levels=None):
    """From lists ``[B][T]``."""
    depths = []
    for line in parents:
        depths.append([0])
        for node in range(1, len(line)):
            depths[-1].append(depths[-1][line[node]] + 1)
    deepest = max(max(line) for line in depths)
    return DraftTree(
        torch.tensor(tokens),
        torch.tensor(parents),
        torch.tensor(depths),
        torch.tensor([closure(line) for line in parents]),
        deepest if levels is None else levels,
    )


def some_tree(count, generator, vocab=V):
    """Random, siblings distinct."""
    parents, tokens, used = [0], [int(torch.randint(vocab, (), generator=generator))], {}
    while len(parents) < count:
        parent = int(torch.randint(len(parents), (), generator=generator))
        token = int(torch.randint(vocab, (), generator=generator))
        if token not in used.setdefault(parent, set()):
            used[parent].add(token)
            parents.append(parent)
            tokens.append(token)
    return tokens, parents


@st.composite
def trees(draw):
    batch, count, vocab = draw(st.integers(1, 3)), draw(st.integers(1, 14)), draw(st.integers(2, 4))
    rows = []
    for _ in range(batch):
        tokens, parents, used = [draw(st.integers(0, vocab - 1))], [0], set()
        for node in range(1, count):
            free = [(p, t) for p in range(node) for t in range(vocab) if (p, t) not in used]
            choice = draw(st.sampled_from(free))
            used.add(choice)
            parents.append(choice[0])
            tokens.append(choice[1])
        targets = draw(st.lists(st.integers(-1, vocab - 1), min_size=count, max_size=count))
        rows.append((tokens, parents, targets))
    return rows, draw(st.integers(0, 2))


@settings(max_examples=100, deadline=None)
@given(trees())
def test_the_accepted_path_is_the_walk(drawn):
    rows, spare = drawn
    tree = make_tree([row[0] for row in rows], [row[1] for row in rows])
    tree.levels += spare
    paths, counts = accepted_path(tree, torch.tensor([row[2] for row in rows]))
    assert paths.shape[1] <= tree.levels + 1 and paths.max() < len(rows[0][0])
    for (tokens, parents, targets), path, count in zip(rows, paths.tolist(), counts.tolist(), strict=True):
        walk = [0]
        while True:
            following = [n for n in range(1, len(tokens)) if parents[n] == walk[-1] and tokens[n] == targets[walk[-1]]]
            if not following:
                break
            (node,) = following
            walk.append(node)
        assert path[:count] == walk


def test_the_root_is_accepted_whatever_it_is():
    tree = make_tree([[7, 7, 7]], [[0, 0, 1]])
    for targets, expected in (([1, 7, 7], 1), ([7, 1, 7], 2), ([7, 7, 1], 3), ([-1, 7, 7], 1)):
        assert accepted_path(tree, torch.tensor([targets]))[1].tolist() == [expected]
    paths, counts = accepted_path(root_only(torch.tensor([3, 4])), torch.tensor([[5], [-1]]))
    assert (paths.tolist(), counts.tolist()) == ([[0], [0]], [1, 1])


def chosen_by_hand(row_logits, prefix, sampling, noise):
    scores = processors(sampling)(torch.tensor([prefix]), row_logits[None].clone())[0]
    return int((scores if noise is None else scores.double() + noise).argmax())


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("chunk", [2**23, 3 * V])
def test_every_node_chooses_as_plain_decoding_would(monkeypatch, settings, chunk):
    monkeypatch.setattr(verification, "_CHUNK", chunk)
    generator = torch.Generator().manual_seed(4)
    sampling = SamplingConfig(**settings)
    starts, width, count = [9, 1, 4], 24, 13
    seeds = [3, 2**63 - 1, 8]
    noise = None if sampling.greedy else [NodeNoise(seed, V, torch.device("cpu")) for seed in seeds]
    for step in range(3):
        # Few kinds of tokens, so that n-grams do repeat.
        drawn = [some_tree(count, generator, 6) for _ in starts]
        tree = make_tree([tokens for tokens, _ in drawn], [parents for _, parents in drawn])
        tree.levels += step
        prefixes = torch.full((3, width + tree.levels), PREFIX_PAD)
        committed = [torch.randint(6, (start,), generator=generator).tolist() for start in starts]
        for row, ids in zip(prefixes, committed, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        logits = 3 * torch.randn(3, count, V, generator=generator)
        before = logits.clone()
        given = prefixes if sampling.needs_prefix else None
        found = choose_at_nodes(logits, tree, torch.tensor(starts), given, noise, starts, sampling)
        assert torch.equal(logits, before)
        for b, (tokens, parents) in enumerate(drawn):
            for node in range(count):
                line, current = [], node
                while True:
                    line.insert(0, tokens[current])
                    if current == 0:
                        break
                    current = parents[current]
                position = starts[b] + len(line)  # of the token that is chosen
                drawn_noise = None if sampling.greedy else gumbel_noise(seeds[b], position, V)
                expected = chosen_by_hand(logits[b, node], committed[b] + line, sampling, drawn_noise)
                assert int(found[b, node]) == expected
        starts = [start + move for start, move in zip(starts, (1, 4, 2), strict=True)]


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0}, {"repetition_penalty": 1.2}], ids=str)
def test_broken_nodes_choose_nothing(settings):
    sampling = SamplingConfig(**settings)
    tree = make_tree([[1, 2, 3]], [[0, 0, 1]])
    logits = torch.zeros(1, 3, V)
    logits[0, 1] = float("nan")
    logits[0, 2] = float("-inf")
    noise = None if sampling.greedy else [NodeNoise(0, V, torch.device("cpu"))]
    prefixes = torch.full((1, 6), PREFIX_PAD)
    prefixes[0, 0] = 4
    given = prefixes if sampling.needs_prefix else None
    found = choose_at_nodes(logits, tree, torch.tensor([1]), given, noise, [1], sampling)[0].tolist()
    assert found[0] >= 0 and found[1:] == [-1, -1]


def test_noise_is_drawn_once_per_position(monkeypatch):
    drawn = []
    true_noise = verification.gumbel_noise

    def count(seed, position, vocab, device):
        drawn.append(position)
        return true_noise(seed, position, vocab, device)

    monkeypatch.setattr(verification, "gumbel_noise", count)
    noise = NodeNoise(5, V, torch.device("cpu"))
    first, second = noise.rows(10, 4), noise.rows(12, 4)
    assert drawn == [10, 11, 12, 13, 14, 15]
    assert torch.equal(first[2:], second[:2])
    assert torch.equal(second, torch.stack([gumbel_noise(5, place, V) for place in range(12, 16)]))
