"""Loading a draft for a base: finding its files, checking them against the base, and naming what does not fit."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lit_hass.errors import UserError
from lit_hass.models.decoder import output_device
from lit_hass.models.draft import DraftModel
from lit_hass.models.draft_checkpoint import read_draft_config, read_draft_shapes, read_draft_tensors
from lit_hass.models.draft_config import DraftConfig, base_sizes
from lit_hass.models.draft_layouts import check_keys, has_qkv_bias, refuse_config, refuse_layout, strip_prefixes
from lit_hass.models.draft_vocabulary import VOCABULARY_FILE, DraftVocabulary
from lit_hass.models.folders import PRETRAINED, WEIGHT_FILES, find_weights, load_config

log = logging.getLogger(__name__)

_EMBEDDING = "embed_tokens.weight"
_HEAD = "lm_head.weight"
_QUERY = "layers.0.self_attn.q_proj.weight"
_PATTERNS = ["config.json", VOCABULARY_FILE, *WEIGHT_FILES, "model-*.safetensors", "pytorch_model-*.bin"]
#: Tables that are made from the configuration; older code kept them among the weights.
_DERIVED = re.compile(r"(^|\.)rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)$")
#: Rows of a large matrix that are compared at a time.
_ROWS = 4096


def resolve_draft(path_or_name: str | Path) -> Path:
    """Find a draft: one that comes with a shipped base, else a local folder, else a hub id (which is downloaded).

    A shipped name wins over a folder of the same name (write ``./name`` for the folder).

    Raises:
        UserError: It is none of the three.
    """
    name = str(path_or_name)
    shipped = sorted(path.parent.parent.name for path in PRETRAINED.glob("*/draft/config.json"))
    if name in shipped:
        return PRETRAINED / name / "draft"
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UserError(f"{name} is a file; a draft is a folder with config.json and weights")
    choices = f"Give the path of a local folder, a hub id, or a shipped name ({', '.join(shipped) or 'none'})."
    if name.startswith((".", "~", "/")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise UserError(f"{name}: no such draft. {choices}")
    try:
        return Path(snapshot_download(name, allow_patterns=_PATTERNS))
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{name}: no such folder, and the hub did not give it: {reason} {choices}") from error


def check_draft(path_or_name: str | Path, base: str | Path | None = None) -> None:
    """Find what can be known to be wrong with a draft without loading it or its base.

    Args:
        path_or_name: As for `load_draft`.
        base: The base that it shall serve, as for `load_base`; None leaves the sizes to `load_draft`.

    Raises:
        UserError: It is not there, lacks a file, its configuration is that of another kind of model, or its sizes are
            not the base's.
    """
    folder = resolve_draft(path_or_name)
    content = read_draft_config(folder)
    find_weights(folder)
    try:
        refuse_config(content)
        shapes = strip_prefixes(read_draft_shapes(folder))
        refuse_layout(shapes)
        config = DraftConfig.from_dict(content)
        if base is not None:
            sizes = load_config(base).get_text_config()
            if "fc.weight" in shapes:  # else it is another kind of draft, which loading will name
                _check_sizes(config, shapes, (sizes.hidden_size, sizes.vocab_size))
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error


def load_draft(path_or_name: str | Path, base: PreTrainedModel) -> DraftModel:
    """Load an EAGLE-1, EAGLE-2 or HASS draft, in eval mode, without gradients, in the base's dtype and place.

    Whether ``fc`` has a bias is decided by the file's keys, not by its configuration (the two disagree in published
    drafts). A missing embedding is the base's; ``module.``, ``model.`` and ``_orig_mod.`` in the names are removed,
    and so are tensors that say nothing which base and configuration do not: an output layer equal to the base's, rotary
    frequencies, biases of zeros. No weight is made to be thrown away.

    Args:
        path_or_name: A shipped name such as ``html_to_tsv``, a local folder, or a hub id. ``model.safetensors`` is
            read, else ``pytorch_model.bin`` (tensors only; no code in it is run), either of them also in shards with an
            index.
        base: The model that the draft shall serve.

    Raises:
        UserError: It is another kind of draft, one for another base, or damaged; one line says what is wrong.
    """
    folder = resolve_draft(path_or_name)
    content = read_draft_config(folder)
    try:
        refuse_config(content)
        path, raw = read_draft_tensors(folder)
        draft = _build(content, strip_prefixes(raw), base, str(path))
        if (folder / VOCABULARY_FILE).is_file():
            draft.vocabulary = DraftVocabulary.read(folder)
            draft.vocabulary.check(draft.config.vocab_size)
        return draft
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith(str(folder)) else f"{folder}: {text}") from error


def _build(content: dict[str, object], tensors: dict[str, Tensor], base: PreTrainedModel, where: str) -> DraftModel:
    refuse_layout(_shapes(tensors))
    config = _fit_config(DraftConfig.from_dict(content), tensors, where, "bias" in content)
    _check_sizes(config, _shapes(tensors), base_sizes(base))
    with torch.device("meta"):
        draft = DraftModel(config)
    expected = _shapes(draft.state_dict())
    tensors = {
        name: tensor for name, tensor in tensors.items() if name in expected or _says_more(name, tensor, base, config)
    }
    head: Any = base.get_output_embeddings()
    if _EMBEDDING in tensors:
        check_keys(_shapes(tensors), expected)
        _compare_embedding(tensors[_EMBEDDING], base, where)
    else:
        log.info("%s: no embedding, the base's is taken", where)
        own: Any = base.get_input_embeddings()
        tensors[_EMBEDDING] = own.weight.detach()[: config.vocab_size].clone()
        check_keys(_shapes(tensors), expected)
    draft.take({name: tensors[name].to(output_device(base), head.weight.dtype) for name in expected})
    return draft.requires_grad_(False).eval()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def _says_more(name: str, tensor: Tensor, base: PreTrainedModel, config: DraftConfig) -> bool:
    """Whether a tensor that a draft does not have says anything that its base and its configuration do not.

    Raises:
        UserError: It is an output layer other than the base's, which decides what is drafted.
    """
    if _DERIVED.search(name):
        expected = LlamaRotaryEmbedding(config.llama()).inv_freq
        if name.endswith(".inv_freq") and not _alike(tensor.reshape(-1, 1), expected.reshape(-1, 1)):
            log.warning("%s is not what config.json says (rope_theta, rope_scaling), which decides", name)
        return False
    head: Any = base.get_output_embeddings()
    if name == _HEAD and head is not None and tensor.shape == head.weight.shape:
        if _alike(tensor, head.weight):
            return False
        raise UserError(
            f"{_HEAD} is not the base's output layer, which drafts of EAGLE-1, EAGLE-2 and HASS use: a draft of "
            "another base, or of another kind"
        )
    return not (name.endswith(".bias") and not bool(tensor.any()))


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether two matrices are equal but for rounding to a half precision; a part at a time, as they may be large."""
    return _difference(ours, theirs) is None


def _difference(ours: Tensor, theirs: Tensor) -> float | None:
    """How far two matrices differ where it is more than a rounding, else None."""
    if ours.shape != theirs.shape:
        return float("inf")
    parts, largest = range(0, len(ours), _ROWS), 0.0
    for first in parts:
        one, other = ours[first : first + _ROWS], theirs[first : first + _ROWS].detach().to(ours.device)
        if one.dtype == other.dtype and torch.equal(one, other):
            continue  # as it is where a draft keeps a copy; a difference takes ten times as long
        part = float((one.float() - other.float()).abs().amax())
        largest = part if not part <= largest else largest  # not a number stays one
    if largest == 0.0:
        return None
    scale = max(float(theirs[first : first + _ROWS].detach().abs().amax()) for first in parts)
    return None if largest <= 0.01 * scale else largest


def _fit_config(config: DraftConfig, tensors: dict[str, Tensor], where: str, said: bool) -> DraftConfig:
    """The configuration as the weights show it, where files are known to say something else."""
    fc_bias = "fc.bias" in tensors
    if fc_bias != config.fc_bias:
        log.warning(
            "%s: fc.bias is %s, though config.json %s; the weights decide",
            where,
            "there" if fc_bias else "not there",
            f"says bias {str(config.fc_bias).lower()}" if said else "does not say bias false",
        )
    query, head_dim, heads = tensors.get(_QUERY), config.head_dim, config.num_attention_heads
    if query is not None and query.shape[0] == config.hidden_size and config.hidden_size % heads == 0:
        # The published class knows no head_dim, though a configuration copied from the base may name one.
        head_dim = config.hidden_size // heads
    return dataclasses.replace(config, fc_bias=fc_bias, qkv_bias=has_qkv_bias(tensors.keys()), head_dim=head_dim)


def _check_sizes(config: DraftConfig, shapes: Mapping[str, list[int]], base: tuple[int, int]) -> None:
    """Refuse a draft of another width or vocabulary than the base's."""
    width, vocab = base
    fc, embedding = shapes.get("fc.weight"), shapes.get(_EMBEDDING)
    found_width = config.hidden_size if fc is None else fc[0]
    if found_width != width:
        raise UserError(
            f"the draft's hidden size is {found_width} (fc.weight {fc or []}), "
            f"the base's is {width} (output layer {[vocab, width]})"
        )
    found_vocab = config.vocab_size if embedding is None else embedding[0]
    if found_vocab != vocab:
        shape = embedding or [found_vocab, width]
        raise UserError(
            f"the draft's vocabulary has {found_vocab} tokens (embed_tokens {shape}), the base's {vocab} "
            f"(output layer {[vocab, width]})"
        )


def _compare_embedding(weight: Tensor, base: PreTrainedModel, where: str) -> None:
    """Warn when the draft's copy of the embedding is not the base's (rounding to a half precision aside)."""
    embedding: Any = base.get_input_embeddings()
    difference = _difference(weight, embedding.weight[: weight.shape[0]])
    if difference is not None:
        log.warning(
            "%s: its embedding is not the base's (they differ by up to %.2g): a draft of another base, or of another "
            "vocabulary; answers stay right, few drafts will be accepted",
            where,
            difference,
        )
