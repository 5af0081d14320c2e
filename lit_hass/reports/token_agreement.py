"""Whether two runs gave the same tokens, and where they part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_hass.reports.comparison_join import JoinedQuestion, JoinedTurn


def token_agreement(questions: Sequence[JoinedQuestion]) -> dict[str, Any]:
    """Compare the answers of joined runs, token by token.

    Returns:
        * ``turns``: how many have the tokens of both; ``turns_without_tokens``: how many lack them (files of the
          original scripts hold texts only).
        * ``identical_turns``, ``identical_turn_share``: with the same tokens throughout.
        * ``identical_token_share``: same token at the same place, over the longer answer of each turn.
        * ``identical_texts``, ``identical_text_share``: turns with the same text, known for all files.
        * ``divergences``: of each turn whose tokens differ: question_id, choice, turn, ``index`` of the first token
          that differs, both tokens there (None behind an answer's end), both texts, ``gap`` (see ``ChoiceRecord``), and
          ``follows``: an earlier turn of the same conversation differed, so the prompts differ too.

        Shares of nothing are NaN.
    """
    pairs = [(question, turn) for question in questions for turn in question.turns]
    known = [(q, t) for q, t in pairs if t.baseline.output_ids is not None and t.hass.output_ids is not None]
    divergences: list[dict[str, Any]] = []
    parted: set[tuple[Any, int]] = set()
    same, longest = 0, 0
    for question, turn in known:
        one, other = turn.baseline.output_ids or (), turn.hass.output_ids or ()
        same += sum(a == b for a, b in zip(one, other, strict=False))
        longest += max(len(one), len(other))
        if list(one) != list(other):
            conversation = (question.question_id, turn.choice)
            divergences.append(_divergence(question, turn, one, other, conversation in parted))
            parted.add(conversation)
    identical = len(known) - len(divergences)
    texts = sum(t.baseline.text == t.hass.text for _, t in pairs)
    return {
        "turns": len(known),
        "turns_without_tokens": len(pairs) - len(known),
        "identical_turns": identical,
        "identical_turn_share": _share(identical, len(known)),
        "identical_token_share": _share(same, longest),
        "identical_texts": texts,
        "identical_text_share": _share(texts, len(pairs)),
        "divergences": divergences,
    }


def _divergence(
    question: JoinedQuestion, turn: JoinedTurn, one: Sequence[int], other: Sequence[int], follows: bool
) -> dict[str, Any]:
    shorter = min(len(one), len(other))
    index = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    gap = turn.hass.divergence_gap if turn.hass.divergence_gap is not None else turn.baseline.divergence_gap
    return {
        "question_id": question.question_id,
        "choice": turn.choice,
        "turn": turn.turn,
        "index": index,
        "baseline_token": one[index] if index < len(one) else None,
        "hass_token": other[index] if index < len(other) else None,
        "gap": gap,
        "baseline_text": turn.baseline.text,
        "hass_text": turn.hass.text,
        "follows": follows,
    }


def _share(count: int, of: int) -> float:
    return count / of if of else float("nan")
