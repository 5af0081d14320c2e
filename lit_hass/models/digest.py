"""A fingerprint of a model, so that a resumed run notices another one under the same name."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lit_hass.models.folders import resolve_base

#: Whole files up to this size are hashed; of larger ones, this much at both ends.
_PIECE = 4 * 1024 * 1024
_SUFFIXES = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja")


def model_digest(path_or_name: str | Path) -> str:
    """Fingerprint the files that decide what a model answers: configuration, weights and tokenizer.

    Of a weight file beyond 8 MiB the size and both ends are hashed, so that a model of many gigabytes takes
    milliseconds; training changes all of a file's tensors, hence its ends too.

    Returns:
        16 hexadecimal digits for a local folder (wherever it lies), the id itself for a model of the hub.
    """
    source = resolve_base(path_or_name)
    folder = Path(source)
    if not folder.is_dir():
        return source
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if not path.is_file() or path.suffix not in _SUFFIXES:
            continue
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= 2 * _PIECE:
                digest.update(file.read())
            else:
                digest.update(file.read(_PIECE))
                file.seek(size - _PIECE)
                digest.update(file.read())
    return digest.hexdigest()[:16]
