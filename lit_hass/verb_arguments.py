"""The arguments of the verbs that read configurations, before anything heavy is imported."""

from __future__ import annotations

import os
from itertools import pairwise

from lit_hass.errors import UserError

_CONFIG = ("-c", "--config")


def configurations_first(args: list[str]) -> list[str]:
    """The same arguments with every ``-c FILE`` before the other options, which then change what the files say.

    The parser takes one after the other: an option before the file that names its class would not be known, and one
    that the file sets too would be lost.
    """
    configurations, options = [], []
    rest = iter(args)
    for arg in rest:
        if arg in _CONFIG:
            configurations += [arg, *([following] if (following := next(rest, None)) is not None else [])]
        elif arg.startswith(tuple(f"{name}=" for name in _CONFIG)):
            configurations.append(arg)
        else:
            options.append(arg)
    return [*configurations, *options]


def configuration_files(args: list[str]) -> list[str]:
    """The files that ``-c`` and ``--config`` name, in order (the parser also takes the YAML itself, which is none)."""
    found = []
    for arg, following in pairwise([*args, ""]):
        name, equals, value = arg.partition("=")
        if name in _CONFIG:
            found.append(value if equals else following)
    return [value for value in found if "\n" not in value and (value.endswith((".yaml", ".yml")) or _is_there(value))]


def check_configurations(args: list[str]) -> None:
    """Refuse a configuration that is not there or is no YAML.

    Raises:
        UserError: names file and cause.
    """
    for path in configuration_files(args):
        if not _is_there(path):
            raise UserError(
                f"{path}: no such configuration here, in {os.getcwd()} (configs/ is in the project's folder)"
            )
        from lit_hass.records.yaml_files import read_yaml

        read_yaml(path)


def _is_there(path: str) -> bool:
    try:
        return os.path.exists(path)
    except ValueError:  # a null character
        return False
