"""The state of a measurement as one file, either the old one or the whole new one."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_hass.errors import RunError
from lit_hass.records.atomic import TEMPORARY_SUFFIX, sync_folder, write_error

_KEY = "lit_hass.features"


def write_snapshot(path: Path, tensors: dict[str, Tensor], plain: dict[str, Any]) -> int:
    """Write tensors and plain JSON values; returns the file's size.

    Raises:
        UserError: the folder cannot be written to.
        RunError: the disk is full or failed; the old file is still there.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY_SUFFIX}")
    # A tensor as the others: the format's own place for texts is its header, which nobody reads beyond 100 MB, and a
    # run of some 270,000 answers has more to say of them.
    about = torch.frombuffer(bytearray(json.dumps(plain).encode()), dtype=torch.uint8)
    content = {**_separate(tensors), _KEY: about}
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode
        save_file(content, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)  # it makes private files, and the others of a run are not
        size = temporary.stat().st_size
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise write_error(path, error) from error
    except SafetensorError as error:  # how it reports an error of the system
        raise RunError(f"cannot write {path.name} into folder {path.parent}: {error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return size


def read_snapshot(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read it back.

    Raises:
        RunError: it is gone, damaged, or no such file; names it.
    """
    if not path.exists():
        raise RunError(f"{path}: is gone; without it the features of answered questions are lost")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        plain = json.loads(tensors.pop(_KEY).numpy().tobytes())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise RunError(f"{path}: is damaged or cut off ({error}): features of answered questions are lost") from error
    return tensors, plain


def _separate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        if place in seen or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(place)
        result[name] = tensor
    return result
