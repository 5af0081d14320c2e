r"""Which choice a generated text names. Standard library only.

The strict reading decides: the last ``answer is ... (E)``, on one line, and of it the last label of the sentence: a
choice's own text may hold one, as in ``answer is vitamin (C) (D).``. The loose one, the original scripts', takes the
last lone letter A to E of the text, so that "an A" or a recap of the options counts too; it is logged beside the
strict one and decides nothing.
"""

from __future__ import annotations

import re

# From the words to the first label behind them, and on to the end of that sentence.
_STRICT = re.compile(r"answer is [^\n]*?\([A-E]\)(?:(?![.!?](?:\s|$))[^\n])*")
_LOOSE = re.compile(r"\b[A-E]\b")

_LABEL = re.compile(r"\(([A-E])\)")

#: Where the next question begins, if a model goes on after its answer.
NEXT_QUESTION = "\nQ:"


def strict_answer(text: str) -> str | None:
    """The last label of the sentence in the last ``answer is ... (E)`` of a text; None where there is none."""
    found = _STRICT.findall(text)
    return labels_in(found[-1])[-1] if found else None


def labels_in(text: str) -> list[str]:
    """All that looks like a label in a text."""
    return _LABEL.findall(text)


def loose_answer(text: str) -> str | None:
    """The last lone letter A to E of a text; None where there is none."""
    found = _LOOSE.findall(text)
    return found[-1] if found else None


def completion_of(text: str) -> tuple[str, bool]:
    r"""The part of a generated text that answers the question.

    Returns:
        what stands before the next ``\nQ:``, trailing white space removed, and whether there was one (it ends an answer
        as an end-of-sequence token does).
    """
    answer, found, _ = text.partition(NEXT_QUESTION)
    return answer.rstrip(), bool(found)
