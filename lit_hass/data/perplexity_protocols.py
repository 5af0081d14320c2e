"""The protocols by which perplexity is published, each as a recipe of independent settings that plans windows.

A recipe says everything that decides the number: the text's form, the special tokens, the windows, the mean and the
unit. Two recipes differ in a few of these; changing one at a time leads from one protocol to the other, see
`lit_hass.data.perplexity_switches`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from lit_hass.data.perplexity_windows import (
    Window,
    disjoint_windows,
    rolling_windows,
    second_half_windows,
    strided_windows,
)
from lit_hass.errors import UserError

#: ``joined``: rows in one stream; ``file``: the text as it is; ``pages``: each page by itself; ``detokenised`` pages.
TextForm = Literal["joined", "file", "pages", "detokenised"]
#: ``template``: what the tokenizer adds; ``prefix``: one token in front that is not scored, nothing else; ``both``:
#: that prefix in front of what the tokenizer adds (a second BOS, which is scored); ``none``: the text alone;
#: ``every_window``: as ``template``, and BOS in the place of each window's first token where the tokenizer adds one.
SpecialTokens = Literal["template", "prefix", "both", "none", "every_window"]
Windows = Literal["disjoint", "rolling", "strided", "second_half"]
#: By which lm-evaluation-harness version: since its PR 3347; before; before PR 1588; and no prefix at all.
BosPolicy = Literal["lm_eval_default", "single", "eos", "none"]


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a protocol scores.

    Attributes:
        text: the text's form.
        special: which special tokens stand around a text.
        prefix: which token a prefix is.
        windows: how a sequence is cut.
        window: tokens L of a window.
        stride: of ``strided`` windows.
        tail: whether the rest behind the last full window is scored (``disjoint``, ``strided`` and ``second_half``).
        truncate: only the first ``window`` tokens of each text, as Hugging Face's ``evaluate`` does.
        most_windows: at most so many windows of each sequence; None takes all.
        mean: over tokens, or the arithmetic mean of the texts' own perplexities.
        unit: in which the original prints its number.
    """

    text: TextForm
    special: SpecialTokens
    windows: Windows
    window: int
    stride: int | None = None
    tail: Literal["drop", "score"] = "score"
    prefix: Literal["bos_or_eos", "bos", "eos"] = "bos_or_eos"
    truncate: bool = False
    most_windows: int | None = None
    mean: Literal["tokens", "texts"] = "tokens"
    unit: Literal["token", "word"] = "token"

    def plan(self, tokens: int, bos: int | None = None) -> list[Window]:
        """Cut a sequence of T tokens, special ones included.

        Args:
            tokens: T.
            bos: the id that ``every_window`` puts first.
        """
        first = bos if self.special == "every_window" else None
        if self.truncate:
            count = min(self.window, tokens) - 1
            return [Window(0, count, count, first)] if count > 0 else []
        match self.windows:
            case "disjoint":
                windows = disjoint_windows(tokens, self.window, self.tail == "score")
            case "rolling":
                windows = rolling_windows(tokens, self.window)
            case "strided":
                windows = strided_windows(tokens, self.window, self.stride or self.window, self.tail == "score")
            case "second_half":
                windows = second_half_windows(tokens, self.window, None, self.tail == "score")
        windows = windows[: self.most_windows]
        return windows if first is None else [window._replace(first=first) for window in windows]

    def settings(self) -> dict[str, Any]:
        """The recipe as plain values, without those that have no say in it."""
        found = asdict(self)
        if self.windows != "strided":
            del found["stride"]
        if self.windows == "rolling" or self.truncate:
            del found["tail"]
        if self.special not in ("prefix", "both"):
            del found["prefix"]
        return found


@dataclass(frozen=True)
class ProtocolOptions:
    """What a user may choose for all protocols.

    Attributes:
        window: tokens of a window; None is the model's context (llama.cpp: at most its own 512).
        context: the model's; None where it names none.
        stride: of ``strided``; None is half a window.
        tail: what becomes of a rest that fills no window.
        bos_policy: of ``lm_eval_wikitext``.
        document_bos: whether ``document`` puts BOS in front of each text.
        most_windows: of ``wanda``.
    """

    window: int | None = None
    context: int | None = None
    stride: int | None = None
    tail: Literal["drop", "score"] = "drop"
    bos_policy: BosPolicy = "lm_eval_default"
    document_bos: bool = True
    most_windows: int | None = None

    def length(self, most: int | None = None) -> int:
        """The window's length.

        Raises:
            UserError: neither window nor context is known.
        """
        if self.window is not None:
            return self.window
        if self.context is None:
            raise UserError("the model's configuration names no context length: give --data.window")
        return self.context if most is None else min(most, self.context)


class Protocol(ABC):
    """A published way to compute perplexity.

    Attributes:
        name: as on the command line and in files.
        about: one line: whose it is and what it prints.
    """

    name: ClassVar[str]
    about: ClassVar[str]

    @abstractmethod
    def recipe(self, options: ProtocolOptions) -> Recipe:
        """The protocol's recipe under these options."""


class Wanda(Protocol):
    """Rows joined by blank lines in disjoint windows; the mean over windows, per token (also GPTQ, SparseGPT)."""

    name = "wanda"
    about = "Wanda, GPTQ, SparseGPT: prints token perplexity"

    def recipe(self, options: ProtocolOptions) -> Recipe:
        """One stream with the tokenizer's own special tokens; the rest behind the last full window is dropped."""
        return Recipe(
            "joined", "template", "disjoint", options.length(), tail=options.tail, most_windows=options.most_windows
        )


class LMEvalWikitext(Protocol):
    """Detokenised pages, each by itself in rolling windows; one sum over all pages, per word of the original page."""

    name = "lm_eval_wikitext"
    about = "lm-evaluation-harness, task wikitext: prints word and byte perplexity, bits per byte"

    def recipe(self, options: ProtocolOptions) -> Recipe:
        """Every token is scored; which special tokens there are is the version's affair (``bos_policy``)."""
        special: dict[BosPolicy, SpecialTokens] = {
            "lm_eval_default": "both", "single": "prefix", "eos": "prefix", "none": "none"
        }  # fmt: skip
        prefix: Literal["eos", "bos_or_eos"] = "eos" if options.bos_policy == "eos" else "bos_or_eos"
        return Recipe(
            "detokenised", special[options.bos_policy], "rolling", options.length(), prefix=prefix, unit="word"
        )


class Strided(Protocol):
    """Wanda's stream in overlapping windows: the loop of Hugging Face's documentation, with exact sums."""

    name = "strided"
    about = "Hugging Face's documentation, sliding window: prints token perplexity"

    def recipe(self, options: ProtocolOptions) -> Recipe:
        """Each window scores what no window before it has scored."""
        length = options.length()
        return Recipe("joined", "template", "strided", length, stride=options.stride or max(1, length // 2))


class LlamaCpp(Protocol):
    """The file as it is in disjoint windows, of which the second half is scored."""

    name = "llama_cpp"
    about = "llama.cpp's perplexity: prints token perplexity"

    def recipe(self, options: ProtocolOptions) -> Recipe:
        """Its own window is 512; every window begins with BOS where the tokenizer adds one."""
        return Recipe("file", "every_window", "second_half", options.length(512), tail=options.tail)


class Document(Protocol):
    """Each page by itself, truncated to one window; the arithmetic mean of the pages' own token perplexities."""

    name = "document"
    about = "Hugging Face's evaluate, metric perplexity: prints the mean of the texts' token perplexities"

    def recipe(self, options: ProtocolOptions) -> Recipe:
        """BOS in front of each text, nothing else."""
        special: SpecialTokens = "prefix" if options.document_bos else "none"
        return Recipe("pages", special, "rolling", options.length(), prefix="bos", truncate=True, mean="texts")


#: By name; in the order of the text's form, in which a ladder climbs.
PROTOCOLS: Mapping[str, Protocol] = {p.name: p for p in (Wanda(), Strided(), LlamaCpp(), Document(), LMEvalWikitext())}
