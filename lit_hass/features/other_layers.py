"""Features of another layer than the last: by one more forward over each answered sequence, and without a classifier.

Decoders give the last hidden states behind the final norm, which the output layer reads. Those of an earlier layer are
computed anew over prompt and answer as they are, all positions at once, by the `transformers` model of the run.
"""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from typing import Any

import torch

from lit_hass.errors import RunError, UserError
from lit_hass.features.config import CollapseConfig
from lit_hass.features.extraction import extract_features
from lit_hass.features.kept_measures import agreement_values
from lit_hass.memory_errors import is_out_of_memory
from lit_hass.metrics.classifier_rows import Classifier
from lit_hass.metrics.collapse_family import Findings, add_duality
from lit_hass.metrics.exact_states import ordinary_tensors
from lit_hass.metrics.functional.classifier_agreement import NC4_COLUMNS
from lit_hass.models import load_config

log = logging.getLogger(__name__)


def check_run_layer(module: Any, layer: int) -> None:
    """Refuse a layer that a run cannot give, before its model is loaded.

    Args:
        module: of the run.
        layer: as `CollapseConfig.layer`.

    Raises:
        UserError: the base has no such layer, or the module decodes no sequences (windows of a text).
    """
    if layer == -1:
        return
    if not hasattr(module, "decoder"):
        raise UserError(
            f"collapse.layer is {layer}: {type(module).__name__} gives features of the last layer (-1) only; for "
            "others use lit_hass.features.extract_features(model, input_ids, attention_mask, layer)"
        )
    _check_layer(load_config(module.base), layer)


def _check_layer(config: Any, layer: int) -> None:
    blocks = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(blocks, int):
        return  # the first forward will tell
    count = blocks + 1
    if not -count <= layer < count:
        raise UserError(
            f"collapse.layer is {layer}: the base has {count} hidden states, 0 (the embeddings) to {count - 1}, or -1 "
            f"to {-count} from the end"
        )
    if layer == count - 1:
        raise UserError(f"collapse.layer is {layer}: that is the last of the base's {count} hidden states; write -1")


def read_layer(model: Any, layer: int) -> tuple[int, int, Classifier | None]:
    """Return a layer's width, the number of token classes, and the output layer's weight if it reads that layer.

    Args:
        model: of `transformers`.
        layer: as `CollapseConfig.layer`.

    Raises:
        UserError: the model has no output layer, or no such layer.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise UserError(f"{type(model).__name__} has no output layer")
    classes, width = head.weight.shape
    if layer == -1:
        return width, classes, lambda: model.get_output_embeddings().weight
    _check_layer(model.config, layer)
    # Families that project before the output layer have other widths inside.
    two_tokens = torch.zeros(1, 2, dtype=torch.int64)
    return extract_features(model, two_tokens, layer=layer)[0].shape[1], classes, None


def tell_layer(layer: int, drafts: bool) -> None:
    """Log what another layer than the last costs and leaves out; nothing for the last."""
    if layer != -1:
        left_out = "; rejected draft tokens and the draft's predictions, known of the last layer only, are left out"
        log.info("features of layer %d: one more forward over each answer%s", layer, left_out if drafts else "")


def features_of_layer(found: Any, model: Any, layer: int) -> Any:
    """Replace a sequence's features by those of another layer.

    Args:
        found: `lit_hass.decoding.TokenFeatures` of prompt and answer.
        model: the base that answered, of `transformers`.
        layer: as `CollapseConfig.layer`; -1 returns ``found`` itself.

    Returns:
        The like with the layer's hidden states ``[n, d]`` in the model's dtype, row by row of the same positions, token
        ids and states; without rejected rows and without a draft's predictions.

    Raises:
        RunError: memory was short.
    """
    if layer == -1:
        return found
    ids = torch.cat((found.token_ids.new_tensor([found.first_token]), found.token_ids))[None]
    try:
        features, token_ids = extract_features(model, ids, layer=layer)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            f"out of memory in the forward for layer {layer} over a sequence of {ids.shape[1]} tokens; collect the "
            "last layer (collapse.layer -1), or ask for shorter answers"
        ) from error
    with ordinary_tensors():
        features, token_ids = features.clone(), token_ids.clone()
        none = features[:0]
        return replace(
            found,
            features=features,
            token_ids=token_ids,
            states=found.states.to(features.device),
            rejected=none,
            draft_features=none,
            draft_rows=token_ids[:0],
        )


def unread_values(config: CollapseConfig, num_features: int) -> tuple[dict[str, float], dict[str, str]]:
    """Return the values for which an output layer is needed, all NaN, and the reason of each; nothing for the last."""
    if config.layer == -1:
        return {}, {}
    found, nothing = Findings(), torch.zeros(0, num_features, dtype=torch.float64)
    add_duality(found, nothing, nothing)
    counts = torch.zeros(0, len(NC4_COLUMNS), dtype=torch.int64)
    names = [*found.values, *agreement_values(counts, counts[:, 0], True, config.nc4_classes == "vocab")]
    needing = [name for name in names if name != "nc4/nearest_accuracy"]
    return dict.fromkeys(needing, math.nan), dict.fromkeys(needing, f"no output layer reads layer {config.layer}")
