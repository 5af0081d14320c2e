"""From a conversation to the token ids that a model is asked to continue."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jinja2
import torch
from torch import Tensor

from lit_hass.errors import UserError

Template = Literal["chat", "plain"]


@dataclass(frozen=True)
class Prompting:
    """How turns and answers become a prompt.

    Args:
        tokenizer: a ``transformers`` tokenizer.
        template: ``"chat"`` uses the tokenizer's own chat template, whose text already holds every special token, so
            none is added when it is tokenised. ``"plain"`` continues text: ``plain_template`` for each turn, followed
            by its answer, with ``separator`` between; the tokenizer adds its own special tokens at the beginning.
        system_prompt: what the system says first; None says nothing.
        plain_template: for ``"plain"``, a text with ``{turn}`` in it.
        separator: for ``"plain"``, what stands between turns (and behind the system prompt).

    Raises:
        UserError: ``"chat"`` for a tokenizer without a chat template, or a ``plain_template`` without ``{turn}``.
    """

    tokenizer: Any
    template: Template = "chat"
    system_prompt: str | None = None
    plain_template: str = "{turn}"
    separator: str = "\n\n"

    def __post_init__(self) -> None:
        """Check that the template can be used with the tokenizer."""
        if self.template == "chat" and not self.tokenizer.chat_template:
            raise UserError(
                "the tokenizer has no chat template; use --data.template plain to continue the question's plain text"
            )
        if self.template == "plain" and "{turn}" not in self.plain_template:
            raise UserError(f"data.plain_template {self.plain_template!r} lacks {{turn}}: no question would be asked")

    def text(self, turns: Sequence[str], answers: Sequence[str]) -> str:
        """The prompt's text.

        Args:
            turns: what the user said, the turn to be answered last.
            answers: the model's answers to all turns before the last.
        """
        if len(answers) != len(turns) - 1:
            raise ValueError(f"{len(turns)} turns go with {len(turns) - 1} earlier answers, not {len(answers)}")
        if self.template == "plain":
            parts = [self.system_prompt] if self.system_prompt else []
            for i, turn in enumerate(turns):
                asked = self.plain_template.replace("{turn}", turn)
                parts.append(asked + answers[i] if i < len(answers) else asked)
            return self.separator.join(parts)
        messages = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        for i, turn in enumerate(turns):
            messages.append({"role": "user", "content": turn})
            if i < len(answers):
                messages.append({"role": "assistant", "content": answers[i]})
        try:
            return self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except jinja2.TemplateError as error:
            raise UserError(f"the tokenizer's chat template refuses the conversation: {error}") from error

    def encode(self, turns: Sequence[str], answers: Sequence[str]) -> Tensor:
        """The prompt's token ids, ``[n]`` int64; arguments as in `text`."""
        special = self.template == "plain"
        ids = self.tokenizer(self.text(turns, answers), add_special_tokens=special)["input_ids"]
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids: special tokens removed, white space left as it is."""
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def count(self, text: str) -> int:
        """How many tokens a text has when it is read by itself, with the special tokens that the tokenizer adds."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])

    def settings(self) -> dict[str, Any]:
        """What of this decides a prompt, for the resume key."""
        return {
            "template": self.template,
            "chat_template": self.tokenizer.chat_template if self.template == "chat" else None,
            "system_prompt": self.system_prompt,
            "plain_template": self.plain_template if self.template == "plain" else None,
            "separator": self.separator if self.template == "plain" else None,
        }
