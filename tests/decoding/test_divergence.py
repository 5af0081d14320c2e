import pytest
import torch

from lit_hass.decoding import AutoregressiveDecoder, SamplingConfig, gumbel_noise
from lit_hass.decoding.divergence import first_divergence, top_two_gap

from .tiny_models import build, prompt


def test_the_first_difference_is_found():
    one = torch.tensor([1, 2, 3])
    assert first_divergence(one, one.clone()) is None
    assert first_divergence(one, torch.tensor([1, 5, 3])) == 1
    assert first_divergence(one, one[:2]) == first_divergence(one[:2], one) == 2


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_the_gap_is_that_of_the_scores_that_choose(temperature):
    model, ids = build("llama"), prompt(9)
    with torch.no_grad():
        scores = model(ids[None]).logits[0, -1].double()
    if temperature:
        scores = scores / temperature + gumbel_noise(3, len(ids), len(scores))
    best, second = scores.sort(descending=True).values[:2].tolist()
    decoder, sampling = AutoregressiveDecoder(model), SamplingConfig(temperature=temperature)
    assert top_two_gap(decoder.forward, ids, sampling, 3) == pytest.approx(best - second, abs=1e-4)
    (answer,) = decoder.generate([ids], 1, sampling, seeds=[3])
    assert int(answer.output_ids[0]) == int(scores.argmax())
