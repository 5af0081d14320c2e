"""The files of a draft: ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``), read and written."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lit_hass.errors import UserError
from lit_hass.models.torch_files import read_torch_file
from lit_hass.records.json_lines import parse_json, read_bytes
from lit_hass.records.shapes import AMOUNT, TEXT, misfit

if TYPE_CHECKING:
    from lit_hass.models.draft import DraftModel

#: In this order; the first one that is there is read, and a damaged one is an error rather than a reason to go on.
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


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
    """Read ``config.json``.

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
    if fault := misfit(content, _CONFIG):
        raise UserError(f"{path}: {fault}")
    return content


def read_draft_tensors(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the weights, under the names that the file has, on the CPU; no code in the file is run.

    Raises:
        UserError: There are none, they are damaged, or they are something else than tensors of floating point numbers.
    """
    path = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: no weights; looked for {', '.join(WEIGHT_FILES)}")
    try:
        if path.suffix == ".safetensors":
            tensors: Any = load_file(path)
        else:
            tensors = read_torch_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged, cut short, or more than tensors: {_line(error)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path}: not a state dict (names and tensors)")
    whole = sorted(name for name, value in tensors.items() if not value.is_floating_point())
    if whole and not {"d2t", "t2d"} & set(whole):  # EAGLE-3's tables are refused by their own name
        raise UserError(f"{path}: {whole[0]} is {tensors[whole[0]].dtype}; quantised drafts are not supported")
    return path, tensors


def save_draft(draft: DraftModel, folder: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write a draft as ``config.json`` and ``model.safetensors``, with EAGLE's names.

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
    weights, config = folder / f".{WEIGHT_FILES[0]}.{os.getpid()}", folder / f".config.json.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the draft cannot be written: {_line(error)}") from error
    try:
        save_file(tensors, weights, metadata={"format": "pt"})
        config.write_text(text, encoding="utf-8")
        shutil.copymode(config, weights)  # safetensors lets nobody but the owner read its files
        os.replace(weights, folder / WEIGHT_FILES[0])
        os.replace(config, folder / "config.json")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: the draft cannot be written: {_line(error)}") from error
    finally:
        for path in (weights, config):
            path.unlink(missing_ok=True)


def _line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
