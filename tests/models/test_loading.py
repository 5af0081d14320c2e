import io
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    BertConfig,
    BertForMaskedLM,
    Gemma2Config,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
)

from lit_hass.errors import UserError
from lit_hass.models import (
    check_base,
    context_length,
    folders,
    load_base,
    load_tokenizer,
    loading,
    model_digest,
    resolve_base,
    shipped_names,
    stop_ids,
)

CONFIG = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny model with a tokenizer, saved in bfloat16."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    LlamaForCausalLM(LlamaConfig(**CONFIG)).to(torch.bfloat16).save_pretrained(folder)
    words = ["<unk>", "<s>", "</s>", "<|eot_id|>", "one", "two"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy to break."""
    return shutil.copytree(saved, tmp_path / "base")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def refused(match, path, load=True):
    """The cheap check refuses with one line, and so does loading."""
    for call in (check_base, load_base) if load else (check_base,):
        with pytest.raises(UserError, match=match) as caught:
            call(path)
        assert "\n" not in str(caught.value)


def test_a_good_folder(saved):
    assert check_base(saved) == str(saved) == resolve_base(saved)
    model = load_base(saved)
    assert model.dtype == torch.float32 and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert model.config._attn_implementation == "sdpa"
    assert load_base(saved, dtype="bf16").dtype == load_base(saved, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert context_length(model.config) == 64
    assert load_tokenizer(saved)("one two")["input_ids"] == [4, 5]


def test_stop_ids(saved, folder):
    tokenizer = load_tokenizer(saved)
    assert stop_ids(load_base(saved), tokenizer) == stop_ids(saved, tokenizer) == (2, 3)
    assert stop_ids(saved) == (2,)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 7]}))
    assert stop_ids(folder) == stop_ids(load_base(folder)) == (7, 9)
    assert stop_ids(folder, tokenizer) == (2, 3, 7, 9)
    (folder / "generation_config.json").unlink()
    assert stop_ids(folder) == (2,)


def test_missing_files(folder):
    (folder / "tokenizer.json").unlink()
    refused("no tokenizer; looked for tokenizer.json", folder, load=False)
    assert check_base(folder, needs_tokenizer=False) == str(folder)
    with pytest.raises(UserError, match="no tokenizer"):
        load_tokenizer(folder)
    (folder / "model.safetensors").unlink()
    refused("no weights; looked for model.safetensors.*pytorch_model.bin.index.json", folder)
    (folder / "config.json").unlink()
    refused("no config.json", folder)


def test_damaged_files(folder):
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    refused("model.safetensors: damaged or cut short", folder)
    weights.write_bytes(b"not weights at all")
    refused("damaged", folder)
    weights.write_bytes(whole)
    (folder / "config.json").write_text("{")
    refused("config.json: not readable as JSON", folder)
    (folder / "config.json").write_text('{"model_type": "nonsense"}')
    refused("config.json: transformers .* cannot use it", folder)


def test_damaged_bin(folder):
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"garbage")
    with pytest.raises(UserError, match="weights cannot be read"):
        load_base(folder)


def test_missing_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused("names model-00001-of-00002.safetensors, which is not there", folder)


def test_missing_and_misshapen_weights(folder):
    weights = load_file(folder / "model.safetensors")
    down = weights.pop("model.layers.1.mlp.down_proj.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="lacks model.layers.1.mlp.down_proj.weight"):
        load_base(folder)
    weights["model.layers.1.mlp.down_proj.weight"] = down[:, :-1].contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="disagree"):
        load_base(folder)


def test_a_tied_output_layer_is_not_missing(tmp_path):
    model = LlamaForCausalLM(LlamaConfig(**CONFIG, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    assert load_base(tmp_path).lm_head.weight.shape == (20, 16)


def test_other_kinds_of_models(tmp_path):
    bert = BertForMaskedLM(
        BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    )
    bert.save_pretrained(tmp_path / "bert")
    refused(r"an encoder \(bert\)", tmp_path / "bert")
    T5Config().save_pretrained(tmp_path / "t5")
    refused(r"encoder-decoder model \(t5\)", tmp_path / "t5")


def test_names(tmp_path, monkeypatch, saved):
    monkeypatch.setattr(folders, "PRETRAINED", tmp_path)
    assert shipped_names() == ()
    shutil.copytree(saved, tmp_path / "html_to_tsv" / "base")
    assert shipped_names() == ("html_to_tsv",)
    assert resolve_base("html_to_tsv") == str(tmp_path / "html_to_tsv" / "base")
    assert check_base("html_to_tsv") == resolve_base("html_to_tsv")
    refused("neither a shipped model nor a local folder.*html_to_tsv.*HF_HUB_OFFLINE", "html_to_tvs")
    refused("neither.*HF_HUB_OFFLINE", "nobody/nothing-of-that-name")
    refused("no such folder.*shipped name", "./nowhere")
    refused("is a file", saved / "config.json")


def test_settings(saved, monkeypatch):
    with pytest.raises(UserError, match="unknown dtype 'float33'; known are auto, float32"):
        load_base(saved, dtype="float33")
    with pytest.raises(UserError, match="not a floating point"):
        load_base(saved, dtype=torch.int8)
    with pytest.raises(UserError, match="unknown device"):
        load_base(saved, device="toaster")
    with pytest.raises(UserError, match="not both"):
        load_base(saved, device="cpu", device_map="auto")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices"):
            load_base(saved, device="cuda:0")
    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="accelerate"):
        load_base(saved, device_map="auto")


def test_device_map(saved):
    pytest.importorskip("accelerate", reason="device_map needs accelerate")
    assert load_base(saved, device_map={"": "cpu"}).dtype in (torch.float32, torch.bfloat16)


def _rank(rank, folder, saved):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        load_base(saved, device_map="auto")
    except UserError as error:
        (folder / f"{rank}.txt").write_text(str(error))
    assert load_base(saved, device_map={"": "cpu"}) is not None  # who names a device for each process means it
    dist.destroy_process_group()


def test_processes_do_not_share_all_devices(saved, tmp_path):
    """Each of them would take every GPU of the machine."""
    torch.multiprocessing.start_processes(_rank, (tmp_path, saved), nprocs=2, start_method="fork")
    texts = {(tmp_path / f"{rank}.txt").read_text() for rank in range(2)}
    assert len(texts) == 1 and "each of the 2 processes would take them all" in texts.pop()


#: Writes a proof when it is imported.
OWN_CODE = """
from pathlib import Path
Path({proof!r}).write_text("this ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
class OwnTokenizer(PreTrainedTokenizerFast):
    pass
"""


@pytest.mark.parametrize("stdin", ["y", "closed"])
@pytest.mark.parametrize("kind", ["own", "llama"])
def test_a_folders_own_code_never_runs(folder, kind, stdin, monkeypatch, tmp_path):
    """Not when somebody says yes at the prompt of transformers either; and nobody is asked."""
    proof = tmp_path / "proof"
    (folder / "own.py").write_text(OWN_CODE.format(proof=str(proof)))
    parts = {
        "AutoConfig": "own.OwnConfig",
        "AutoModelForCausalLM": "own.OwnModel",
        "AutoTokenizer": [None, "own.OwnTokenizer"],
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": kind, "auto_map": parts}))
    names = json.loads((folder / "tokenizer_config.json").read_text())
    names |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": parts["AutoTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    answers = io.StringIO("y\n" * 20)
    if stdin == "closed":
        answers.close()
    monkeypatch.setattr("sys.stdin", answers)
    if kind == "own":
        refused("needs code of its own.*never run here", folder)
    else:  # a kind that transformers knows is loaded with the code of transformers
        assert type(load_base(folder)) is LlamaForCausalLM
        assert context_length(load_base(folder).config) == 64
    with pytest.raises(UserError, match="needs code of its own"):
        load_tokenizer(folder)
    assert stop_ids(load_base(folder)) == (2,) if kind == "llama" else True
    assert not proof.exists()
    assert stdin == "closed" or answers.tell() == 0


def test_capped_attention_is_eager():
    """SDPA leaves the cap out without a word."""
    assert loading.attention_kind(Gemma2Config()) == "eager"
    assert loading.attention_kind(LlamaConfig()) == "sdpa"


def test_digest(saved, folder, tmp_path):
    before = model_digest(folder)
    assert before == model_digest(saved) and len(before) == 16
    (folder / "README.md").write_text("hello")
    assert model_digest(folder) == before
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert model_digest(folder) != before


def test_weights_that_change_between_the_ends_of_a_large_file_are_another_model(tmp_path):
    """Pruning leaves embeddings and norms, with which a file begins and ends, as they are."""
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    size = 300 * 2**20
    with weights.open("wb") as file:
        file.truncate(size)  # takes no room on the disk
    before = model_digest(tmp_path)
    with weights.open("r+b") as file:
        file.seek(size // 3)
        file.write(b"\1" * 2**20)  # a matrix of 512 x 512 in float32
    assert model_digest(tmp_path) != before


def test_templates_and_vocabularies_in_other_files_decide_too(folder):
    found = {model_digest(folder)}
    for name in ("additional_chat_templates/tool_use.jinja", "qwen.tiktoken"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("a")
        found.add(model_digest(folder))
        (folder / name).write_text("b")
        found.add(model_digest(folder))
    assert len(found) == 5


def test_a_model_of_the_hub_goes_by_its_commit(folder, tmp_path):
    snapshots = tmp_path / "hub" / "models--some--model"
    (snapshots / "refs").mkdir(parents=True)
    found = []
    for commit in ("1" * 40, "2" * 40):
        shutil.copytree(folder, snapshots / "snapshots" / commit)
        (snapshots / "refs" / "main").write_text(commit)
        code = "from lit_hass.models import model_digest; print(model_digest('some/model'))"
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
        found.append(run.stdout.strip())
    assert found == ["some/model@" + "1" * 40, "some/model@" + "2" * 40]


def test_bpe_dropout_is_switched_off_and_said(tiny_base, tmp_path, caplog):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    tokenizer["model"]["dropout"] = 0.5
    (base / "tokenizer.json").write_text(json.dumps(tokenizer))
    text = "<table><tr><td>green tea and representations</td></tr></table>"
    chance = PreTrainedTokenizerFast.from_pretrained(base)
    assert len({tuple(chance(text)["input_ids"]) for _ in range(8)}) > 1
    expected = load_tokenizer(tiny_base)(text)["input_ids"]
    assert caplog.text == ""
    loaded = load_tokenizer(base)
    assert all(loaded(text)["input_ids"] == expected for _ in range(8))
    assert "dropout of 0.5 is switched off" in caplog.text


def test_a_tokenizer_that_cannot_be_made_to_repeat_itself_is_refused(tiny_base, monkeypatch):
    class Chancy(PreTrainedTokenizerFast):
        calls = 0

        def __call__(self, *args, **kwargs):
            type(self).calls += 1
            return {"input_ids": [self.calls]}

    monkeypatch.setattr(loading.AutoTokenizer, "from_pretrained", Chancy.from_pretrained)
    with pytest.raises(UserError, match="other tokens for the same text each time"):
        load_tokenizer(tiny_base)
