"""Conversations in the formats that training data is published in, as questions with their answers.

* ShareGPT: ``{"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...]}``
* the hub's: ``{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}, ...]}``
* Alpaca: ``{"instruction": "...", "input": "...", "output": "..."}``
"""

from typing import Any

_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "model": "assistant"}
_ROLES |= {"chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "system": "system"}


class NotAConversation(Exception):
    """A row of such a format from which no question can be made: it is left out and counted."""


def as_question(row: dict[str, Any], number: int, answered: bool = False) -> dict[str, Any]:
    """Turn a row of another format into one of the question file's; other rows are given back as they are.

    What the assistant says becomes the reference of each turn. What it says before the first question is dropped, as
    EAGLE's own reader of ShareGPT does.

    Args:
        row: The row.
        number: Its number in the file, from 1: the question's id, because ids of these formats need not be unique.
        answered: Take only what has an answer: a last question without one is left out.

    Raises:
        NotAConversation: Nobody asks (or answers) anything, or user and assistant do not speak in turn.
        ValueError: The row has a message of another shape, or a system message.
    """
    if "turns" in row:
        return row
    if isinstance(row.get("instruction"), str):
        return _alpaca(row, number, answered)
    for name, role, content in (("conversations", "from", "value"), ("messages", "role", "content")):
        if isinstance(row.get(name), list):
            # The keys of one are found under the name of the other, too.
            return _talk([_message(name, m, role, content) for m in row[name]], number, answered)
    return row


def _alpaca(row: dict[str, Any], number: int, answered: bool) -> dict[str, Any]:
    asked, given, answer = row["instruction"], row.get("input"), row.get("output")
    if given is not None and not isinstance(given, str):
        raise ValueError("input must be a string")
    turn = f"{asked}\n\n{given}" if given and given.strip() else asked
    if not turn.strip():
        raise NotAConversation("the instruction is blank")
    if answered and not answer:
        raise NotAConversation("the output is empty")
    return {"question_id": number, "turns": [turn], "reference": [answer] if answer else None}


def _message(name: str, message: object, role: str, content: str) -> tuple[str, str]:
    if not isinstance(message, dict):
        raise ValueError(f"{name} must be a list of messages")
    speaker = message.get(role, message.get("role", message.get("from")))
    said = message.get(content, message.get("content", message.get("value")))
    if not isinstance(speaker, str) or not isinstance(said, str):
        raise ValueError(f"a message of {name} must have {role} and {content}, both strings")
    return _ROLES.get(speaker, speaker), said


def _talk(messages: list[tuple[str, str]], number: int, answered: bool) -> dict[str, Any]:
    if any(role == "system" and said.strip() for role, said in messages):
        raise ValueError(
            "a system message has no place in a question file; take it out, and give one text for all with "
            "data.system_prompt"
        )
    messages = [(role, said) for role, said in messages if role != "system"]
    while messages and messages[0][0] == "assistant":
        messages = messages[1:]
    for place, (role, said) in enumerate(messages):
        if role != ("user", "assistant")[place % 2]:
            raise NotAConversation(f"message {place + 1} is {role!r}; user and assistant must speak in turn")
        if role == "user" and not said.strip():
            raise NotAConversation(f"message {place + 1} of the user is blank")
    if answered:
        messages = messages[: len(messages) // 2 * 2]
    if not messages:
        raise NotAConversation("nobody answers anything" if answered else "nobody asks anything")
    turns, answers = ([said for _, said in messages[side::2]] for side in (0, 1))
    return {"question_id": number, "turns": turns, "reference": answers or None}
