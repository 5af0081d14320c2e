"""Strategies that damage a good file: what a fuzzer does, with inputs that shrink."""

import copy
import json
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

#: Inputs a format, the same on every run.
MANY = settings(max_examples=300, deadline=None, derandomize=True, database=None)

_NUMBERS = (0, -1, 1, 2, 7.5, -0.5, 700, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -1e308, float("nan"), float("inf"))
_TEXTS = (
    "", " ", "x", "1", "null", "\u001b[2J\u001b]0;title\u0007", "<script>alert(1)</script>", "a|b`c\nd", "warm", "{x",
    "[x](http://example.org)", "\u202eabc", "\ud800", "m" * 5000, "$\\frac{$", "%s%n",
)  # fmt: skip
_OTHERS = (None, True, False, [], {}, [[]], [1, "a", None], {"a": {"b": [0]}}, [-3], [10**30], ["warm"])
_NASTY = st.sampled_from([*_NUMBERS, *_TEXTS, *_OTHERS])
VALUES = st.one_of(_NASTY, st.integers(), st.floats(), st.text(max_size=12), st.lists(st.integers(-5, 5), max_size=3))
_BYTES = st.sampled_from(
    [b"\xff", b"\x00", b"\xef\xbb\xbf", b"\n", b"\r", b"{", b"]", b'"', b"\xed\xa0\x80", b"&", b"*", b": "]
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a document."""
    found = [path] if path else []
    if isinstance(value, dict):
        items: Any = value.items()
    else:
        items = enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += places(inner, (*path, key))
    return found


@st.composite
def damaged(draw: st.DrawFn, document: Any) -> Any:
    """The document with one to three of its values replaced, removed or moved."""
    found = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        if not (paths := places(found)):
            break
        *way, last = draw(st.sampled_from(paths))
        holder = found
        for key in way:
            holder = holder[key]
        match draw(st.sampled_from(["replace", "replace", "replace", "remove", "add"])):
            case "replace":
                holder[last] = draw(VALUES)
            case "remove":
                del holder[last]
            case "add" if isinstance(holder, dict):
                holder[draw(st.text(max_size=5))] = draw(VALUES)
            case _:
                holder.append(draw(VALUES))
    return found


@st.composite
def broken(draw: st.DrawFn, content: bytes) -> bytes:
    """Bytes with something cut out, put in or repeated."""
    begin, size = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
    match draw(st.sampled_from(["cut", "insert", "truncate", "repeat", "deep", "digits", "twice"])):
        case "cut":
            return content[:begin] + content[begin + size :]
        case "insert":
            return content[:begin] + draw(_BYTES) + content[begin:]
        case "truncate":
            return content[:begin]
        case "repeat":
            return content + content[begin:]
        case "deep":
            return content[:begin] + b"[" * 20_000 + content[begin:]
        case "digits":
            return content[:begin] + b"9" * 5000 + content[begin:]
    # every key again
    return content.replace(b"{", b'{"id": 1, "question_id": 1, "tokens": 1, ').replace(b"\n", b"\nhidden_size: 1\n")


def lines(objects: list[Any]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(each) + "\n" for each in objects).encode("utf-8")


def json_files(document: Any) -> st.SearchStrategy[bytes]:
    """Damaged documents, and broken files of a good one."""
    text = json.dumps(document).encode()
    return st.one_of(damaged(document).map(lambda found: json.dumps(found).encode()), broken(text))


def line_files(objects: list[Any]) -> st.SearchStrategy[bytes]:
    """The same of one object a line."""
    return st.one_of(damaged(objects).map(lambda found: lines(found)), broken(lines(objects)))
