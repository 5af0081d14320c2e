"""A fingerprint of a model, so that a resumed run notices another one under the same name."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from lit_hass.models.folders import load_config, resolve_base

#: Whole files up to this size are hashed; of larger ones, pieces at both ends and in between.
_WHOLE = 64 * 1024**2
_PIECE, _PIECES, _STEP = 64 * 1024, 1024, 512 * 1024
_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".tiktoken")


def model_digest(path_or_name: str | Path) -> str:
    """Fingerprint the files that decide what a model answers: configuration, weights and tokenizer.

    Chat templates in a folder of their own are among them. Of a weight file beyond 64 MiB the size and up to 1,024
    pieces are hashed, from its beginning to its end: pruning, or merging an adapter, leaves embeddings and norms (and
    so a file's ends) as they were, and changes nearly all numbers of the matrices between. A model of many gigabytes
    takes a fraction of a second.

    Returns:
        16 hexadecimal digits for a local folder (wherever it lies), the id with its commit for a model of the hub.
    """
    source = resolve_base(path_or_name)
    folder = Path(source)
    if not folder.is_dir():
        load_config(source)  # which the cache has then, in a folder with the commit's name
        found = try_to_load_from_cache(source, "config.json")
        return f"{source}@{Path(found).parent.name}" if isinstance(found, str) else source
    digest = hashlib.sha256()
    for path in sorted((*folder.iterdir(), *folder.glob("*chat_templates/*.jinja"))):
        if path.is_file() and path.suffix in _SUFFIXES:
            status = path.stat()
            digest.update(f"{path.relative_to(folder).as_posix()}\0{status.st_size}\0".encode())
            digest.update(_file_digest(path, status.st_size, status.st_mtime_ns))
    return digest.hexdigest()[:16]


@lru_cache(maxsize=256)  # asked for several times in a run
def _file_digest(path: Path, size: int, changed: int) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if size <= _WHOLE:
            digest.update(file.read())
        else:
            step = max(_STEP, size // _PIECES)
            for start in (*range(0, size - _PIECE, step), size - _PIECE):
                file.seek(start)
                digest.update(file.read(_PIECE))
    return digest.digest()
