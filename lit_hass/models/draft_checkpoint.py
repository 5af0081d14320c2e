"""The files of a draft: ``config.json`` and ``model.safetensors`` (or ``.bin``, or shards), read and written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.models.draft_vocabulary import VOCABULARY_FILE
from lit_hass.models.folders import WEIGHT_FILES, find_weights
from lit_hass.models.torch_files import read_torch_file
from lit_hass.records.json_lines import parse_json, read_bytes
from lit_hass.records.shapes import AMOUNT, TEXT, misfit

if TYPE_CHECKING:
    from lit_hass.models.draft import DraftModel


# What other keys than the sizes must be, which `DraftConfig` judges by itself.
_CONFIG = {
    "architectures": [TEXT],
    "model_type": TEXT,
    "rms_norm_eps": AMOUNT,
    "hidden_act": TEXT,
    "rope_theta": AMOUNT,
    "rope_scaling": {"type": TEXT, "rope_type": TEXT},
    "rope_parameters": {"type": TEXT, "rope_type": TEXT},
}


def read_draft_config(folder: Path) -> dict[str, Any]:
    """Read ``config.json``, out of the envelope that converters for vLLM put around it.

    Raises:
        UserError: It is missing or no JSON object.
    """
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{folder}: no config.json, so this is not a draft")
    try:
        content = parse_json(read_bytes(path, "configuration"))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {_line(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object")
    inner = content.get("model")
    if isinstance(inner, dict):
        outer = {key: value for key, value in content.items() if key not in ("model", "model_type", "architectures")}
        fc_bias = outer.pop("eagle_fc_bias", None)
        content = {**outer, **inner, **({} if fc_bias is None else {"bias": fc_bias})}
    if fault := misfit(content, _CONFIG):
        raise UserError(f"{path}: {fault}")
    return content


def read_draft_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights, under the names that the files have, on the CPU; no code in them is run.

    Numbers are read from the disk when they are first looked at.

    Returns:
        The file that was found first (of `WEIGHT_FILES`; a damaged one is an error rather than a reason to go on), and
        its tensors.

    Raises:
        UserError: There are none, they are damaged, or they are something else than tensors of floating point numbers.
    """
    path, shards = find_weights(folder)
    tensors: dict[str, Tensor] = {}
    for shard in shards:
        try:
            found: Any = load_file(shard) if shard.suffix == ".safetensors" else read_torch_file(shard)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{shard}: damaged, cut short, or more than tensors: {_line(error)}") from error
        if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
            raise UserError(f"{shard}: not a state dict (names and tensors)")
        twice = sorted(found.keys() & tensors.keys())
        if twice:
            raise UserError(f"{shard}: {twice[0]} is in another shard, too")
        tensors.update(found)
    whole = sorted(name for name, value in tensors.items() if not value.is_floating_point())
    if whole and not {"d2t", "t2d"} & set(whole):  # EAGLE-3's tables are refused by their own name
        raise UserError(f"{path}: {whole[0]} is {tensors[whole[0]].dtype}; quantised drafts are not supported")
    return path, tensors


def read_draft_shapes(folder: Path) -> dict[str, list[int]]:
    """Shapes by name from the heads of safetensors files; empty where the weights are in others.

    Raises:
        UserError: There are no weights, or a head cannot be read.
    """
    shapes: dict[str, list[int]] = {}
    for shard in find_weights(folder)[1]:
        if shard.suffix != ".safetensors":
            return {}
        try:
            with safe_open(shard, framework="pt") as file:
                names = list(file.keys())  # it is no mapping
                shapes |= {name: file.get_slice(name).get_shape() for name in names}
        except SafetensorError as error:
            raise UserError(f"{shard.name} cannot be read: {error}") from error
    return shapes


def save_draft(draft: DraftModel, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a draft as ``config.json`` and ``model.safetensors``, with EAGLE's names, and its vocabulary if it has one.

    Both files are written under other names and moved into place, the weights first: a folder with a ``config.json``
    has its weights. ``bias`` in the configuration is what the weights have.

    Args:
        draft: To be written.
        folder: Made if it is not there.
        dtype: Of the weights in the file; None keeps the draft's.

    Raises:
        UserError: The folder cannot be written to.
    """
    folder = Path(folder)
    kind = dtype or draft.dtype
    tensors = {name: value.detach().to("cpu", kind).contiguous() for name, value in draft.state_dict().items()}
    text = json.dumps(draft.config.to_dict(kind), indent=2, allow_nan=False) + "\n"
    weights, config, vocabulary = (
        folder / f".{name}.{os.getpid()}" for name in (WEIGHT_FILES[0], "config.json", VOCABULARY_FILE)
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the draft cannot be written: {_line(error)}") from error
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
        config.write_text(text, encoding="utf-8")
        if draft.vocabulary is not None:
            vocabulary.write_text(draft.vocabulary.to_json(), encoding="utf-8")
        shutil.copymode(config, weights)  # safetensors lets nobody but the owner read its files
        if draft.vocabulary is not None:
            os.replace(vocabulary, folder / VOCABULARY_FILE)
        else:
            (folder / VOCABULARY_FILE).unlink(missing_ok=True)  # an older draft's
        os.replace(weights, folder / WEIGHT_FILES[0])
        os.replace(config, folder / "config.json")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: the draft cannot be written: {_line(error)}") from error
    finally:
        for path in (weights, config, vocabulary):
            path.unlink(missing_ok=True)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
