"""English text that every Python has: the docstrings of its standard library, to train on and to hold out.

    python benchmarks/wordpiece_text.py logs/wordpiece

writes train.txt (about 1.4 MB) and test.txt (about 0.3 MB: every fifth module) into a folder.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

#: Folders that are no part of the library itself.
LEFT_OUT = {"test", "tests", "idle_test", "idlelib", "lib2to3", "site-packages", "dist-packages"}


def standard_library_text() -> tuple[list[str], list[str]]:
    """Return the docstrings' lines to train on, and those held out; no module has lines in both."""
    root = Path(ast.__file__).parent
    train: list[str] = []
    held_out: list[str] = []
    modules = [path for path in sorted(root.rglob("*.py")) if LEFT_OUT.isdisjoint(path.relative_to(root).parts)]
    for i, path in enumerate(modules):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
        lines = [line for doc in docs for line in doc.splitlines() if line.strip()]
        (held_out if i % 5 == 4 else train).extend(lines)
    return train, held_out


def main(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in zip(("train.txt", "test.txt"), standard_library_text(), strict=True):
        path = folder / name
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {len(lines)} lines, {path.stat().st_size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/wordpiece_text.py FOLDER")
    main(Path(sys.argv[1]))
