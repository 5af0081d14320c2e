"""What a JSON document must look like to be used, and saying where one does not."""

from __future__ import annotations

from typing import Any

#: Leaves: a finite number, one that is not negative, a whole one that is not negative, one from 0 to 1, ...
NUMBER, AMOUNT, COUNT, SHARE, TEXT, ANY = (
    "a finite number",
    "a finite number that is not negative",
    "a whole number that is not negative",
    "a number from 0 to 1",
    "a string",
    "anything",
)
#: A key of a shape that stands for all keys that it does not name.
ALL = "*"

# Far beyond anything measured; sums of such numbers are still finite.
_LARGEST = 1e300


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """Where and why a value does not have a shape.

    Args:
        value: plain JSON types.
        shape: a leaf; an object of shapes by key (a key that it does not name fits, unless `ALL` says what it must
            be); a list with the shape of each element. null fits everywhere: what is unknown or was not measured.
        where: what stands before the names in the message.

    Returns:
        such as ``"speed.ratio is a str, not a finite number"``; None where all of it fits.
    """
    if value is None:
        return None
    wanted = "an object" if isinstance(shape, dict) else "a list" if isinstance(shape, list) else str(shape)
    if not _fits(value, wanted):
        # The number where a number is wrong, else what kind of thing there is.
        number = wanted in (NUMBER, AMOUNT, COUNT, SHARE) and isinstance(value, int | float)
        found = f"{value!r:.40}" if number else f"a {type(value).__name__}"
        return f"{where or 'the document'} is {found}, not {wanted}"
    if isinstance(shape, dict):
        inner = {key: shape.get(key, shape.get(ALL, ANY)) for key in value}
        parts = [(found, inner[key], f"{where}.{key}".lstrip(".")) for key, found in value.items()]
    elif isinstance(shape, list):
        parts = [(found, shape[0], f"{where}[{i}]") for i, found in enumerate(value)]
    else:
        return None
    return next((fault for part in parts if (fault := misfit(*part)) is not None), None)


def _fits(value: Any, wanted: str) -> bool:
    if wanted in (ANY, TEXT, "an object", "a list"):
        return isinstance(value, {ANY: object, TEXT: str, "an object": dict, "a list": list}[wanted])
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
        return False
    if wanted == COUNT:
        return isinstance(value, int) and 0 <= value < 2**63
    return wanted == NUMBER or 0 <= value <= (1 if wanted == SHARE else _LARGEST)
