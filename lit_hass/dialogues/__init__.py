"""Dialogues that a base writes itself, to train its draft on: prompts from its own template, and its answers."""

from lit_hass.dialogues.prompts import Opening, implausible, user_opening
from lit_hass.dialogues.writing import DialogueSettings, write_dialogues

__all__ = ["DialogueSettings", "Opening", "implausible", "user_opening", "write_dialogues"]
