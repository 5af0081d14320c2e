"""A tokenizer for sums: one token per digit and sign, and one per fixed phrase of the prompt."""

from __future__ import annotations

import string
from typing import TYPE_CHECKING

from lit_hass.data.commonsense_qa_questions import LABELS
from lit_hass.data.sums.examples import CHOICES

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, END = "<|pad|>", "<|unknown|>", "<|end|>"

#: What prompt and rationale repeat in every question.
PHRASES = (
    "\nOptions:\n" + "\n".join(f"({a}) {b}" for a, b in zip(LABELS, CHOICES, strict=True)) + "\nA:",
    *(f" ({label})." for label in LABELS),
    "; Therefore, the answer is ",
    "\n\nQ: ",
    "Q: ",
    "; ",
)


def sums_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer: the same every time, nothing is trained.

    Text that is no sum is tokenised too, a printable ASCII character at a time; other characters are unknown.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [PAD, UNKNOWN, END, *PHRASES, *string.printable]
    tokenizer = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token=UNKNOWN))
    # Longest first, as the alternatives of an expression are tried in order; any character at the end of the list.
    phrases = "|".join(_escaped(phrase) for phrase in sorted(PHRASES, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(f"{phrases}|[\\s\\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )


def _escaped(text: str) -> str:
    return "".join(f"\\{c}" if c in "()." else "\\n" if c == "\n" else c for c in text)
