"""The resume key: what decides a run's answers, so that no folder ever holds answers of two kinds."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.atomic import check_own_file, ensure_writable, to_jsonable, write_json
from lit_hass.records.json_lines import parse_json, read_bytes
from lit_hass.records.run_folder import RunFolder

log = logging.getLogger(__name__)

#: What may change an answer without changing a setting.
_PACKAGES = ("lit-hass", "torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class RunKey:
    """The settings that decide a run's answers, and their hash.

    Attributes:
        settings: Nested plain values. Order of keys does not count, nor does 1 against 1.0 or a tuple against a list.
    """

    settings: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """64 hexadecimal digits (SHA-256 of the canonical JSON)."""
        return hashlib.sha256(_canonical(to_jsonable(dict(self.settings))).encode("ascii")).hexdigest()

    def differences(self, other: "RunKey") -> list[str]:
        """Name what differs, nested settings by dotted names.

        Args:
            other: The newer settings.

        Returns:
            ``"name: was X, now Y"`` for each, sorted by name.
        """
        was, now = _flatten(to_jsonable(dict(self.settings))), _flatten(to_jsonable(dict(other.settings)))
        return [
            f"{name}: was {_show(was, name)}, now {_show(now, name)}"
            for name in sorted(was.keys() | now.keys())
            if name not in was or name not in now or _canonical(was[name]) != _canonical(now[name])
        ]


@dataclass(frozen=True)
class SavedKey(RunKey):
    """A key read back from a run folder.

    Attributes:
        versions: Package -> version that the run began with; empty in older keys. No part of the hash.
    """

    versions: Mapping[str, str | None] = field(default_factory=dict)

    def newer_versions(self) -> list[str]:
        """``"torch 2.8.0, now 2.9.1"`` for each package that is another one now."""
        now = library_versions()
        return [f"{name} {was}, now {now[name]}" for name, was in self.versions.items() if now.get(name, was) != was]


def library_versions() -> dict[str, str | None]:
    """Versions of the packages that compute a run's answers; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # used from a checkout that was not installed
            found[name] = None
    return found


def read_key(folder: str | os.PathLike[str]) -> SavedKey | None:
    """Read the key of a run folder.

    Returns:
        The key, or None where the folder has none.

    Raises:
        UserError: The file cannot be read, or is no key whose hash fits its settings.
    """
    path = RunFolder(folder).key
    if not path.exists():
        return None
    try:
        saved = parse_json(read_bytes(path, "run key"))
        settings, digest = saved["settings"], saved["sha256"]
        key = SavedKey(dict(settings), dict(saved.get("versions") or {}))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: is not a run key; the answers beside it cannot be resumed") from error
    if key.digest != digest:
        raise UserError(f"{path}: its hash does not fit its settings (edited or damaged), so it proves nothing")
    return key


def claim(folder: str | os.PathLike[str], settings: Mapping[str, Any], results: Iterable[Path] = ()) -> RunKey:
    """Start a run in a new folder, or resume in one that has the same settings; for rank 0, holding the lock.

    Args:
        folder: The run folder; made if need be.
        settings: What decides the answers: model, draft, tree, sampling, seed, limits, questions.
        results: What else in the folder only a run can have made, beside its answers and their shards.

    Returns:
        The key, which is in the folder now.

    Raises:
        UserError: The folder holds a run with other settings (they are named), answers without a key, or shards that
            are links to files elsewhere; or it cannot be written to.
    """
    run = RunFolder(folder)
    results = list(results)
    for path in (*run.shards(), *results):
        if ".rank" in path.name:  # is appended to; the others are replaced whole
            check_own_file(path)
    key = RunKey(to_jsonable(dict(settings)))
    saved = read_key(run.path)
    if saved is not None:
        if saved.digest != key.digest:
            raise UserError(
                f"{run.path}: was made with other settings ({'; '.join(saved.differences(key))}); "
                "resume with the same settings or choose another folder"
            )
        if newer := saved.newer_versions():
            log.warning("%s: was begun with %s; rounding may differ, and with it near-ties", run.path, "; ".join(newer))
        ensure_writable(run.path)
        return saved
    present = [path.name for path in (run.answers, run.statistics, *run.shards(), *results) if path.exists()]
    if present:
        raise UserError(
            f"{run.path}: holds answers ({', '.join(present)}) but no {run.key.name}, so nobody knows whether they "
            "belong to this run; choose another folder"
        )
    ensure_writable(run.path)
    write_json(run.key, {"settings": key.settings, "sha256": key.digest, "versions": library_versions()})
    return key


def _canonical(value: Any) -> str:
    return json.dumps(_whole_floats_as_integers(value), sort_keys=True, separators=(",", ":"))


def _whole_floats_as_integers(value: Any) -> Any:
    # A YAML file says 0 where the command line's type gives 0.0.
    if isinstance(value, dict):
        return {name: _whole_floats_as_integers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole_floats_as_integers(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, dict) and item:
            flat |= _flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = item
    return flat


def _show(settings: dict[str, Any], name: str) -> str:
    if name not in settings:
        return "not set"
    text = json.dumps(settings[name], ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:38]}...{text[-39:]}"
