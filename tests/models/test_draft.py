import pytest
import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from lit_hass.errors import UserError
from lit_hass.models import DraftConfig, DraftModel
from tests.decoding.tiny_models import VOCAB, build

WIDTH = 32


def make(**settings):
    torch.manual_seed(2)
    draft = DraftModel(
        DraftConfig(WIDTH, 48, 4, **{"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 50, **settings})
    )
    return draft.eval().requires_grad_(False)


def inputs(length=12, batch=3):
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 50, (batch, length), generator=generator)
    return ids, torch.randn(batch, length, WIDTH, generator=generator)


ROPES = {
    "default": {"rope_type": "default", "rope_theta": 1000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "factor": 2.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [2.0, 2.1, 2.2, 2.3],
        "original_max_position_embeddings": 8,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
}


@pytest.mark.parametrize("rope", ROPES)
def test_the_layer_is_that_of_transformers_without_its_first_norm(rope):
    """An independent layer: the stock one, its input norm replaced by nothing."""
    draft = make(rope_parameters=ROPES[rope], qkv_bias=True)
    config = draft.config.llama()
    config.attention_bias = True
    config._attn_implementation = "eager"
    layer = LlamaDecoderLayer(config, 0).eval()
    layer.input_layernorm = torch.nn.Identity()
    torch.nn.init.zeros_(layer.self_attn.o_proj.bias)
    layer.load_state_dict(
        {k.removeprefix("layers.0."): v for k, v in draft.state_dict().items() if "layers." in k}, strict=False
    )
    ids, features = inputs()
    x = torch.nn.functional.linear(
        torch.cat((draft.embed_tokens(ids), features), -1), draft.fc.weight, draft.fc.bias
    )  # the embedding first
    positions = LlamaRotaryEmbedding(config)(x, torch.arange(12)[None])
    mask = torch.full((12, 12), -torch.inf).triu(1)[None, None]
    expected = layer(x, attention_mask=mask, position_embeddings=positions)
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert (draft(ids, features) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("rope", ROPES)
def test_cached_rows_of_any_lengths_equal_the_whole_pass(rope):
    draft = make(rope_parameters=ROPES[rope])
    ids, features = inputs()
    if rope == "longrope":  # its table changes with the length of the sequence, as in transformers
        ids, features = ids[:, :8], features[:, :8]
    whole = draft(ids, features)
    cache = draft.new_cache(3, 20)
    first = draft(ids[:, :5], features[:, :5], cache=cache)
    assert (first - whole[:, :5]).abs().max() < 1e-6
    cache.commit([5, 3, 4])
    starts, count = cache.lengths, 3
    more = [(ids[b, n : n + count], features[b, n : n + count]) for b, n in enumerate(starts)]
    second = draft(torch.stack([i for i, _ in more]), torch.stack([f for _, f in more]), cache=cache)
    for b, n in enumerate(starts):
        assert (second[b] - whole[b, n : n + count]).abs().max() < 2e-6
    cache.commit([3, 1, 2])
    cache.select([2, 0])
    third = draft(ids[[2], 6:7], features[[2], 6:7], cache=_only(cache, 0))
    assert (third[0, 0] - whole[2, 6]).abs().max() < 2e-6


def _only(cache, row):
    cache.select([row])
    return cache


@pytest.mark.parametrize("lengths", [(4, 4), (4, 2)])
def test_a_tree_of_rows_equals_its_paths(lengths):
    """Rows of one level share a position and see their own ancestors only; nothing of them stays."""
    draft = make()
    ids, features = inputs(4, 2)
    tree_ids, tree_features = inputs(5, 2)
    # 0 and 1 on the first level, 2 below 0, 3 and 4 below 1
    parents, depth = [-1, -1, 0, 1, 1], [0, 0, 1, 1, 1]
    visible = torch.eye(5, dtype=torch.bool)
    for row, parent in enumerate(parents):
        if parent >= 0:
            visible[row] |= visible[parent]
    cache = draft.new_cache(2, 20)
    draft(ids, features, cache=cache)
    cache.commit(list(lengths))
    positions = torch.tensor(lengths)[:, None] + torch.tensor(depth)
    found = torch.cat(
        (
            draft(tree_ids[:, :2], tree_features[:, :2], positions[:, :2], cache, visible=visible[:2, :2]),
            draft(tree_ids[:, 2:], tree_features[:, 2:], positions[:, 2:], cache, offset=2, visible=visible[2:]),
        ),
        dim=1,
    )
    assert cache.lengths == list(lengths)
    for b, length in enumerate(lengths):
        for row, parent in enumerate(parents):
            path = [row] if parent < 0 else [parent, row]
            line = torch.cat((ids[b, :length], tree_ids[b, path]))[None]
            rows = torch.cat((features[b, :length], tree_features[b, path]))[None]
            assert (draft(line, rows)[0, -1] - found[b, row]).abs().max() < 2e-6


def test_the_cache_says_when_it_is_full():
    draft = make()
    ids, features = inputs(5, 1)
    with pytest.raises(ValueError, match="4 slots, 5 are needed"):
        draft(ids, features, cache=draft.new_cache(1, 4))


@pytest.mark.parametrize(
    "family", ["llama", "llama3_rope", "llama_yarn", "llama_tied", "qwen2", "qwen3", "mistral", "phi3"]
)
def test_a_fresh_draft_for_any_llama_like_base(family):
    base = build(family).to(torch.bfloat16)
    draft = DraftModel.from_base(base, intermediate_size=20)
    assert draft.dtype == torch.bfloat16 and draft.config.intermediate_size == 20
    assert draft.config.qkv_bias == (family == "qwen2")
    assert draft.config.head_dim == (16 if family == "qwen3" else 8)
    assert torch.equal(draft.embed_tokens.weight, base.get_input_embeddings().weight)
    trained = {name for name, p in draft.named_parameters() if p.requires_grad}
    assert "embed_tokens.weight" not in trained and "fc.weight" in trained
    rope = base.config.rope_parameters
    assert {k: draft.config.rope_parameters[k] for k in rope if k != "partial_rotary_factor"} == {
        k: v for k, v in rope.items() if k != "partial_rotary_factor"
    }
    output = draft(torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 3, 32, dtype=torch.bfloat16))
    assert output.shape == (1, 3, 32) and output.dtype == torch.bfloat16


def test_a_cast_leaves_the_frequencies_alone():
    draft = make()
    before = draft.rotary(torch.arange(2000))[0]
    draft.to(torch.bfloat16)
    assert torch.equal(before, draft.rotary(torch.arange(2000))[0])


def test_keys_are_eagles():
    names = {name: tuple(value.shape) for name, value in make(qkv_bias=True).state_dict().items()}
    attention = "layers.0.self_attn."
    assert names == {
        "embed_tokens.weight": (50, 32),
        "fc.weight": (32, 64),
        "fc.bias": (32,),
        attention + "q_proj.weight": (32, 32),
        attention + "q_proj.bias": (32,),
        attention + "k_proj.weight": (16, 32),
        attention + "k_proj.bias": (16,),
        attention + "v_proj.weight": (16, 32),
        attention + "v_proj.bias": (16,),
        attention + "o_proj.weight": (32, 32),
        "layers.0.mlp.gate_proj.weight": (48, 32),
        "layers.0.mlp.up_proj.weight": (48, 32),
        "layers.0.mlp.down_proj.weight": (32, 48),
        "layers.0.post_attention_layernorm.weight": (32,),
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_key_value_heads": 3}, "4 query heads cannot share 3"),
        ({"head_dim": 7}, "is odd"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
        ({"rope_parameters": {"rope_type": "helix", "rope_theta": 1e4}}, "helix"),
        ({"rope_parameters": {**ROPES["linear"], "partial_rotary_factor": 0.5}}, "of a head's 8 channels"),
    ],
)
def test_bad_settings(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        make(**settings)
    assert "\n" not in str(caught.value)


def test_unknown_overrides_are_named():
    with pytest.raises(UserError, match="unknown settings layers"):
        DraftModel.from_base(build("llama"), layers=2)


def test_a_base_with_another_embedding_width_is_refused():
    base = build("llama")
    base.set_output_embeddings(torch.nn.Linear(24, VOCAB, bias=False))
    assert isinstance(base, LlamaForCausalLM)
    with pytest.raises(UserError, match="a draft needs both of one size"):
        DraftModel.from_base(base)
