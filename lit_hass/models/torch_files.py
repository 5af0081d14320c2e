"""Files that ``torch.save`` wrote, read without running code in them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from lit_hass.errors import UserError


def read_torch_file(path: Path) -> Any:
    """Read a file of tensors and plain values onto the CPU; tensors are mapped, not copied, where the format allows.

    Raises:
        UserError: it is damaged, cut short, of another format, or holds more than tensors and plain values.
    """
    packed = _begins_as_zip(path)
    if packed and not zipfile.is_zipfile(path):
        raise UserError(f"{path}: cut short: the end of the archive is missing")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols, beside the error
            return torch.load(path, map_location="cpu", weights_only=True, mmap=packed)
    # What unpickling bytes that are no pickle raises has no common class but this: KeyError, struct.error, ...
    except Exception as error:
        what = (str(error).strip().splitlines() or [""])[0][:100]
        raise UserError(
            f"{path}: damaged, or more than tensors and plain values, or not what torch.save writes "
            f"({type(error).__name__}{f': {what}' if what else ''})"
        ) from error


def check_lightning_checkpoint(path: Path) -> None:
    """Refuse a file that is no checkpoint of a training.

    Raises:
        UserError: names the file and what it is instead.
    """
    found = read_torch_file(path)
    missing = {"state_dict", "pytorch-lightning_version"} - (found.keys() if isinstance(found, dict) else set())
    if missing:
        what = f"it has no {' and no '.join(sorted(missing))}" if isinstance(found, dict) else "it holds no dictionary"
        raise UserError(f"{path}: is no checkpoint that fit wrote: {what}")


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
