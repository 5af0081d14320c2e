"""SmolLM2-135M-Instruct: its weights, its answers and its perplexity against the programs that they come from."""

import math

import numpy as np
import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, SpeculativeDecoder, TreeConfig
from lit_hass.models import DraftModel, resolve_base, stop_ids
from lit_hass.models.gguf import find_gguf
from lit_hass.pretrained import questions_file
from lit_hass.records import read_questions

HEADS = {"attn_q": 9, "attn_k": 3}
NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


@pytest.fixture(scope="module")
def prompts(tokenizer):
    turns = [question.turns[0] for question in read_questions(questions_file("smollm2"))[:8]]
    return [
        torch.tensor(
            tokenizer.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)["input_ids"]
        )
        for turn in turns
    ]


def test_every_weight_is_the_packages_own_to_the_bit(base):
    import gguf

    state = base.state_dict()
    reader = gguf.GGUFReader(str(find_gguf("smollm2")))
    seen = 0
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        name = tensor.name.removesuffix(".weight")
        if name.startswith("blk."):
            _, layer, kind = name.split(".")
            ours = f"model.layers.{layer}.{NAMES[kind]}.weight"
            if kind in HEADS:  # both halves of a head's pairs lie side by side in the file
                rows = np.arange(len(values)).reshape(HEADS[kind], -1)
                values = values[np.concatenate([np.concatenate((head[0::2], head[1::2])) for head in rows])]
        else:
            ours = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[name]
        assert np.array_equal(state[ours].numpy(), values), tensor.name
        seen += 1
    assert seen == 272


def test_greedy_answers_are_those_of_generate(base, tokenizer, prompts):
    ends = stop_ids(base, tokenizer)
    ours = AutoregressiveDecoder(base).generate(prompts, 32, stop_ids=ends)
    for prompt, answer in zip(prompts, ours, strict=True):
        expected = base.generate(
            prompt[None], attention_mask=torch.ones_like(prompt[None]), max_new_tokens=32, do_sample=False,
            eos_token_id=list(ends), pad_token_id=ends[0],
        )  # fmt: skip
        assert answer.output_ids.tolist() == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("sampling", [SamplingConfig(), SamplingConfig(temperature=0.8, top_p=0.95)])
def test_a_draft_changes_no_token(base, tokenizer, prompts, sampling):
    ends = stop_ids(base, tokenizer)
    torch.manual_seed(0)
    draft = DraftModel.from_base(base).eval().requires_grad_(False)
    seeds = list(range(4))
    plain = AutoregressiveDecoder(base).generate(prompts[:4], 24, sampling, ends, seeds)
    tree = SpeculativeDecoder(base, draft, TreeConfig(24, 3, 6)).generate(prompts[:4], 24, sampling, ends, seeds)
    assert [a.output_ids.tolist() for a in plain] == [a.output_ids.tolist() for a in tree]


def test_it_knows_the_capital_of_france(base, tokenizer):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}], add_generation_prompt=True
    )["input_ids"]
    [answer] = AutoregressiveDecoder(base).generate([torch.tensor(prompt)], 24, stop_ids=stop_ids(base, tokenizer))
    assert "Paris" in tokenizer.decode(answer.output_ids)


def test_the_converted_folder_is_a_plain_one(base):
    from safetensors import safe_open

    with safe_open(f"{resolve_base('smollm2')}/model.safetensors", framework="pt") as file:
        assert all(str(file.get_slice(name).get_dtype()) == "F32" for name in file.keys())  # noqa: SIM118
    assert math.isclose(sum(p.numel() for p in base.parameters()), 134_515_008)
