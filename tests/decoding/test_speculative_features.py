"""What a step returns beyond tokens: features and states; what it asks of the host; what half precision changes."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lit_hass.decoding import (
    AutoregressiveDecoder,
    SamplingConfig,
    SpeculativeDecoder,
    TokenState,
    TreeConfig,
    speculative,
)
from lit_hass.decoding.select_forward import tolerance
from lit_hass.decoding.speculative import SpeculativeBatch
from lit_hass.models import load_base, load_draft, load_tokenizer

from .drafts import OracleDraft, random_draft
from .tiny_models import build, prompt

FIRST = 5


def begin(length):
    return torch.cat((torch.tensor([FIRST]), prompt(length - 1)))


def good(base, tree, noise):
    decoder = SpeculativeDecoder(base, random_draft(base), tree)
    decoder.draft = OracleDraft(base, FIRST, noise)
    return decoder


@pytest.mark.parametrize("family", ["llama", "gemma2", "opt", "qwen2_mixed"])
@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(1.0)], ids=["greedy", "sampled"])
def test_features_are_the_models_own(family, sampling):
    base = build(family)
    decoder = good(base, TreeConfig(12, 3, 2), 0.2)
    prompts, count = [begin(6), begin(1), begin(13)], 14
    stop = AutoregressiveDecoder(base).generate(prompts, count, sampling)[1].output_ids[8:9].tolist()
    seen = set()
    for stops in ((), stop):
        for ids, answer in zip(
            prompts, decoder.generate(prompts, count, sampling, stops, collect_features=True), strict=True
        ):
            whole = torch.cat((ids, answer.output_ids))
            hidden = base.base_model(input_ids=whole[None]).last_hidden_state[0]
            assert answer.features.token_ids.tolist() == whole[1:].tolist()
            torch.testing.assert_close(answer.features.features, hidden[:-1], rtol=2e-3, atol=2e-3)
            assert not answer.features.features.is_inference()
            expected = [TokenState.PROMPT] * len(ids) + [TokenState.BONUS]
            for accepted in answer.accept_lengths:
                expected += [TokenState.ACCEPTED] * accepted + [TokenState.BONUS]
            assert answer.features.states.tolist() == expected[: len(whole) - 1]
            seen |= set(answer.features.states.tolist())
            assert len(expected) - len(ids) == sum(a + 1 for a in answer.accept_lengths) + 1 >= len(answer.output_ids)
    assert seen == {TokenState.PROMPT, TokenState.ACCEPTED, TokenState.BONUS}


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("tree", [TreeConfig(9, 8, 1), TreeConfig(12, 3, 3)], ids=["chain", "tree"])
@pytest.mark.parametrize("trim", [False, True])
def test_rejected_features_are_the_models_own(family, tree, trim, monkeypatch):
    """Each dropped node's feature is that of a plain forward over what stands before it and its own path."""
    base = build(family)
    decoder, steps = good(base, replace(tree, trim=trim), 0.3), []
    real = speculative.accepted_path

    def accepted(tree, targets):
        path, counts = real(tree, targets)
        steps.append((tree.tokens[0].tolist(), tree.parents[0].tolist(), path[0, : int(counts[0])].tolist()))
        return path, counts

    monkeypatch.setattr(speculative, "accepted_path", accepted)
    answer = decoder.generate([begin(7)], 17, collect_features=True)[0]
    committed, expected = begin(7).tolist(), []
    for tokens, parents, path in steps:
        for node in range(1, len(tokens)):
            ancestors, place = [], node
            while place:
                ancestors.append(tokens[place])
                place = parents[place]
            if node not in path and tokens[node] >= 0:
                ids = torch.tensor([*committed, tokens[0], *reversed(ancestors)])
                expected.append(base.base_model(input_ids=ids[None]).last_hidden_state[0, -1])
        committed += [tokens[node] for node in path]
    assert len(expected) > 5
    torch.testing.assert_close(answer.features.rejected, torch.stack(expected), rtol=2e-3, atol=2e-3)
    plain = AutoregressiveDecoder(base).generate([begin(7)], 17, collect_features=True)[0].features
    assert plain.rejected.shape == plain.draft_features.shape == (0, base.config.hidden_size)
    assert plain.draft_rows.tolist() == []


@pytest.mark.parametrize("tree", [TreeConfig(9, 8, 1), TreeConfig(16, 3, 4)], ids=["chain", "tree"])
def test_draft_features_are_what_the_draft_predicted(tree):
    """They propose the accepted tokens, and the first of each step is the draft's output over all that was known."""
    base = load_base("html_to_tsv")
    draft = load_draft("html_to_tsv", base)
    tokenizer = load_tokenizer("html_to_tsv")
    texts = [
        "<table><tr><td>Ann</td><td>7</td></tr></table>",
        "<table><tr><th>b</th></tr><tr><td>3.5</td></tr></table>",
    ]
    prompts = [torch.tensor(tokenizer(text).input_ids) for text in texts]
    answers = SpeculativeDecoder(base, draft, tree).generate(prompts, 24, collect_features=True)
    for ids, answer in zip(prompts, answers, strict=True):
        found = answer.features
        accepted = (found.states == TokenState.ACCEPTED).nonzero()[:, 0]
        # The last token has no row of its own, and it may have been accepted.
        assert found.draft_rows.tolist()[: len(accepted)] == (accepted - 1).tolist()
        assert len(found.draft_rows) - len(accepted) in (0, 1) and len(found.draft_features) == len(found.draft_rows)
        proposed = base.lm_head(found.draft_features).topk(tree.top_k).indices
        assert (proposed == found.token_ids[found.draft_rows, None]).any(dim=-1).all()
        whole = torch.cat((ids, answer.output_ids))
        plain = draft(whole[None, 1:-1], found.features[None, :-1])[0]  # row i predicts the feature of row i + 1
        after_bonus = found.states[found.draft_rows] == TokenState.BONUS
        torch.testing.assert_close(
            found.draft_features[after_bonus], plain[found.draft_rows[after_bonus] - 1], rtol=1e-3, atol=1e-3
        )
        assert after_bonus.any()


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for a device: reading a number, or a shape that depends on numbers."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero", "repeat_interleave")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__.strip("_")
        if any(name == waiting.strip("_") or name.startswith("unique") for waiting in self.WAITING):
            self.found.append(name)
        if name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.found.append("index by bool")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def reads_per_step(monkeypatch):
    """A list that receives the host's reads of every step."""
    steps, true_step = [], SpeculativeBatch._step

    def step(batch):
        with HostReads() as mode, pytest.MonkeyPatch.context() as patch:
            for method in ("tolist", "numpy", "cpu"):
                true_method = getattr(torch.Tensor, method)

                def counted(tensor, *args, _true=true_method, _name=method, **kwargs):
                    mode.found.append(_name)
                    return _true(tensor, *args, **kwargs)

                patch.setattr(torch.Tensor, method, counted)
            true_step(batch)
        steps.append(mode.found)

    monkeypatch.setattr(SpeculativeBatch, "_step", step)
    return steps


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("tree", [TreeConfig(6, 4, 1), TreeConfig(30, 3, 30)], ids=["chain", "tree"])
@pytest.mark.parametrize("batch", [1, 3])
def test_greedy_acceptance_asks_the_device_once(reads_per_step, family, tree, batch):
    base = build(family)
    decoder = SpeculativeDecoder(base, random_draft(base), tree)
    decoder.generate([prompt(6), prompt(9), prompt(2)][:batch], 10)
    assert len(reads_per_step) >= 5 and all(reads == ["tolist"] for reads in reads_per_step)


def test_reads_are_counted():
    x = torch.arange(3.0)
    for read in (lambda: x[0].item(), lambda: bool(x[0]), lambda: int(x[1]), lambda: [0, 1, 2][x.long()[1]]):
        with HostReads() as mode:
            read()
        assert mode.found
    for read in (lambda: x.nonzero(), lambda: x[x > 1], lambda: torch.equal(x, x), lambda: x.unique()):
        with HostReads() as mode:
            read()
        assert mode.found
    with HostReads() as mode:
        x[:, None].expand(-1, 2).gather(1, x.long()[:, None] * 0).sort(dim=0).values.cumsum(0)
    assert not mode.found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "gemma2", "granite"])
def test_half_precision_diverges_at_near_ties_only(family, dtype):
    base = build(family).to(dtype)
    plain = AutoregressiveDecoder(base)
    prompts = [prompt(9), prompt(5), prompt(17)]
    decoder = SpeculativeDecoder(base, random_draft(base), TreeConfig(40, 1, 30))
    answers, expected = decoder.generate(prompts, 24), plain.generate(prompts, 24)
    for ids, ours, theirs in zip(prompts, answers, expected, strict=True):
        assert len(ours.output_ids) == 24
        different = (ours.output_ids != theirs.output_ids).nonzero()
        if not len(different):
            continue
        first = int(different[0, 0])
        logits = base(input_ids=torch.cat((ids, ours.output_ids[:first]))[None]).logits[0, -1].float()
        pair = logits[ours.output_ids[first]], logits[theirs.output_ids[first]]
        assert abs(pair[0] - pair[1]) <= tolerance(dtype) * logits.abs().max()
        assert max(pair) >= logits.max() - tolerance(dtype) * logits.abs().max()
    assert any(any(answer.accept_lengths) for answer in answers)
