"""The models and questions that come with the package, addressed by name.

A benchmark ``NAME`` is the folder ``NAME/`` here, with ``base/`` (a `transformers` folder) and ``questions.jsonl``.
Standard library only.
"""

from __future__ import annotations

import re
from pathlib import Path

from lit_hass.errors import UserError

_HERE = Path(__file__).resolve().parent


def names() -> tuple[str, ...]:
    """The benchmarks that come with the package."""
    return tuple(sorted(folder.name for folder in _HERE.iterdir() if (folder / "questions.jsonl").is_file()))


def questions_file(path_or_name: str) -> Path:
    """A question file by its path, or by the name of a shipped benchmark.

    A shipped name wins over a file of the same name (write ``./name`` for the file), as with models.

    Raises:
        UserError: it is neither.
    """
    if path_or_name in names():
        return _HERE / path_or_name / "questions.jsonl"
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    raise UserError(
        f"{path_or_name}: no such question file; shipped benchmarks: {', '.join(names()) or 'none'}; of a set of the "
        "hub, give one of its files"
    )


def text_file(name: str) -> Path | None:
    """The text that comes with the package under this name; None where there is none of it."""
    path = _HERE / name / "text.txt"
    return path if re.fullmatch(r"\w+", name) and path.is_file() else None
