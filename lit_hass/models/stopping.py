"""Which tokens end an answer."""

from collections.abc import Iterable
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from lit_hass.models.folders import load_config, resolve_base

#: Ends of a turn in chat formats, used only where they are real tokens of the vocabulary.
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end_of_turn|>")


def stop_ids(
    model_or_config_dir: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[int, ...]:
    """Collect the one set of stop ids that every method of a comparison uses.

    The tokenizer's EOS, every ``eos_token_id`` of the generation config (or of the model's config where there is no
    generation config), and the ends of turns of chat formats that the vocabulary really contains.

    Args:
        model_or_config_dir: A loaded model, or a shipped name, folder or hub id.
        tokenizer: Its tokenizer, if it has one.

    Returns:
        The ids, sorted, each once.

    Raises:
        UserError: There is no such model.
    """
    ids = set(_eos_ids(model_or_config_dir))
    if tokenizer is not None:
        if tokenizer.eos_token_id is not None:
            ids.add(int(tokenizer.eos_token_id))
        vocabulary = tokenizer.get_vocab()  # asked by name: a foreign tokenizer would answer with its unknown token
        ids.update(vocabulary[name] for name in END_OF_TURN if name in vocabulary)
    return tuple(sorted(ids))


def _eos_ids(model_or_config_dir: PreTrainedModel | str | Path) -> Iterable[int]:
    if isinstance(model_or_config_dir, PreTrainedModel):
        configs = [model_or_config_dir.generation_config, model_or_config_dir.config]
    else:
        source = resolve_base(model_or_config_dir)
        configs = [load_config(source)]
        try:
            configs.insert(0, GenerationConfig.from_pretrained(source))
        except OSError:
            pass  # many folders have none; the model's own config then holds the ids
    for config in configs:
        eos = getattr(config, "eos_token_id", None)
        if eos is not None:
            return [int(eos)] if isinstance(eos, int) else [int(token) for token in eos]
    return []
