"""Features of any decoder-only model, paired with the token behind each, whatever the padding."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from lit_hass.errors import UserError
from lit_hass.features import extract_features, special_ids

VOCABULARY = 40


def build(kind):
    torch.manual_seed(0)
    small = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_attention_heads": 2}
    if kind == "gpt2":
        config = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, initializer_range=0.3)
        return GPT2LMHeadModel(config).eval()
    if kind == "opt":
        config = OPTConfig(**small, num_hidden_layers=2, ffn_dim=24, word_embed_proj_dim=16, init_std=0.3)
        return OPTForCausalLM(config).eval()
    if kind == "bloom":
        return BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2)).eval()
    config = LlamaConfig(**small, num_hidden_layers=2, intermediate_size=24, initializer_range=0.3)
    return LlamaForCausalLM(config).eval()


def one_by_one(model, sequences, layer=-1):
    """Plain forwards without padding."""
    rows, ids = [], []
    for sequence in sequences:
        with torch.no_grad():
            hidden = model(torch.tensor([sequence]), output_hidden_states=True).hidden_states[layer][0]
        rows.append(hidden[:-1])
        ids += sequence[1:]
    return torch.cat(rows), torch.tensor(ids)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom"])
def test_padding_changes_no_row(kind, side):
    model, sequences = build(kind), [[5, 6, 7, 8, 9], [3, 4], [11], [7, 7, 7]]
    longest = max(map(len, sequences))
    ids, mask = torch.zeros(4, longest, dtype=torch.int64), torch.zeros(4, longest, dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        place = slice(longest - len(sequence), None) if side == "left" else slice(len(sequence))
        ids[row, place], mask[row, place] = torch.tensor(sequence), 1
    features, targets = extract_features(model, ids, mask)
    expected, expected_ids = one_by_one(model, sequences)
    assert torch.equal(targets, expected_ids) and features.dtype == expected.dtype
    assert torch.allclose(features, expected, atol=1e-5) and not features.requires_grad
    # They are what the output layer reads.
    logits = model(torch.tensor([sequences[0]])).logits[0, :-1]
    assert torch.allclose(model.get_output_embeddings()(features[:4]), logits, atol=1e-5)


def test_other_layers_and_no_mask():
    model, ids = build("llama"), [[5, 6, 7, 8], [9, 10, 11, 12]]
    for layer in (0, 1, -2):
        features, _ = extract_features(model, torch.tensor(ids), layer=layer)
        assert torch.allclose(features, one_by_one(model, ids, layer)[0], atol=1e-6)
    with pytest.raises(UserError, match="no layer 4: the model has 3 hidden states"):
        extract_features(model, torch.tensor(ids), layer=4)


def test_a_wrapper_like_eagle_s_is_seen_through():
    class Wrapper(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base_model = base

    model, ids = build("llama"), torch.tensor([[5, 6, 7]])
    assert torch.equal(extract_features(Wrapper(model), ids)[0], extract_features(model, ids)[0])


def test_models_without_such_features_are_refused():
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(TypeError, match="encoder-decoder"):
        extract_features(T5ForConditionalGeneration(config), torch.tensor([[5, 6]]))
    with pytest.raises(TypeError, match="no output layer"):
        extract_features(GPT2Model(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)), torch.tensor([[5, 6]]))
    with pytest.raises(TypeError, match="no transformers model"):
        extract_features(nn.Linear(2, 2), torch.tensor([[5, 6]]))
    with pytest.raises(ValueError, match=r"must be \[B, L\]"):
        extract_features(build("llama"), torch.tensor([5, 6]))


@pytest.mark.parametrize("kind", ["bert", "roberta", "electra"])
def test_rows_that_the_output_layer_does_not_read_are_refused(kind):
    """Their widths fit; a transform stands between decoder and output layer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "intermediate_size": 24, "is_decoder": True, "pad_token_id": 0}  # fmt: skip
    more = {"embedding_size": 16} if kind == "electra" else {}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more)).eval()
    ids = torch.tensor([[5, 6, 7]])
    for _ in range(2):
        with pytest.raises(UserError, match="its output layer does not read its last hidden states; measure other la"):
            extract_features(model, ids)
    # Layers that nobody takes for what the output layer reads are there as ever.
    assert torch.equal(extract_features(model, ids, layer=1)[0], one_by_one(model, ids.tolist(), 1)[0])


@pytest.mark.parametrize("kind", ["cohere", "granite", "gemma2"])
def test_a_scale_or_a_cap_behind_the_output_layer_refuses_nothing(kind):
    torch.manual_seed(0)
    more = {"cohere": {"logit_scale": 0.25}, "granite": {"logits_scaling": 4.0}, "gemma2":
            {"final_logit_softcapping": 3.0, "head_dim": 8}}[kind]  # fmt: skip
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "intermediate_size": 24, "pad_token_id": 0}  # fmt: skip
    config = AutoConfig.for_model(kind, **sizes, **more)
    for dtype in (torch.float32, torch.bfloat16):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        features, _ = extract_features(model, torch.tensor([[5, 6, 7]]))
        assert torch.equal(features, one_by_one(model, [[5, 6, 7]])[0])


def test_dropout_is_named_where_it_is_what_differs():
    model = build("gpt2").train()
    with pytest.raises(UserError, match="training mode, so call eval"):
        extract_features(model, torch.tensor([[5, 6, 7]]))
    model.eval()
    assert extract_features(model, torch.tensor([[5, 6, 7]]))[0].shape == (2, 16)


def test_special_tokens_as_tokenizers_know_them(tsv_tokenizer):
    every = special_ids(tsv_tokenizer)
    marked = {i for i, token in tsv_tokenizer.added_tokens_decoder.items() if token.special}
    assert set(every) == {*tsv_tokenizer.all_special_ids, *marked} and list(every) == sorted(set(every))
    assert special_ids(tsv_tokenizer, [7, 3, 7]) == (3, 7)
    assert special_ids(SimpleNamespace(eos_token_id=2, pad_token_id=None), "eos_pad") == (2,)
