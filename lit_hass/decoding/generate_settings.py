"""What ``transformers.generate`` would do to a model's logits by itself, and a run does not."""

from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from lit_hass.decoding.sampling import SamplingConfig

#: Fields of a generation config that change greedy answers, and the value that changes nothing (None never does).
_PROCESSORS = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "sequence_bias": None,
    "min_length": 0,
    "min_new_tokens": 0,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": 1.0,
    "num_beams": 1,
    "penalty_alpha": None,
}


def processors_of_generate(model: PreTrainedModel, sampling: SamplingConfig) -> dict[str, Any]:
    """Return the settings by which even greedy answers of ``generate`` would be others than a run's.

    Args:
        model: With the generation config of its folder.
        sampling: Of the run; what it sets alike is no difference.

    Returns:
        By name, the generation config's value.
    """
    config: GenerationConfig | None = model.generation_config
    found: dict[str, Any] = {}
    for name, neutral in _PROCESSORS.items():
        value = getattr(config, name, None)
        if value is not None and value != getattr(sampling, name, neutral):
            found[name] = value
    return found
