"""WikiText as text: rows, pages, the detokeniser, and what counts as a word. Plain functions, standard library only.

The rules are those of the original evaluators, with what is odd about them, because their numbers depend on it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPACE = re.compile(r"\s+")
_PUNCTUATION = (":", ";", ".", "!", "?", ",")
_BRACKETS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_ENCLOSED = tuple(
    (re.compile(rf"{re.escape(left)}\s*([^{re.escape(right)}]*?)\s*{re.escape(right)}"), rf"{left}\1{right}")
    for left, right in _BRACKETS
)


def split_rows(text: str) -> list[str]:
    r"""Cut a file into the rows of ``wikitext-2-raw-v1``.

    A row is a line with its ``"\n"``; a blank line is the row ``""``. The empty piece behind the last line end is none.
    """
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line + "\n" if line.strip() else "" for line in lines]


def join_rows(rows: Sequence[str]) -> str:
    r"""Put a file together from rows, as upstream files are: their blank lines are one space.

    Args:
        rows: as `split_rows` gives them, or all without their line ends (as some loaders do).
    """
    if any(row.endswith("\n") for row in rows):
        return "".join(row or " \n" for row in rows)
    return "".join((row if row.strip() else " ") + "\n" for row in rows)


def is_title(line: str) -> bool:
    """Whether a line begins a page: `` = Title = ``, and not a heading of a deeper level."""
    bare = line.replace("= = =", "===").replace("= =", "==").strip()
    return bare.startswith("= ") and bare.endswith(" =")


def split_pages(text: str) -> tuple[list[str], list[int]]:
    """Cut a file into pages, by the rule of ``EleutherAI/wikitext_document_level``.

    A page goes from a title to the next one; what is blank before the first title is dropped. Text without any title is
    one page. Formula lines that look like titles are titles (two in the WikiText-2 test split).

    Returns:
        The pages, lines joined by line ends, and for each line of the file the page it belongs to (lines that were
        dropped count as the first page's).
    """
    pages: list[str] = []
    page_of_line: list[int] = []
    current: list[str] = []

    def close() -> None:
        page = "\n".join(current)
        if page.strip():
            pages.append(page)
        current.clear()

    for line in text.split("\n"):
        if is_title(line):
            close()
        current.append(line)
        page_of_line.append(len(pages))
    close()
    last = max(len(pages) - 1, 0)
    return pages, [min(page, last) for page in page_of_line]


def detokenise(page: str) -> str:
    """Undo WikiText's tokenisation as lm-evaluation-harness does (its task ``wikitext``, version 2).

    The rules and their order are the harness's; the second one practically never matches, quotes pair up over the whole
    page, and the single-letter word ``N`` becomes ``1``.
    """
    text = page.replace("s '", "s'")
    text = re.sub("/' [0-9]/", "/'[0-9]/", text)
    for sign in "-,.":
        text = text.replace(f" @{sign}@ ", sign)
    for mark in _PUNCTUATION:
        text = text.replace(f" {mark} ", f"{mark} ")
    for pattern, replacement in _ENCLOSED:
        text = pattern.sub(replacement, text)
    for level in (4, 3, 2):
        text = text.replace(" ".join("=" * level), "=" * level)
    text = text.replace(" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}")
    text = text.replace(" \n", "\n").replace("\n ", "\n")
    return text.replace(" N ", " 1 ").replace(" 's", "'s")


def count_words(page: str) -> int:
    """Words as lm-evaluation-harness counts them: white space at either end of a page adds an empty one."""
    return len(_SPACE.split(page))


def count_real_words(page: str) -> int:
    """Words that have a letter or sign in them."""
    return len(page.split())


def count_bytes(page: str) -> int:
    """Bytes in UTF-8."""
    return len(page.encode("utf-8"))
