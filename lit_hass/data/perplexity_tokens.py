"""A text's forms as token ids: each form is tokenised once, whatever number of protocols reads it."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_hass.data.perplexity_protocols import Recipe, TextForm
from lit_hass.data.perplexity_sources import PerplexityText
from lit_hass.data.perplexity_text import detokenise
from lit_hass.errors import UserError


@dataclass(frozen=True)
class TokenSequence:
    """Tokens that windows are cut from.

    Attributes:
        ids: ``[T]`` int64, special tokens included.
        text_tokens: how many of them are of the text.
        pages: ``[T]`` int64, the page each token belongs to; None where the tokenizer does not tell.
        key: the same for sequences of the same tokens and pages.
    """

    ids: Tensor
    text_tokens: int
    pages: Tensor | None
    key: bytes

    def __len__(self) -> int:
        """T."""
        return len(self.ids)


class TextTokens:
    """Tokenises a text's forms when they are first asked for, and puts special tokens around them.

    Args:
        text: what is tokenised.
        tokenizer: of `transformers`.

    Attributes:
        template: ids that the tokenizer adds in front of a text and behind it.
        starts_with_prefix: numbers of pages that begin with the prefix's own text, to which no special token is added.
    """

    def __init__(self, text: PerplexityText, tokenizer: Any) -> None:
        self.text, self.tokenizer = text, tokenizer
        self.template = _template(tokenizer)
        self.starts_with_prefix: set[int] = set()
        self._sequences: dict[tuple[str, ...], list[TokenSequence]] = {}
        self._plain: dict[TextForm, list[tuple[list[int], Tensor | None]]] = {}
        self._texts: dict[TextForm, list[str]] = {}

    @property
    def bos(self) -> int | None:
        """The BOS that the tokenizer adds by itself; None where it adds none."""
        before = self.template[0]
        bos = self.tokenizer.bos_token_id
        return bos if bos is not None and before and before[0] == bos else None

    def prefix(self, recipe: Recipe) -> int:
        """The token that a recipe puts in front of each text.

        Raises:
            UserError: the tokenizer has no such token.
        """
        bos, eos = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        found = {"bos": bos, "eos": eos, "bos_or_eos": bos if bos is not None else eos}[recipe.prefix]
        if found is None:
            what = {"bos": "BOS", "eos": "EOS", "bos_or_eos": "neither BOS nor EOS"}[recipe.prefix]
            raise UserError(f"the tokenizer has {'no ' if what != 'neither BOS nor EOS' else ''}{what} token")
        return int(found)

    def sequences(self, recipe: Recipe) -> list[TokenSequence]:
        """The sequences that a recipe cuts into windows: one of a stream, or one of each page.

        Raises:
            UserError: the recipe needs a special token that the tokenizer does not have.
        """
        name = (recipe.text, recipe.special, recipe.prefix)
        if name not in self._sequences:
            self._sequences[name] = self._make(recipe)
        return self._sequences[name]

    def _make(self, recipe: Recipe) -> list[TokenSequence]:
        prefix = [self.prefix(recipe)] if recipe.special in ("prefix", "both") else []
        opening = self.tokenizer.decode(prefix) if recipe.special == "both" else None
        found: list[TokenSequence] = []
        for text, (ids, pages) in zip(self._form_texts(recipe.text), self._tokens(recipe.text), strict=True):
            before, after = self.template if recipe.special in ("template", "both", "every_window") else ([], [])
            if opening is not None and text.startswith(opening):
                # The harness adds nothing to a text that begins with the prefix as it is written.
                before, after = [], []
                self.starts_with_prefix.add(len(found))
            before = [*prefix, *before]
            whole = torch.tensor([*before, *ids, *after], dtype=torch.int64)
            if pages is not None:
                # A page's own special tokens are the page's.
                ends = pages[[0, -1]].tolist() if len(pages) else [len(found)] * 2
                pages = torch.cat(
                    (pages.new_full((len(before),), ends[0]), pages, pages.new_full((len(after),), ends[1]))
                )
            found.append(TokenSequence(whole, len(ids), pages, _key(whole, pages)))
        return found

    def _form_texts(self, form: TextForm) -> list[str]:
        if form not in self._texts:
            match form:
                case "joined":
                    texts = [self.text.joined]
                case "file":
                    texts = [self.text.file]
                case "pages":
                    texts = self.text.pages
                case "detokenised":
                    texts = [detokenise(page) for page in self.text.pages]
            self._texts[form] = texts
        return self._texts[form]

    def _tokens(self, form: TextForm) -> list[tuple[list[int], Tensor | None]]:
        if form not in self._plain:
            texts = self._form_texts(form)
            if form == "file" and self.text.file == self.text.joined:
                self._plain[form] = self._tokens("joined")
            elif form in ("joined", "file"):
                starts = self.text.joined_starts if form == "joined" else self.text.file_starts
                self._plain[form] = [self._tokenise_stream(texts[0], starts)]
            else:
                encoded = [self._encode(text) for text in texts]
                self._plain[form] = [(ids, torch.full((len(ids),), page)) for page, ids in enumerate(encoded)]
        return self._plain[form]

    def _encode(self, text: str) -> list[int]:
        # verbose=False: that a text is longer than a window is no news here.
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if text else []

    def _tokenise_stream(self, text: str, starts: list[int]) -> tuple[list[int], Tensor | None]:
        if not self.tokenizer.is_fast:
            return self._encode(text), None
        encoded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        pages = [max(bisect_right(starts, begin) - 1, 0) for begin, _ in encoded["offset_mapping"]]
        return encoded["input_ids"], torch.tensor(pages, dtype=torch.int64)


def _template(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer adds around any text, found out with two texts.

    Raises:
        UserError: it does something else than that.
    """
    found = []
    for probe in ("a", "the other"):
        plain = tokenizer(probe, add_special_tokens=False)["input_ids"]
        whole = tokenizer(probe)["input_ids"]
        start = next((i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain), None)
        if start is None:
            raise UserError("the tokenizer's special tokens change the tokens of the text itself")
        found.append((whole[:start], whole[start + len(plain) :]))
    if found[0] != found[1]:
        raise UserError("the tokenizer's special tokens depend on the text")
    return found[0]


def _key(ids: Tensor, pages: Tensor | None) -> bytes:
    digest = hashlib.sha256(ids.numpy().tobytes())
    digest.update(b"" if pages is None else pages.numpy().tobytes())
    return digest.digest()
