"""Features of a frozen base on disk, so that an epoch over the same sequences need not compute them again."""

from __future__ import annotations

import hashlib
import logging
import math
import os
import re
import socket
import time
import uuid
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from lit_hass.errors import UserError
from lit_hass.models import model_digest
from lit_hass.records.atomic import TEMPORARY_SUFFIX, ensure_writable, sync_folder, write_error

log = logging.getLogger(__name__)

_SHARD_BYTES = 64 * 1024**2
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
#: Key of a shard's metadata under which the base stands.
_BASE = "lit_hass.base"
#: More than a file, and one sequence of it, take beside the numbers (sizes are known before a file is written).
_FILE_BYTES, _ENTRY_BYTES = 1024, 192
#: Seconds after which a temporary file is nobody's, even if its process cannot be asked.
_STALE = 3600.0
#: Entries of each weight that tell one base from another.
_SAMPLES = 256


@dataclass(frozen=True)
class FeatureCacheConfig:
    """Where the base's features are kept.

    Args:
        folder: made if need be; for one base, by any number of runs and ranks.
        max_gib: of all its files; once it is reached, nothing more is added.
    """

    folder: str
    max_gib: float = 20.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            UserError: No folder, or no room.
        """
        if not self.folder or not 0 < self.max_gib < math.inf:
            raise UserError(
                f"model.feature_cache: needs a folder and max_gib above 0, found {self.folder!r} and {self.max_gib}"
            )


class FeatureCache:
    """Features ``[L, H]`` of whole sequences, by their ids, in a folder of safetensors shards.

    A shard is written under a temporary name, moved into place and never changed; which sequences there are is read
    from the shards at start, so a killed process loses what it had not yet written (less than a shard) and nothing
    else. Reads are memory-mapped. Several processes may share a folder: each writes files of its own name, and reads
    those that were there when it started, plus its own. In memory are the index (about 200 bytes a sequence) and the
    sequences of the shard that is being filled.

    What is read is what was added, rounded to ``dtype``.

    Args:
        folder: Made if need be.
        base_digest: Tells this base from any other, see `base_digest`.
        max_bytes: Of all files in the folder. A shard that would exceed it, by what others wrote meanwhile, is dropped.
        shard_bytes: A shard is written when it has so many.
        dtype: float16, bfloat16, float32 or float64; what is exact is the base's own.
        rank: Of this process, for the names of its files.

    Raises:
        UserError: The folder cannot be written to, or has a damaged shard or one of another base.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        base_digest: str,
        max_bytes: int,
        shard_bytes: int = _SHARD_BYTES,
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
    ) -> None:
        """Read the index."""
        if dtype not in _DTYPES or max_bytes < 1 or shard_bytes < 1:
            raise UserError(f"no feature cache of {dtype} with {max_bytes} bytes in shards of {shard_bytes}")
        self.folder = ensure_writable(folder)
        self.base_digest, self.max_bytes, self.shard_bytes, self.dtype = base_digest, max_bytes, shard_bytes, dtype
        # Not the process id alone: that of another host or container may be the same.
        self._name, self._written = f"features-rank{rank}-{uuid.uuid4().hex[:12]}", 0
        self._index: dict[str, Any] = {}  # key -> the open shard
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = _FILE_BYTES
        self._hits = self._misses = 0
        self._full = False
        self._remove_leftovers()
        for path in sorted(self.folder.glob("*.safetensors")):
            self._add_shard(path)
        self._room = max_bytes - self._used()
        log.info(
            "feature cache %s: %d sequences, %.2f of %.2f GiB",
            self.folder, len(self._index), (max_bytes - self._room) / 1024**3, max_bytes / 1024**3,
        )  # fmt: skip

    def __len__(self) -> int:
        """The number of sequences it has."""
        return len(self._index) + len(self._pending)

    def get(self, ids: Tensor) -> Tensor | None:
        """The features ``[L, H]`` of a sequence ``[L]``, on the CPU and not to be changed; None if it is not there."""
        key = self._key(ids)
        found = self._pending.get(key)
        if found is None and key in self._index:
            found = self._index[key].get_tensor(key)
        self._hits, self._misses = self._hits + (found is not None), self._misses + (found is None)
        return found

    def add(self, ids: Tensor, features: Tensor) -> None:
        """Keep the features ``[L, H]`` of a sequence ``[L]`` without pads, unless it is there or there is no room.

        Raises:
            UserError: The folder can no longer be written to.
            RunError: The disk is full or failed.
        """
        if ids.ndim != 1 or features.ndim != 2 or len(ids) != len(features):
            raise ValueError(f"features {tuple(features.shape)} do not belong to ids {tuple(ids.shape)}")
        key = self._key(ids)
        if self._full or key in self._pending or key in self._index:
            return
        # A copy: a view would keep its whole batch.
        row = features.detach().to("cpu", self.dtype, copy=True).contiguous()
        size = row.nbytes + _ENTRY_BYTES
        if self._pending and self._pending_bytes + size > self._room:
            self.flush()
        if _FILE_BYTES + size > self._room:
            self._stop()
        if self._full:
            return
        self._pending[key] = row
        self._pending_bytes += size
        if self._pending_bytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what has been added since the last shard.

        Raises:
            UserError: The folder can no longer be written to.
            RunError: The disk is full or failed.
        """
        if not self._pending:
            return
        path = self.folder / f"{self._name}-{self._written:05d}.safetensors"
        data = save(self._pending, {_BASE: self.base_digest, "dtype": str(self.dtype).removeprefix("torch.")})
        temporary = self.folder / f".{path.name}.{os.getpid()}@{socket.gethostname()}{TEMPORARY_SUFFIX}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            # Looked at with the whole file in the folder: of two processes that finish now, one at least sees both.
            fits = self._used() <= self.max_bytes
            if fits:
                os.replace(temporary, path)
                sync_folder(self.folder)
        except OSError as error:
            raise write_error(path, error) from error
        finally:
            temporary.unlink(missing_ok=True)
        if fits:
            self._add_shard(path)
            self._written += 1
        else:
            self._stop()
        self._pending, self._pending_bytes = {}, _FILE_BYTES
        self._room = self.max_bytes - self._used()

    def close(self) -> None:
        """Write what is left, and log what it was good for; it may be used again."""
        self.flush()
        log.info("feature cache %s: %d sequences read, %d not there", self.folder, self._hits, self._misses)

    def _key(self, ids: Tensor) -> str:
        numbers = ids.detach().to("cpu", torch.int64).contiguous().numpy()
        return hashlib.sha256(f"{self.base_digest}\0{self.dtype}\0".encode() + numbers.tobytes()).hexdigest()

    def _stop(self) -> None:
        self._full = True
        log.warning(
            "feature cache %s: its %.2f GiB are used up; %d sequences stay in use, nothing more is added",
            self.folder, self.max_bytes / 1024**3, len(self._index),
        )  # fmt: skip

    def _used(self) -> int:
        """Bytes of all shards, and of those being written."""
        total = 0
        for pattern in ("*.safetensors", f".features-*{TEMPORARY_SUFFIX}"):
            for path in self.folder.glob(pattern):
                total += _size(path)
        return total

    def _add_shard(self, path: Path) -> None:
        try:
            shard = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: this shard of the feature cache is damaged ({error}); delete it") from error
        found = (shard.metadata() or {}).get(_BASE)
        if found is None:
            raise UserError(f"{path}: not a shard of a feature cache; give it a folder of its own")
        if found != self.base_digest:
            raise UserError(
                f"{path}: holds features of another base ({found}) than this run's ({self.base_digest}); give another "
                "model.feature_cache.folder"
            )
        self._index.update(dict.fromkeys(shard.keys(), shard))

    def _remove_leftovers(self) -> None:
        """Remove what killed processes were writing, and nothing that a live one is."""
        for path in self.folder.glob(f".features-*{TEMPORARY_SUFFIX}"):
            owner = re.search(r"\.(\d+)@(.*)$", path.name.removesuffix(TEMPORARY_SUFFIX))
            dead = owner is not None and owner[2] == socket.gethostname() and not _alive(int(owner[1]))
            if dead or _age(path) > _STALE:
                path.unlink(missing_ok=True)
                log.info("removed %s, which a killed run left", path)


def base_digest(name: str, model: PreTrainedModel) -> str:
    """Tell a base from any other whose features differ: by its files, its weights as loaded, and their dtype.

    The files' fingerprint looks at both ends of large ones and at a hub's model by its id only, where a merged adapter
    or a new revision might hide; a sample of every weight shows both.

    Args:
        name: Folder, hub id or shipped name.
        model: Loaded from there.
    """
    sample = hashlib.sha256()
    with torch.no_grad():
        for key, tensor in chain(model.named_parameters(), model.named_buffers()):
            # A multiplier that is coprime to usual sizes, so that the places do not lie in one column.
            at = torch.arange(_SAMPLES if tensor.numel() else 0) * 2_654_435_761 % max(1, tensor.numel())
            values = tensor.flatten()[at.to(tensor.device)].to("cpu", torch.float64)
            sample.update(f"{key}\0{tuple(tensor.shape)}\0".encode() + values.numpy().tobytes())
    dtype = str(model.dtype).removeprefix("torch.")
    return f"{model_digest(name)}, weights {sample.hexdigest()[:16]} in {dtype}"


def open_cache(config: FeatureCacheConfig | None, name: str, model: PreTrainedModel, rank: int) -> FeatureCache | None:
    """The cache of a base, in the base's own dtype; None without a config. See `base_digest` for the arguments."""
    if config is None:
        return None
    digest = base_digest(name, model)
    return FeatureCache(config.folder, digest, int(config.max_gib * 1024**3), dtype=model.dtype, rank=rank)


def _alive(process: int) -> bool:
    if os.name == "nt":  # Windows ends a process that is asked with signal 0.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # moved into place or removed just now
        return 0


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
