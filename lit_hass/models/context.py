"""How many tokens a model can take."""

from transformers import PreTrainedConfig


def context_length(config: PreTrainedConfig) -> int | None:
    """Return the largest number of tokens of one sequence, or None where the configuration names none.

    This is ``max_position_embeddings`` under whatever name the family gives it (``n_positions``, ...).
    """
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(value) if isinstance(value, int) and value > 0 else None
