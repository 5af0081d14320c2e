"""Both decoders on one simulated device and on a model that is spread over two: nothing may be mixed, nothing lost."""

import copy
import itertools

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TokenState, TreeConfig
from lit_hass.decoding.divergence import top_two_gap
from lit_hass.decoding.draft_forward import ModuleDraft
from lit_hass.decoding.hf_forward import HFForward
from lit_hass.decoding.lean import LeanForward
from lit_hass.decoding.lean_draft import LeanDraft
from lit_hass.decoding.slot_forward import SlotForward
from lit_hass.errors import UserError

from .drafts import random_draft
from .simulated_devices import DeviceTensor, MixedDevicesError, SimulatedDevices, put, spread

LAYERS = [f"model.layers.{i}" for i in range(3)]
ENDS = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")


def _two(embedding, norm, head):
    devices = dict.fromkeys(LAYERS[:1], "cuda:0") | dict.fromkeys(LAYERS[1:], "cuda:1")
    return {
        "model.embed_tokens": embedding,
        "model.rotary_emb": embedding,
        **devices,
        "model.norm": norm,
        "lm_head": head,
    }


#: Where the model's parts lie; None is all on one device.
PLACES = {
    "one": None,
    "two": _two("cuda:0", "cuda:1", "cuda:1"),
    "head elsewhere": {**dict.fromkeys((*LAYERS, *ENDS), "cuda:0"), "lm_head": "cuda:1"},
}
SAMPLING = {
    "greedy": SamplingConfig(),
    "greedy penalties": SamplingConfig(repetition_penalty=1.2, no_repeat_ngram_size=3),
    "sampled": SamplingConfig(temperature=0.8, top_p=0.95),
    "sampled penalties": SamplingConfig(1.0, top_k=50, repetition_penalty=1.1, no_repeat_ngram_size=4),
}
TREES = {"tree": TreeConfig(16, 2, 3), "chain": TreeConfig(6, 4, 1), "nothing": TreeConfig(1, 0, 1)}
SEEDS = [5, 6, 7]
COUNT = 10


@pytest.fixture(scope="module")
def pair():
    """A base of so few tokens that a random draft is often right, that draft, and ragged prompts."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=13, num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.4, **sizes
    )
    base = LlamaForCausalLM(config).eval().requires_grad_(False)
    return base, random_draft(base), [torch.arange(n) * 5 % 13 for n in (9, 4, 6)]


@pytest.fixture(scope="module")
def expected(pair):
    """Plain decoding on the CPU, for each kind of sampling: answers, without a stop."""
    base, _, prompts = pair
    decoder = AutoregressiveDecoder(base)
    return {name: decoder.generate(prompts, COUNT, s, (), SEEDS, True) for name, s in SAMPLING.items()}


@pytest.fixture(scope="module", params=["lean", "slot", "two", "head elsewhere"])
def placed(request, pair):
    """Decoders over a copy of the pair on simulated devices, as functions of the tree."""
    base, draft = (copy.deepcopy(model) for model in pair[:2])
    with SimulatedDevices():
        places = PLACES.get(request.param)
        if places is None:
            put(base, "cuda:0")
        else:
            spread(base, places)
        if request.param == "slot":  # a hook of anybody keeps the hand-written forward away
            base.model.layers[1].register_forward_hook(lambda *_: None)
        home = base.lm_head.weight.device
        put(draft, str(home))
        first = SpeculativeDecoder(base, draft, TREES["tree"])
        plain = AutoregressiveDecoder(base)
    lean = request.param == "lean"
    assert type(first.forward) is (LeanForward if lean else SlotForward)
    assert type(plain.forward) is (LeanForward if lean else HFForward)
    assert type(first.draft) is LeanDraft
    assert {first.forward.output_device, plain.forward.output_device} == {home}
    return plain, lambda tree: SpeculativeDecoder(first.forward, draft, tree), home


def same(found, wanted, stop, collect, home):
    accepted = 0
    for ours, theirs in zip(found, wanted, strict=True):
        ids = theirs.output_ids.tolist()
        end = next((i + 1 for i, token in enumerate(ids) if token in stop), len(ids))
        assert ours.output_ids.tolist() == ids[:end]
        accepted += sum(ours.accept_lengths)
        assert (ours.features is not None) is collect
        if collect:
            assert ours.features.features.device == ours.features.states.device == home
            rows = len(theirs.features.features) - len(ids) + end
            torch.testing.assert_close(
                ours.features.features.raw, theirs.features.features[:rows], rtol=1e-3, atol=1e-3
            )
            assert (ours.features.states.raw == TokenState.ACCEPTED).sum() <= accepted
            assert len(ours.features.draft_rows) == len(ours.features.draft_features)
    return accepted


def run_through(placed, prompts, wanted, sampling, settings):
    """Plain decoding and every tree under (stops, collecting, trimming); rows of the batch end apart."""
    plain, speculative, home = placed
    accepted = 0
    with SimulatedDevices():
        for ends, collect, trim in settings:
            found = plain.generate(prompts, COUNT, sampling, ends, SEEDS, collect)
            same(found, wanted, ends, collect, home)
            for tree in TREES.values():
                decoder = speculative(TreeConfig(tree.total_tokens, tree.depth, tree.top_k, trim))
                found = decoder.generate(prompts, COUNT, sampling, ends, SEEDS, collect)
                accepted += same(found, wanted, ends, collect, home)
    assert accepted > 5 * len(settings), "a draft that is never right shows nothing"


@pytest.mark.parametrize("name", ["greedy", "sampled penalties"])
def test_answers_are_those_of_the_cpu(placed, pair, expected, name):
    stop = (int(expected[name][1].output_ids[3]),)
    run_through(placed, pair[2], expected[name], SAMPLING[name], [((), True, False), (stop, False, True)])


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLING)
def test_answers_are_those_of_the_cpu_in_every_combination(placed, pair, expected, name):
    stop = (int(expected[name][1].output_ids[3]),)
    settings = list(itertools.product(((), stop), (False, True), (False, True)))
    run_through(placed, pair[2], expected[name], SAMPLING[name], settings)


def test_the_drafts_own_module(placed, pair, expected):
    _, speculative, home = placed
    with SimulatedDevices():
        decoder = speculative(TREES["tree"])
        decoder.draft = ModuleDraft(decoder.draft._draft)
        for name in ("greedy", "sampled penalties"):
            found = decoder.generate(pair[2], COUNT, SAMPLING[name], (), SEEDS, True)
            assert same(found, expected[name], (), True, home)


def test_a_size_by_timing_and_the_gap_of_two_answers(placed, pair, expected):
    plain, speculative, home = placed
    with SimulatedDevices():
        found = speculative(TreeConfig(-1, 1, 2)).generate(pair[2], COUNT, SAMPLING["sampled"], (), SEEDS)
        same(found, expected["sampled"], (), False, home)
        gaps = [top_two_gap(plain.forward, pair[2][0], s, 3) for s in SAMPLING.values()]
    wanted = [top_two_gap(AutoregressiveDecoder(pair[0]).forward, pair[2][0], s, 3) for s in SAMPLING.values()]
    assert gaps == pytest.approx(wanted, rel=1e-3)


def test_a_draft_on_another_device_than_the_output_layer_is_refused(pair):
    base, draft = (copy.deepcopy(model) for model in pair[:2])
    with SimulatedDevices():
        spread(base, PLACES["two"])
        put(draft, "cuda:0")
        with pytest.raises(UserError, match="the draft lies on cuda:0, the base's logits on cuda:1"):
            SpeculativeDecoder(base, draft)


def test_the_simulation_refuses_what_cuda_refuses():
    with SimulatedDevices():
        here, there = torch.arange(4, device="cuda:0"), torch.arange(4).to("cuda:1")
        assert isinstance(here, DeviceTensor) and str(there.device) == "cuda:1"
        assert torch.equal(here.cpu(), there.cpu())
        for wrong in (
            lambda: here + there,
            lambda: here + torch.arange(4),
            lambda: torch.cat((here, there)),
            lambda: here[there],
            lambda: here.numpy(),
            lambda: here.gather(0, there),
            lambda: here.__setitem__(here, there),
            lambda: torch.rand(3, device="cuda:1", generator=torch.Generator("cuda:0")),
            lambda: torch.arange(4).index_select(0, here),
        ):
            with pytest.raises(MixedDevicesError):
                wrong()
        here[1:3] = there[:2]  # a copy between devices
        assert (here + 1).tolist() == [1, 1, 2, 4] and here[torch.tensor([3])].tolist() == [3]
        assert (here.float().mul_(2) * torch.tensor(0.5)).sum().item() == 4.0
