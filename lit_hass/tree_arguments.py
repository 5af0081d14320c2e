"""The three numbers of a draft tree, on a command line and in its files: all of them, or none. No torch here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lit_hass.errors import UserError
from lit_hass.records.yaml_files import parse_yaml, read_yaml
from lit_hass.verb_arguments import configuration_files

_SIZES = ("total_tokens", "depth", "top_k")
_OPTION = re.compile(r"--model\.(?:init_args\.)?tree(?:\.(\w+))?(?:=(.*))?", re.DOTALL)


def check_tree_arguments(args: Sequence[str]) -> None:
    """Refuse a tree of which a part is given, because the others would be those of another pair or of another tree.

    Args:
        args: of a verb of the command line.

    Raises:
        UserError: a configuration cannot be read; or names what is given, where, and what to add.
    """
    given: dict[str, Any] = {}
    for place, option in enumerate(args):
        if found := _OPTION.fullmatch(option):
            name, value = found[1], found[2] if found[2] is not None else next(iter(args[place + 1 : place + 2]), "")
            given.update({name: value} if name else _load(value))
    _refuse_part("the command line", given)
    for file in configuration_files(list(args)):
        model = read_yaml(file).get("model")
        while isinstance(model, dict) and "tree" not in model:
            model = model.get("init_args")
        _refuse_part(file, model["tree"] if isinstance(model, dict) else None)


def _load(text: str) -> dict[str, Any]:
    """The tree that an option's value spells; empty where it spells none, which is left to the parser."""
    try:
        return parse_yaml(text)
    except ValueError:
        return {}


def _refuse_part(where: str, tree: object) -> None:
    if not isinstance(tree, dict) or not tree or all(name in tree for name in _SIZES):
        return
    given, lacking = (f"model.tree.{name}" for name in tree), (name for name in _SIZES if name not in tree)
    raise UserError(
        f"{where} gives {', '.join(given)} without {', '.join(lacking)}: a tree belongs "
        "to its pair of base and draft, so give all three or none, such as --model.tree.total_tokens 60 "
        "--model.tree.depth 5 --model.tree.top_k 10 (total_tokens -1 chooses by timing)"
    )
