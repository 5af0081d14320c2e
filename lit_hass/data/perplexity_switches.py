"""From one protocol to another by changing one setting at a time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from lit_hass.data.perplexity_protocols import Recipe, TextForm, Windows


@dataclass(frozen=True)
class Rung:
    """One step of a ladder.

    Attributes:
        switch: what was changed, in words.
        recipe: with this change and those before it.
    """

    switch: str
    recipe: Recipe


def ladder(one: Recipe, other: Recipe) -> list[Rung]:
    """Lead from one recipe to another, changing one setting at a time.

    The order is fixed: window length, tail, windows, prefix, text form (stream, file, pages, detokenised), truncation,
    special tokens, mean, unit. A ladder that leads to an earlier text form (or of one form, to simpler windows) is the
    opposite one, descended. Contributions depend on the order.

    Returns:
        The rungs; the first is ``one`` and the last ``other``.
    """
    if _place(one) > _place(other):
        climbed = ladder(other, one)
        # Downwards, the switch that led up to a rung is undone behind it.
        switches = [f"undone: {rung.switch}" for rung in climbed[1:]][::-1]
        recipes = [rung.recipe for rung in climbed][::-1]
        return [Rung("", one), *map(Rung, switches, recipes[1:])]
    rungs = [Rung("", one)]
    for switch, recipe in _changes(one, other):
        if recipe != rungs[-1].recipe:
            rungs.append(Rung(switch, recipe))
    return rungs


_TEXT_ORDER: tuple[TextForm, ...] = ("joined", "file", "pages", "detokenised")
_WINDOW_ORDER: tuple[Windows, ...] = ("disjoint", "strided", "second_half", "rolling")


def _place(recipe: Recipe) -> tuple[int, int]:
    return _TEXT_ORDER.index(recipe.text), _WINDOW_ORDER.index(recipe.windows)


_WINDOW_NAMES = {
    "disjoint": "disjoint windows, the first token of each not scored",
    "rolling": "rolling windows, the first token of each scored too",
    "strided": "overlapping windows",
    "second_half": "only the second half of each window scored",
}
_TEXT_NAMES = {
    "file": "file text instead of the joined rows",
    "pages": "one document per page",
    "detokenised": "detokeniser",
}
_SPECIAL_NAMES = {
    "template": "the tokenizer's own special tokens alone",
    "prefix": "a prefix token instead of the tokenizer's special tokens",
    "both": "the tokenizer's special tokens behind the prefix (BOS as first target)",
    "none": "no special tokens",
    "every_window": "BOS at the start of every window",
}


def _changes(one: Recipe, other: Recipe) -> list[tuple[str, Recipe]]:
    """Each setting moved to its target in turn; those that are there already change nothing."""
    now, found = one, []

    def move(switch: str, **changes: Any) -> None:
        nonlocal now
        now = replace(now, **changes)
        found.append((switch, now))

    move(f"window length {one.window} to {other.window}", window=other.window)
    move("score the tail" if other.tail == "score" else "drop the tail", tail=other.tail)
    move("all windows" if other.most_windows is None else f"the first {other.most_windows} windows",
         most_windows=other.most_windows)  # fmt: skip
    move(_WINDOW_NAMES[other.windows], windows=other.windows, stride=other.stride)
    if other.special in ("prefix", "both") and now.special not in ("prefix", "both"):
        move(_SPECIAL_NAMES["prefix"], special="prefix", prefix=other.prefix)
    for form in _TEXT_ORDER[1:]:
        if _TEXT_ORDER.index(now.text) < _TEXT_ORDER.index(form) <= _TEXT_ORDER.index(other.text):
            move(_TEXT_NAMES[form], text=form)
    move("texts cut after one window" if other.truncate else "texts not cut", truncate=other.truncate)
    move(_SPECIAL_NAMES[other.special], special=other.special, prefix=other.prefix)
    move("mean of the texts' perplexities" if other.mean == "texts" else "one mean over all tokens", mean=other.mean)
    move(f"unit: per {other.unit} instead of per {one.unit}", unit=other.unit)
    return found
