"""The settings under which nothing may be lost, and ``transformers``' own processors for them."""

from transformers import (
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_hass.decoding import SamplingConfig

_PROCESSING: dict[str, dict[str, float]] = {
    "plain": {},
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 12},
    "penalties": {"repetition_penalty": 1.2, "no_repeat_ngram_size": 3},
    "all": {"top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1, "no_repeat_ngram_size": 3},
}
#: Every temperature with every kind of processing.
GRID = {
    f"T{temperature}-{name}": SamplingConfig(temperature=temperature, **settings)  # type: ignore[arg-type]
    for temperature in (0.0, 0.3, 0.7, 1.0, 1.5)
    for name, settings in _PROCESSING.items()
}
#: Each temperature once and each kind of processing once.
DIAGONAL = ("T0.0-plain", "T0.0-penalties", "T0.3-top_p", "T0.7-all", "T1.0-plain", "T1.5-top_k")


def processors(sampling: SamplingConfig) -> LogitsProcessorList:
    """The processors and warpers that ``generate`` would make, in its order."""
    chosen = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram_size:
        chosen.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram_size))
    if sampling.greedy:
        return chosen
    chosen.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        chosen.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chosen.append(TopPLogitsWarper(sampling.top_p))
    return chosen
