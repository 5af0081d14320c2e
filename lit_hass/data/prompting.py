"""From a conversation to the token ids that a model is asked to continue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date as Date
from datetime import datetime, time
from typing import Any, Literal

import jinja2
import torch
from torch import Tensor
from transformers.utils.chat_template_utils import _compile_jinja_template

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
        date: what a chat template that asks for the time is told, ``"2026-11-28"``; None is today. It stays the same
            as long as this object lives, and the time of day is always 00:00.

    Raises:
        UserError: ``"chat"`` for a tokenizer without a chat template, a ``plain_template`` without ``{turn}``, or no
            such date.
    """

    tokenizer: Any
    template: Template = "chat"
    system_prompt: str | None = None
    plain_template: str = "{turn}"
    separator: str = "\n\n"
    date: str | None = None
    _clock: _Clock = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the template can be used with the tokenizer."""
        object.__setattr__(self, "_clock", _Clock(_day(self.date)))
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
        return self.render(messages)

    def render(self, messages: Sequence[dict[str, str]], generation_prompt: bool = True) -> str:
        """The text of messages in the tokenizer's chat template.

        Raises:
            UserError: the template refuses them.
        """
        try:
            with self._clock.shown_to(self.tokenizer):
                return self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=generation_prompt, tokenize=False
                )
        except jinja2.TemplateError as error:
            raise UserError(f"the tokenizer's chat template refuses the conversation: {error}") from error

    @property
    def day(self) -> str:
        """The date that templates are told."""
        return self._clock.day.isoformat()

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
            # Known once a prompt has been made: most templates do not ask for it.
            "date": self.day if self._clock.asked else None,
        }


class _Clock:
    """Tells a chat template the time (as ``strftime_now``), and remembers whether it was asked."""

    def __init__(self, day: Date) -> None:
        self.day, self.asked = day, False

    @contextmanager
    def shown_to(self, tokenizer: Any) -> Iterator[None]:
        """Take the place of the clock that transformers gives to the tokenizer's template."""
        if not hasattr(tokenizer, "get_chat_template"):  # renders without a template
            yield
            return
        # The compiled template is cached by its text, so that it is the one that is rendered.
        known = _compile_jinja_template(tokenizer.get_chat_template()).globals
        theirs = known.get("strftime_now")
        known["strftime_now"] = self
        try:
            yield
        finally:
            known["strftime_now"] = theirs

    def __call__(self, form: str) -> str:
        self.asked = True
        return datetime.combine(self.day, time()).strftime(form)


def _day(name: str | None) -> Date:
    if name is None:
        return Date.today()
    try:
        return Date.fromisoformat(name)
    except ValueError as error:
        raise UserError(f"data.date {name!r} is no date; write it as {Date.today().isoformat()}") from error
