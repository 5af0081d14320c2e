"""What belongs to a shipped pair of base and draft: the draft to its base, and the tree to both."""

import json
from pathlib import Path
from typing import Any

from lit_hass.errors import UserError
from lit_hass.models.folders import PRETRAINED


def own_draft(base: str | Path) -> str | None:
    """The name of the draft that is shipped with a base, which is named or given by its path; None without one."""
    names = (path.parent.parent.name for path in sorted(PRETRAINED.glob("*/draft/config.json")))
    return next((name for name in names if _is(base, name, "base")), None)


def tree_of(base: str | Path, draft: str | Path) -> dict[str, Any] | None:
    """Sizes of the tree that was chosen by measurement for a shipped pair, as arguments of `TreeConfig`.

    A tree that is best for one pair says nothing of another: how deep to draft depends on how sure this draft is of
    this base, and on what a forward of it costs.

    Returns:
        None for any other pair.
    """
    name = own_draft(base)
    file = PRETRAINED / (name or "") / "tree.json"
    if name is None or not _is(draft, name, "draft") or not file.is_file():
        return None
    return json.loads(file.read_text(encoding="utf-8"))


def check_shipped_draft(base: str | Path, draft: str | Path) -> None:
    """Refuse a shipped draft, by its name, for a base that is not its own.

    Raises:
        UserError: says how to name a draft of that base, and how to have this one all the same.
    """
    name = str(draft)
    folder = PRETRAINED / name / "draft"
    if (folder / "config.json").is_file() and not _is(base, name, "base"):
        raise UserError(
            f"model.draft {name} is the draft of the shipped base {name}, not of {base}: give --model.draft one of "
            f"that base (or the folder {folder}, if it shall be this one all the same)"
        )


def _is(path_or_name: str | Path, name: str, part: str) -> bool:
    folder = PRETRAINED / name / part
    return str(path_or_name) == name or Path(path_or_name).expanduser().resolve() == folder
