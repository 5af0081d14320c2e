"""What a base asks itself: the opening of the user's turn, and which continuations pass for a prompt.

Source of the idea: Magpie, arXiv 2406.08464.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_hass.data.prompting import Prompting
from lit_hass.errors import UserError

#: Stands for the user's words while the template's text around them is found.
_MARK = "\u2042MARK\u2042"
#: A prompt has at least so many words.
_FEWEST_WORDS = 3
#: At most this share of a prompt's three-word sequences may be repetitions.
_MOST_REPEATED = 0.3
#: At most this share of the characters may be other than letters, digits, blanks and usual punctuation.
_MOST_ODD = 0.2
_USUAL = frozenset(" \n\t.,;:!?'\"()-/%$+*=_#<>[]{}&@`|\\^~\u2019\u2018\u201c\u201d\u2013\u2014")


@dataclass(frozen=True)
class Opening:
    """The text of a template in front of a user's first words, as ids, and the ids that end the turn."""

    ids: tuple[int, ...]
    ends: tuple[int, ...]


def user_opening(tokenizer: Any, ends: Sequence[int], date: str | None = None) -> Opening:
    """Find what a chat template writes before the user's first message.

    Args:
        tokenizer: of the base, with a chat template.
        ends: the base's stop ids; the user's turn ends with one of them, too.
        date: as for `Prompting`.

    Raises:
        UserError: the tokenizer has no chat template, or one that changes the user's words.
    """
    text = Prompting(tokenizer, date=date).text([_MARK], [])
    before, mark, _ = text.partition(_MARK)
    if not mark or not before:
        raise UserError("the chat template writes nothing in front of the user's words, so it opens no user's turn")
    return Opening(tuple(tokenizer(before, add_special_tokens=False)["input_ids"]), tuple(ends))


def implausible(text: str) -> str | None:
    """Say why a sampled text is no prompt that a person would write, or None if it may be one.

    The rules are about form alone (length, repetition, characters); what a prompt asks for is not judged.
    """
    words = text.split()
    if len(words) < _FEWEST_WORDS:
        return "too short"
    if "\ufffd" in text:
        return "broken characters"
    if sum(not (c.isalnum() or c in _USUAL) for c in text) > _MOST_ODD * len(text):
        return "odd characters"
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    if sum(triples.values()) - len(triples) > _MOST_REPEATED * sum(triples.values()):
        return "repeats itself"
    return None


def same_prompt(text: str) -> str:
    """What two prompts have in common that differ in case and white space only."""
    return " ".join(text.casefold().split())
