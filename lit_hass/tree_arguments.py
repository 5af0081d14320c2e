"""The three numbers of a draft tree, on a command line and in its files: all of them, or none. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from lit_hass.errors import UserError

_SIZES = ("total_tokens", "depth", "top_k")
_OPTION = re.compile(r"--model\.(?:init_args\.)?tree(?:\.(\w+))?(?:=(.*))?", re.DOTALL)


def check_tree_arguments(args: Sequence[str]) -> None:
    """Refuse a tree of which a part is given, because the others would be those of another pair or of another tree.

    Args:
        args: of a verb of the command line. Files that cannot be read are left to the parser, which says why.

    Raises:
        UserError: names what is given, where, and what to add.
    """
    given: dict[str, Any] = {}
    for place, option in enumerate(args):
        if found := _OPTION.fullmatch(option):
            name, value = found[1], found[2] if found[2] is not None else next(iter(args[place + 1 : place + 2]), "")
            given.update({name: value} if name else _load(value))
    _refuse_part("the command line", given)
    for file in _files(args):
        try:
            model = _load(Path(file).read_text(encoding="utf-8")).get("model")
        except (OSError, ValueError):
            continue
        while isinstance(model, dict) and "tree" not in model:
            model = model.get("init_args")
        _refuse_part(file, model["tree"] if isinstance(model, dict) else None)


def _files(args: Sequence[str]) -> Iterator[str]:
    for place, option in enumerate(args):
        if option in ("-c", "--config"):
            yield from args[place + 1 : place + 2]
        elif option.startswith(("-c=", "--config=")):
            yield option.partition("=")[2]


def _load(text: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_part(where: str, tree: object) -> None:
    if not isinstance(tree, dict) or not tree or all(name in tree for name in _SIZES):
        return
    given, lacking = (f"model.tree.{name}" for name in tree), (name for name in _SIZES if name not in tree)
    raise UserError(
        f"{where} gives {', '.join(given)} without {', '.join(lacking)}: a tree belongs "
        "to its pair of base and draft, so give all three or none, such as --model.tree.total_tokens 60 "
        "--model.tree.depth 5 --model.tree.top_k 10 (total_tokens -1 chooses by timing)"
    )
