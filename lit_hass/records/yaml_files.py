"""Reading a YAML file, and saying in one line what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.json_lines import read_bytes


def read_yaml(path: str | os.PathLike[str], what: str = "configuration") -> dict[str, Any]:
    """Read a YAML file of settings; an empty one has none.

    Args:
        path: the file.
        what: what it should be, for the messages.

    Raises:
        UserError: it cannot be read, is no YAML, or holds something else than keys and values; names file, line and
            cause.
    """
    path = Path(path)
    content = read_bytes(path, what)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 (byte 0x{content[error.start]:02x})") from error
    try:
        found = parse_yaml(text, what)
    except YamlError as error:
        where = "" if error.line is None else f":{error.line}"
        raise UserError(f"{path}{where}: {error}") from error.__cause__
    return found


class YamlError(ValueError):
    """Text that is no YAML of settings; the message is the cause in one line, ``line`` the line where one is known."""

    def __init__(self, cause: str, line: int | None = None) -> None:
        """See the class."""
        super().__init__(cause)
        self.line = line


def parse_yaml(text: str, what: str = "configuration") -> dict[str, Any]:
    """Parse settings in YAML; an empty text has none.

    Args:
        text: the text.
        what: what it should be, for the messages.

    Raises:
        YamlError: it is no YAML, or holds something else than keys and values.
    """
    # Only here: the door's light verbs read none.
    import yaml

    try:
        # Not the C loader, which ends the process where brackets are nested some 10,000 deep.
        found = yaml.load(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise YamlError(f"not valid YAML: {error.problem or error.context}", line) from error
    except RecursionError as error:
        raise YamlError("not usable YAML: nested too deeply") from error
    # Control characters, a date of month 13, an integer of 5,000 digits, a list as a key.
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        cause = " ".join(str(error).partition(' in "<unicode string>"')[0].split())
        raise YamlError(f"not usable YAML: {cause}") from error
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise YamlError(f"a {what} has keys and values (key: value), found something else")
    return found
