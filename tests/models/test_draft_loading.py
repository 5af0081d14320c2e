import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from lit_hass.errors import UserError
from lit_hass.models import DraftModel, draft_loading, load_base, load_draft, resolve_draft, save_draft
from tests.decoding.tiny_models import VOCAB, build

ATTENTION = "layers.0.self_attn."


@pytest.fixture(scope="module")
def base():
    return build("llama")


@pytest.fixture
def folder(base, tmp_path):
    """A draft's checkpoint in the published layout, to be changed."""
    torch.manual_seed(4)
    draft = DraftModel.from_base(base)
    draft.save_pretrained(tmp_path / "draft")
    return tmp_path / "draft"


def change(folder, tensors=None, without=(), rename=None, **config):
    """Rewrite the checkpoint with other tensors and other keys of config.json (None removes one)."""
    found = load_file(folder / "model.safetensors")
    found = {key: value.clone() for key, value in found.items() if key not in without}
    found.update(tensors or {})
    if rename:
        found = {rename(key): value for key, value in found.items()}
    save_file(found, folder / "model.safetensors")
    content = json.loads((folder / "config.json").read_text())
    content = {key: value for key, value in {**content, **config}.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))
    return found


def refusal(folder, base):
    with pytest.raises(UserError) as caught:
        load_draft(folder, base)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def zeros(*shape):
    return torch.zeros(shape)


# Accepted


@pytest.mark.parametrize("family", ["llama", "llama3_rope", "llama_yarn", "qwen2", "qwen3"])
def test_round_trip(family, tmp_path):
    base = build(family)
    draft = DraftModel.from_base(base)
    save_draft(draft, tmp_path)
    loaded = load_draft(tmp_path, base)
    assert loaded.config == draft.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in draft.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_the_configuration_has_the_published_names(base, tmp_path):
    DraftModel.from_base(base).save_pretrained(tmp_path, torch.float16)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["architectures"] == ["LlamaForCausalLM"] and content["num_hidden_layers"] == 1
    assert content["bias"] is True and content["qkv_bias"] is False and content["torch_dtype"] == "float16"
    assert content["rope_theta"] == 10000.0 and content["rope_scaling"] is None and content["vocab_size"] == VOCAB
    assert content["pad_token_id"] == 0 and content["eos_token_id"] == 2
    assert {value.dtype for value in load_file(tmp_path / "model.safetensors").values()} == {torch.float16}


def test_scaled_rope_is_written_for_old_readers(tmp_path):
    DraftModel.from_base(build("llama3_rope")).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["rope_scaling"]["type"] == content["rope_scaling"]["rope_type"] == "llama3"
    assert "rope_theta" not in content["rope_scaling"] and content["rope_theta"] == 10000.0


def test_the_dtype_is_the_bases(folder):
    assert load_draft(folder, build("llama").to(torch.bfloat16)).dtype == torch.bfloat16


def test_old_and_new_rope_settings(folder, base):
    change(folder, rope_theta=500.0, rope_scaling={"type": "linear", "factor": 2.0})
    assert load_draft(folder, base).config.rope_parameters == {
        "rope_theta": 500.0,
        "rope_type": "linear",
        "factor": 2.0,
    }
    change(folder, rope_parameters={"rope_type": "default", "rope_theta": 700.0})
    assert load_draft(folder, base).config.rope_parameters == {"rope_type": "default", "rope_theta": 700.0}


def test_defaults_of_absent_keys(base, folder):
    wide = {ATTENTION + f"{name}_proj.weight": zeros(32, 32) for name in "kv"}
    change(folder, wide, rope_theta=None, rope_scaling=None, rms_norm_eps=None, num_key_value_heads=None, bias=None)
    config = load_draft(folder, base).config
    assert (config.rms_norm_eps, config.num_key_value_heads) == (1e-6, 4)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("said", [True, False, None])
def test_the_bias_is_decided_by_its_key(folder, base, caplog, there, said):
    change(folder, without=() if there else ("fc.bias",), bias=said)
    with caplog.at_level(logging.WARNING):
        draft = load_draft(folder, base)
    assert (draft.fc.bias is not None) == there
    assert ("fc.bias" in caplog.text) == (there != (said is not False))
    draft.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["bias"] is there


def test_qkv_bias_is_decided_by_its_keys(folder, base):
    biases = {ATTENTION + "q_proj.bias": zeros(32), ATTENTION + "k_proj.bias": zeros(16)}
    change(folder, {**biases, ATTENTION + "v_proj.bias": torch.ones(16)})
    draft = load_draft(folder, base)
    assert draft.config.qkv_bias and bool((draft.layer.self_attn.v_proj.bias == 1).all())


def test_a_missing_embedding_is_the_bases(folder, base, caplog):
    change(folder, without=("embed_tokens.weight",))
    with caplog.at_level(logging.WARNING):
        draft = load_draft(folder, base)
    assert torch.equal(draft.embed_tokens.weight, base.get_input_embeddings().weight)
    assert not caplog.text


def test_another_embedding_is_kept_with_a_warning(folder, base, caplog):
    other = base.get_input_embeddings().weight + 0.5
    change(folder, {"embed_tokens.weight": other})
    with caplog.at_level(logging.WARNING):
        draft = load_draft(folder, base)
    assert torch.equal(draft.embed_tokens.weight, other)
    assert "its embedding is not the base's" in caplog.text


def test_a_rounded_embedding_is_no_other(folder, base, caplog):
    load_draft(folder, base).save_pretrained(folder, torch.bfloat16)
    with caplog.at_level(logging.WARNING):
        load_draft(folder, base)
    assert not caplog.text


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model."])
def test_prefixes_are_removed(folder, base, prefix):
    change(folder, rename=lambda key: prefix + key, architectures=["LlamaForCausalLMEagle"])
    load_draft(folder, base)


def test_a_head_dim_that_the_published_class_ignores(folder, base):
    change(folder, head_dim=64)
    assert load_draft(folder, base).config.head_dim == 8


def test_the_bin_file_is_read_when_there_is_no_other(folder, base):
    tensors = load_file(folder / "model.safetensors")
    torch.save(tensors, folder / "pytorch_model.bin")
    change(folder, {"fc.bias": torch.ones(32)})
    assert bool((load_draft(folder, base).fc.bias == 1).all())
    (folder / "model.safetensors").unlink()
    assert torch.equal(load_draft(folder, base).fc.bias, tensors["fc.bias"])


def test_a_name_finds_the_shipped_draft(folder, base, monkeypatch, tmp_path):
    (tmp_path / "shelf/house").mkdir(parents=True)
    shutil.copytree(folder, tmp_path / "shelf/house/draft")
    monkeypatch.setattr(draft_loading, "PRETRAINED", tmp_path / "shelf")
    assert resolve_draft("house") == tmp_path / "shelf/house/draft"
    load_draft("house", base)


# Refused


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        ({"midlayer.hidden_norm.weight": zeros(32)}, {}),
        ({"d2t": torch.zeros(8, dtype=torch.long)}, {}),
        ({"t2d": torch.zeros(8, dtype=torch.bool)}, {}),
        ({"fc.weight": zeros(32, 96)}, {}),
        ({ATTENTION + "q_proj.weight": zeros(32, 64)}, {}),
        ({}, {"draft_vocab_size": 32000}),
        ({}, {"architectures": ["LlamaForCausalLMEagle3"]}),
    ],
)
def test_eagle_3(folder, base, tensors, config):
    change(folder, tensors, **config)
    assert "EAGLE-3, another model" in refusal(folder, base)


@pytest.mark.parametrize("key", ["speculators_model_type", "speculators_config", "verifier_model"])
def test_speculators(folder, base, key):
    change(folder, **{key: "eagle"})
    text = refusal(folder, base)
    assert "speculators format" in text and key in text


@pytest.mark.parametrize(
    "key",
    [
        "embed_layernorm.weight",
        "post_embedding_layernorm.weight",
        "layers.0.input_layernorm.weight",
        "pre_lm_head_layernorm.weight",
        "norm.weight",
        ATTENTION + "q_norm.weight",
    ],
)
def test_extra_norms(folder, base, key):
    change(folder, {key: zeros(32)})
    text = refusal(folder, base)
    assert key in text and "a norm that drafts" in text


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("medusa_head.0.0.linear.weight", "Medusa"),
        ("0.0.linear.weight", "Medusa"),
        ("mtp.layers.0.weight", "MTP"),
        ("layers.0.eh_proj.weight", "MTP"),
        ("layers.0.block_sparse_moe.gate.weight", "mixture-of-experts"),
        ("layers.0.mlp.experts.0.up_proj.weight", "mixture-of-experts"),
    ],
)
def test_other_heads(folder, base, key, kind):
    change(folder, {key: zeros(8, 8)})
    text = refusal(folder, base)
    assert kind in text and key in text


@pytest.mark.parametrize(("key", "kind"), [("medusa_num_heads", "Medusa"), ("num_nextn_predict_layers", "MTP")])
def test_other_heads_by_configuration(folder, base, key, kind):
    change(folder, **{key: 1})
    assert kind in refusal(folder, base)


def test_something_else_entirely(folder, base):
    save_file({"weight": zeros(3)}, folder / "model.safetensors")
    assert "no draft of EAGLE-1, EAGLE-2 or HASS" in refusal(folder, base)


@pytest.mark.parametrize(("width", "vocab"), [(16, VOCAB), (32, VOCAB + 3)])
def test_sizes_of_another_base(width, vocab, base, tmp_path):
    config = build("llama").config
    config.hidden_size, config.vocab_size = width, vocab
    DraftModel.from_base(LlamaForCausalLM(config)).save_pretrained(tmp_path)
    text = refusal(tmp_path, base)
    if width == 16:
        assert "hidden size is 16 (fc.weight [16, 32])" in text and f"[{VOCAB}, 32]" in text
    else:
        assert f"vocabulary has {vocab} tokens (embed_tokens [{vocab}, 32])" in text and f"[{VOCAB}, 32]" in text


def test_another_vocabulary_without_an_embedding(folder, base):
    change(folder, without=("embed_tokens.weight",), vocab_size=VOCAB + 1)
    assert f"vocabulary has {VOCAB + 1} tokens" in refusal(folder, base)


def test_two_layers(folder, base):
    second = {
        key.replace("layers.0", "layers.1"): value.clone()
        for key, value in load_file(folder / "model.safetensors").items()
        if key.startswith("layers.0")
    }
    change(folder, second, num_hidden_layers=2)
    assert "lack layers.1.input_layernorm.weight" in refusal(folder, base)
    change(folder, {"layers.1.input_layernorm.weight": zeros(32)})
    assert "2 layers; a HASS draft has one" in refusal(folder, base)


def test_missing_and_unexpected_keys_are_all_named(folder, base):
    change(
        folder,
        {"surplus.weight": zeros(2), "lm_head.weight": zeros(4, 4)},
        without=("fc.weight", ATTENTION + "o_proj.weight"),
    )
    text = refusal(folder, base)
    assert f"lacks fc.weight, {ATTENTION}o_proj.weight and has lm_head.weight, surplus.weight" in text


def test_one_of_three_biases(folder, base):
    change(folder, {ATTENTION + "q_proj.bias": zeros(32)})
    assert f"lacks {ATTENTION}k_proj.bias, {ATTENTION}v_proj.bias" in refusal(folder, base)


def test_shapes_that_contradict_the_configuration(folder, base):
    change(folder, intermediate_size=64)
    text = refusal(folder, base)
    assert (
        "weights and config.json disagree" in text
        and "layers.0.mlp.up_proj.weight is [48, 32] instead of [64, 32]" in text
    )


def test_a_key_twice(folder, base):
    change(folder, {"model.fc.weight": zeros(32, 64)})
    assert "fc.weight is there twice" in refusal(folder, base)


def test_quantised(folder, base):
    change(folder, {"fc.weight": torch.zeros(32, 64, dtype=torch.int8)})
    assert "quantised" in refusal(folder, base)


def test_damaged_files_are_not_passed_over(folder, base):
    """A damaged file is an error, even if the other one is whole."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:200])
    assert "model.safetensors: damaged" in refusal(folder, base)
    (folder / "model.safetensors").unlink()
    data = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(data[:200])
    assert "pytorch_model.bin: cut short" in refusal(folder, base)


class _Code:
    def __reduce__(self):
        return (os.mkdir, ("proof-of-execution",))


def test_code_in_a_bin_file_is_not_run(folder, base, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").unlink()
    torch.save({"fc.weight": _Code()}, folder / "pytorch_model.bin")
    assert "more than tensors" in refusal(folder, base)
    assert not Path("proof-of-execution").exists()


def test_a_list_is_no_state_dict(folder, base):
    (folder / "model.safetensors").unlink()
    torch.save([zeros(2)], folder / "pytorch_model.bin")
    assert "not a state dict" in refusal(folder, base)


def test_files_that_are_not_there(folder, base, tmp_path):
    (folder / "model.safetensors").unlink()
    assert "no weights; looked for model.safetensors, model.safetensors.index.json, pytorch" in refusal(folder, base)
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder, base)
    (folder / "config.json").write_text("[1]")
    assert "expected a JSON object" in refusal(folder, base)
    (folder / "config.json").write_text("{")
    assert "not readable as JSON" in refusal(folder, base)
    (folder / "config.json").write_text("{}")
    assert "no weights" in refusal(folder, base)
    for name in (str(tmp_path / "nothing"), "./nothing", "nothing at all"):
        with pytest.raises(UserError, match="no such draft"):
            load_draft(name, base)
    with pytest.raises(UserError, match="is a file"):
        load_draft(folder / "config.json", base)
    with pytest.raises(UserError, match="the hub did not give it"):
        load_draft("someone/something", base)


@pytest.mark.parametrize("key", ["hidden_size", "intermediate_size", "num_attention_heads", "vocab_size"])
def test_keys_that_nobody_can_guess(folder, base, key):
    change(folder, **{key: None})
    assert f"config.json lacks {key}" in refusal(folder, base)


@pytest.mark.parametrize("value", [0, -1, "32", 1.5])
def test_nonsense_in_the_configuration(folder, base, value):
    change(folder, num_attention_heads=value)
    refusal(folder, base)


def test_a_folder_that_cannot_be_written(base, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        DraftModel.from_base(base).save_pretrained(tmp_path / "taken")


# The published layout itself


@pytest.fixture(scope="module")
def reference():
    folder = os.environ.get("LIT_HASS_REFERENCE")
    if not folder:
        pytest.skip("LIT_HASS_REFERENCE names no folder with reference data")
    return Path(folder) / "speculative"


def test_the_reference_draft_from_both_files(reference, tmp_path):
    base = load_base(reference / "tiny_trained/base")
    whole = load_draft(reference / "tiny_trained/ea", base).state_dict()
    for name in ("model.safetensors", "pytorch_model.bin"):
        folder = tmp_path / name
        folder.mkdir()
        for file in (name, "config.json"):
            shutil.copy(reference / "tiny_trained/ea" / file, folder)
        draft = load_draft(folder, base)
        assert all(torch.equal(value, whole[key]) for key, value in draft.state_dict().items())
    config = draft.config
    assert (config.hidden_size, config.intermediate_size, config.vocab_size) == (128, 256, 512)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 32)
    assert config.fc_bias and not config.qkv_bias and config.rope_parameters["rope_theta"] == 10000.0


def test_what_is_saved_can_be_read_by_all(base, tmp_path):
    """Safetensors makes files for their owner alone."""
    (tmp_path / "beside").write_text("")
    DraftModel.from_base(base).save_pretrained(tmp_path / "draft")
    modes = {path.stat().st_mode for path in (tmp_path / "draft").iterdir()}
    assert modes == {(tmp_path / "beside").stat().st_mode}


# As people write them


def vllm(folder, base, **outside):
    """What converters for vLLM make of a draft: names of a whole model, its configuration in an envelope."""
    change(
        folder,
        {"lm_head.weight": base.lm_head.weight.clone()},
        rename=lambda key: key if key.startswith(("fc", "lm_head")) else "model." + key,
    )
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "eagle", "model": content, **outside}))


def test_a_draft_converted_for_vllm(folder, base):
    expected = load_draft(folder, base)
    vllm(folder, base, eagle_fc_bias=True, architectures=["EAGLEModel"])
    draft_loading.check_draft(folder)
    loaded = load_draft(folder, base)
    assert loaded.config == expected.config
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in expected.state_dict().items())


def test_an_output_layer_must_be_the_bases(folder, base):
    change(folder, {"lm_head.weight": base.lm_head.weight.to(torch.bfloat16).float()})  # rounded
    assert "lm_head.weight" not in load_draft(folder, base).state_dict()
    change(folder, {"lm_head.weight": base.lm_head.weight.flip(0).contiguous()})
    assert "lm_head.weight is not the base's output layer" in refusal(folder, base)
    change(folder, {"lm_head.weight": base.lm_head.weight * torch.nan})
    assert "lm_head.weight is not the base's output layer" in refusal(folder, base)


def test_what_says_nothing_is_passed_over(folder, base, caplog):
    expected = load_draft(folder, base).state_dict()
    inv_freq = 1.0 / 10000.0 ** (torch.arange(0, 8, 2) / 8)
    tables = {f"layers.0.self_attn.rotary_emb.{name}_cached": zeros(1, 1, 64, 8) for name in ("cos", "sin")}
    nothing = {"layers.0.self_attn.rotary_emb.inv_freq": inv_freq, ATTENTION + "o_proj.bias": zeros(32), **tables}
    change(folder, nothing)
    with caplog.at_level(logging.WARNING):
        loaded = load_draft(folder, base).state_dict()
    assert loaded.keys() == expected.keys() and not caplog.text
    change(folder, {"layers.0.self_attn.rotary_emb.inv_freq": inv_freq * 2})
    with caplog.at_level(logging.WARNING):
        load_draft(folder, base)
    assert "inv_freq is not what config.json says" in caplog.text
    change(folder, {ATTENTION + "o_proj.bias": torch.full((32,), 0.1)})  # this one would be added
    assert f"has {ATTENTION}o_proj.bias" in refusal(folder, base)


@pytest.mark.parametrize("place", ["front", "inside"])
def test_a_compiled_module(folder, base, place):
    expected = load_draft(folder, base).state_dict()
    renamed = {"front": lambda key: "_orig_mod." + key, "inside": lambda key: key.replace("mlp.", "mlp._orig_mod.")}
    change(folder, rename=renamed[place])
    assert all(torch.equal(value, load_draft(folder, base).state_dict()[key]) for key, value in expected.items())


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_with_an_index(folder, base, suffix):
    expected = load_draft(folder, base).state_dict()
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    stem, save = ("model", save_file) if suffix == "safetensors" else ("pytorch_model", torch.save)
    names, places = sorted(tensors), {}
    for number, part in enumerate((names[:3], names[3:]), 1):
        file = f"{stem}-0000{number}-of-00002.{suffix}"
        save({name: tensors[name].clone() for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    draft_loading.check_draft(folder)
    assert all(torch.equal(value, load_draft(folder, base).state_dict()[key]) for key, value in expected.items())
    index.write_text(json.dumps({"weight_map": {**places, "more": f"../{file}"}}))
    assert f"names ../{file}, which is not beside it" in refusal(folder, base)
    index.write_text(json.dumps({"weight_map": {**places, "more": "third"}}))
    assert "names third, which is not there" in refusal(folder, base)


def test_rotary_settings_for_each_kind_of_layer(folder, base):
    sets = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
    }
    change(folder, rope_theta=None, rope_scaling=None, rope_parameters=sets)
    assert load_draft(folder, base).config.rope_parameters["rope_theta"] == 1e6
    change(folder, layer_types=["sliding_attention"])
    draft = load_draft(folder, base)
    assert draft.config.rope_parameters["rope_theta"] == 500.0
    expected = 1.0 / 500.0 ** (torch.arange(0, 8, 2) / 8)
    torch.testing.assert_close(draft.rotary_frequencies()[0], expected)
    change(folder, layer_types=["linear_attention"])
    assert "none for a layer of kind linear_attention" in refusal(folder, base)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"hidden_act": "swiglu"}, "hidden_act 'swiglu' is unknown"),
        ({"hidden_act": ["silu"]}, "hidden_act is a list, not a string"),
        ({"rope_scaling": "linear"}, "rope_scaling is a str, not an object"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is a str, not a finite number"),
    ],
)
def test_settings_that_cannot_be_used(folder, base, config, text):
    change(folder, **config)
    assert text in refusal(folder, base)
    with pytest.raises(UserError, match=str(folder)):
        draft_loading.check_draft(folder)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_whole_language_model_is_called_that(layers, base, tmp_path):
    config = build("llama").config
    config.num_hidden_layers = layers
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    text = refusal(tmp_path, base)
    assert f"a whole language model of {layers} layer" in text
    with pytest.raises(UserError, match="a whole language model"):
        draft_loading.check_draft(tmp_path, None)


def test_loading_makes_no_weight_that_is_not_kept(folder, base, monkeypatch):
    """A draft of 8B shapes took half a minute for random numbers that nobody saw."""
    for name in ("uniform_", "normal_"):
        own = getattr(torch.Tensor, name)

        def drawn(tensor, *args, _own=own, **kwargs):
            assert tensor.is_meta, "random weights are made"  # without memory it costs nothing
            return _own(tensor, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, drawn)
    state = torch.random.get_rng_state()
    draft = load_draft(folder, base)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.device.type == "cpu" for parameter in draft.parameters())
    assert draft.rotary_frequencies()[0].device.type == "cpu"
    with pytest.raises(AssertionError, match="random weights"):
        DraftModel.from_base(base)
