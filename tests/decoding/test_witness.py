"""Every kind of decoder is proved on its own base, and one that is broken in any part is not."""

import pytest
import torch
from transformers import BertConfig

from lit_hass.decoding import AutoregressiveDecoder, SpeculativeDecoder, TreeConfig
from lit_hass.decoding.whole_forward import WholeForward
from lit_hass.decoding.witness import prove
from lit_hass.errors import RunError, UserError

from . import test_fallbacks as others
from .drafts import random_draft
from .tiny_models import FAMILIES, build, prompt

NO_TREES = ("bloom",)


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_decoders_are_proved(family: str) -> None:
    base = build(family)
    assert prove(AutoregressiveDecoder(base), prompt(70))
    if family not in NO_TREES:
        assert prove(SpeculativeDecoder(base, random_draft(base), TreeConfig(12, 2, 3)), prompt(40))


@pytest.mark.parametrize("family", others.FAMILIES)
def test_decoders_whose_states_are_no_features_are_proved_too(family: str) -> None:
    base, ids = others.build(family), torch.arange(3, 23)
    decoder = AutoregressiveDecoder(base)
    collects = decoder.forward.collects
    assert prove(decoder, ids) and decoder.forward.collects == collects == (family not in others.TRANSFORMED)
    if family == "bert":
        assert prove(SpeculativeDecoder(base, random_draft(base), TreeConfig(12, 2, 3)), ids)
    decoder.forward.logits = lambda hidden, own=decoder.forward.logits: own(hidden * 1.5 + 1.0)
    with pytest.raises(RunError, match=f"{type(base).__name__} itself"):
        prove(decoder, ids)
    assert decoder.forward.collects == collects


def test_a_forward_over_whole_sequences_is_proved_too() -> None:
    torch.manual_seed(0)
    model = others.NoParts(BertConfig(**others.SIZES, is_decoder=True)).eval().requires_grad_(False)
    decoder = AutoregressiveDecoder(model)
    assert type(decoder.forward) is WholeForward and prove(decoder, torch.arange(3, 23))
    with pytest.raises(UserError, match="no features can be collected"):
        decoder.generate([torch.arange(3, 23)], 4, collect_features=True)
    decoder.forward._read = lambda row, own=decoder.forward._read: own(row) * 1.5
    with pytest.raises(RunError, match="NoParts itself"):
        prove(decoder, torch.arange(3, 23))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_proved_and_a_broken_one_is_not(dtype: torch.dtype) -> None:
    base = build("llama").to(dtype)
    decoder = AutoregressiveDecoder(base)
    assert prove(decoder, prompt(30))
    decoder.forward.weights.layers[1].down.mul_(-1.0)  # plain weights are the model's own: both turn
    assert prove(decoder, prompt(30))
    decoder.forward.weights.layers[1].o_bias = torch.full((32,), 0.5, dtype=dtype)
    with pytest.raises(RunError, match="AutoregressiveDecoder .LeanForward, .*differ by"):
        prove(decoder, prompt(30))


def test_a_forward_that_yields_nan_where_the_model_does_not_is_found() -> None:
    decoder = AutoregressiveDecoder(build("llama"))
    decoder.forward.weights.norm.fill_(float("nan"))
    with pytest.raises(RunError, match="no finite logit.*LlamaForCausalLM itself yields one"):
        prove(decoder, prompt(8))


def test_a_prompt_that_fills_the_context_proves_nothing() -> None:
    decoder = AutoregressiveDecoder(build("llama"))
    assert not prove(decoder, prompt(256)) and not prove(decoder, torch.tensor([500]))
