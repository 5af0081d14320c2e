"""GGUF files as bases: the same numbers, converted once, and nothing half-written whatever happens."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_hass.decoding import AutoregressiveDecoder
from lit_hass.errors import RunError, UserError
from lit_hass.models import check_base, load_base, load_tokenizer, model_digest, resolve_base, stop_ids
from lit_hass.models import gguf as module
from tests.models.gguf_files import HEADS, KV_HEADS, LAYERS, TOKENS, rotary_order, write_gguf

NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_HASS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.gguf"
    write_gguf(path)
    return path


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_weights_are_the_packages_own_to_the_bit(tmp_path):
    expected = write_gguf(tmp_path / "tiny.gguf")
    state = load_base(tmp_path / "tiny.gguf").state_dict()
    seen = {"lm_head.weight", "model.embed_tokens.weight", "model.norm.weight"}
    np.testing.assert_array_equal(state["model.embed_tokens.weight"], expected["token_embd.weight"])
    np.testing.assert_array_equal(state["model.norm.weight"], expected["output_norm.weight"])
    for layer in range(LAYERS):
        for theirs, ours in NAMES.items():
            values = expected[f"blk.{layer}.{theirs}.weight"]
            if theirs in ("attn_q", "attn_k"):
                values = rotary_order(values, HEADS if theirs == "attn_q" else KV_HEADS)
            np.testing.assert_array_equal(state[f"model.layers.{layer}.{ours}.weight"], values, err_msg=theirs)
            seen.add(f"model.layers.{layer}.{ours}.weight")
    assert set(state) == seen


def test_logits_are_those_of_transformers_loading_the_file_itself(file):
    ids = torch.arange(20)[None] * 3 % len(TOKENS)
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(load_base(file)(ids).logits, theirs(ids).logits)


def test_it_is_a_base_like_any_other(file):
    tokenizer = load_tokenizer(file)
    assert tokenizer.decode(tokenizer("ab!")["input_ids"]) == "ab!"
    assert stop_ids(str(file), tokenizer) == (len(TOKENS) - 1,)
    assert check_base(file) == resolve_base(file)
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], add_generation_prompt=True)["input_ids"]
    base = load_base(file)
    [answer] = AutoregressiveDecoder(base).generate([torch.tensor(prompt)], 8)
    expected = base.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=-1)
    assert answer.output_ids.tolist() == expected[0, len(prompt) :].tolist()


def test_it_is_converted_once_and_found_by_content(file, tmp_path, cache, monkeypatch):
    first = resolve_base(file)
    monkeypatch.setattr(module, "_convert", lambda *args: pytest.fail("converted again"))
    other = tmp_path / "elsewhere" / "renamed.gguf"
    other.parent.mkdir()
    shutil.copy(file, other)
    assert resolve_base(file) == resolve_base(other) == resolve_base(other.parent) == first
    assert model_digest(file) == model_digest(first)
    assert len(folders(cache)) == 1


def test_another_content_is_another_base(file, tmp_path, cache):
    digest = model_digest(file)
    write_gguf(file, seed=1)
    assert model_digest(file) != digest and len(folders(cache)) == 2


def test_a_folder_of_another_version_of_transformers_is_not_used(file, cache, monkeypatch):
    first = resolve_base(file)
    monkeypatch.setattr(module.transformers, "__version__", "99.0")
    assert resolve_base(file) != first and len(folders(cache)) == 2


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_is_refused_by_name(file, cache, share):
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(UserError, match="tiny.gguf: (not a GGUF|damaged or cut short|cut short)") as error:
        load_base(file)
    assert "\n" not in str(error.value) and folders(cache) == []


def test_a_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGML" + bytes(1000))
    with pytest.raises(UserError, match="not a GGUF file"):
        load_base(path)


def test_an_architecture_that_transformers_cannot_read_is_named(tmp_path, cache):
    path = tmp_path / "x.gguf"
    write_gguf(path, architecture="unheard_of")
    with pytest.raises(UserError, match="x.gguf: transformers .* cannot read it: .*unheard") as error:
        load_base(path)
    assert "\n" not in str(error.value) and folders(cache) == []


def test_several_files_in_a_folder_must_be_told_apart(file):
    shutil.copy(file, file.with_name("two.gguf"))
    with pytest.raises(UserError, match="2 GGUF files .tiny.gguf, two.gguf.; name one"):
        load_base(file.parent)


def test_the_package_that_is_missing_is_named_with_its_command(file, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install gguf"):
        load_base(file)
    monkeypatch.setitem(module.PACKAGED, "nothing", module._Package("no-such-distribution", "pip install it"))
    with pytest.raises(UserError, match="nothing comes with a package that is not installed: pip install it"):
        load_base("nothing")


def test_what_a_killed_conversion_left_is_removed(file, cache):
    name = Path(resolve_base(file)).name
    os.rename(cache / name, cache / f".{name}.unfinished")
    (cache / f".{name}.unfinished" / "model.safetensors").write_bytes(b"half")
    load_base(file)
    assert folders(cache) == [name]


def test_a_full_disk_leaves_nothing_half_written(file, cache):
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); import signal; "
    limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limited += f"from lit_hass.models import load_base; load_base({str(file)!r})"
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True)
    assert RunError.__name__ in done.stderr.splitlines()[-1] and "cannot be written" in done.stderr
    assert folders(cache) == []
    load_base(file)


def test_two_processes_at_once_convert_once(file, cache):
    code = "import logging, sys; logging.basicConfig(level=20)\n"
    code += "from lit_hass.models import load_base; load_base(sys.argv[1])"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(file)], stderr=subprocess.PIPE, text=True, env=os.environ.copy()
        )
        for _ in range(2)
    ]
    logs = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], logs
    assert sum("converting into" in text for text in logs) == 1 and len(folders(cache)) == 1
