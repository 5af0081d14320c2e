"""A WordPiece tokenizer whose ids are those of ``transformers.BertTokenizerFast``."""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_hass.tokenization.characters import CharacterTable, LoneSurrogate, not_unicode
from lit_hass.tokenization.config import BERT_MAX_CHARS, SpecialTokens, Tables, WordPieceConfig
from lit_hass.tokenization.decoding import join_pieces
from lit_hass.tokenization.matching import PieceMatcher, StretchCache, WordCache
from lit_hass.tokenization.offsets import align
from lit_hass.tokenization.text_statistics import TextStatistics, text_statistics
from lit_hass.tokenization.vocabulary import (
    FileLines,
    check_pieces,
    check_special_tokens,
    read_vocabulary,
    write_vocabulary,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class WordPieceTokenizer:
    """Text to the ids of word pieces and back, id for id as ``BertTokenizerFast`` with the same vocabulary.

    Wu et al., arXiv 1609.08144, is where word pieces come from; the pipeline (clean, split, greedy longest match,
    ``[CLS] ... [SEP]``) is BERT's, arXiv 1810.04805. Pure Python: one table for all that depends on a character, and
    caches of words and of what stands between two blanks. Ids only; `encode_with_offsets` also says where they stand.
    For models, which want padding and tensors, there is `to_hf`.

    Args:
        vocab: path of a ``vocab.txt`` (read as ``BertTokenizerFast`` reads it, see `read_vocabulary`), the pieces in id
            order, or piece -> id (all ids from 0).
        lowercase: make text lower-case. For cased vocabularies, and for Korean, say False.
        strip_accents: take accents off; None does it where ``lowercase`` is true, as BERT. It also takes Hangul
            syllables apart, so for Korean say False.
        max_chars: longer words are unknown.
        chinese_chars: every Han ideograph is a word.
        special_tokens: their strings; all must be in the vocabulary.
        tables: ``"bert"`` for the same ids as ``BertTokenizerFast`` for every character, ``"python"`` to do without
            the ``tokenizers`` package, see `lit_hass.tokenization.characters`.

    Raises:
        FileNotFoundError: there is no file of this name.
        TypeError: a piece is not a str.
        ValueError: the vocabulary cannot be used; names file and line.
    """

    def __init__(
        self,
        vocab: str | os.PathLike[str] | Sequence[str] | Mapping[str, int],
        lowercase: bool = True,
        strip_accents: bool | None = None,
        max_chars: int = 100,
        *,
        chinese_chars: bool = True,
        special_tokens: SpecialTokens = SpecialTokens(),
        tables: Tables = "bert",
    ) -> None:
        """See the class."""
        self.config = WordPieceConfig(lowercase, strip_accents, chinese_chars, max_chars, tables)
        self.special_tokens = special_tokens
        self.pieces, source = _pieces(vocab)
        check_special_tokens(self.pieces, special_tokens, source)
        #: Piece -> id; of a piece that a file has twice the last one.
        self.vocab: dict[str, int] = {piece: i for i, piece in enumerate(self.pieces)}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (
            self.vocab[token] for token in special_tokens.tokens
        )
        self._special = {token: self.vocab[token] for token in special_tokens.tokens}
        self._matcher = PieceMatcher(self.vocab, special_tokens.unk, max_chars)
        self._table = CharacterTable(self.config)
        self._words = WordCache(self._matcher)
        self._stretches = StretchCache(self._table, self._words, self._special)
        self._plain_stretches = StretchCache(self._table, self._words, {})

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], **settings: Any) -> WordPieceTokenizer:
        """Load a ``vocab.txt``; settings as for the class."""
        return cls(Path(path), **settings)

    def __len__(self) -> int:
        """How many ids there are."""
        return len(self.pieces)

    def __reduce__(self) -> tuple[Any, ...]:
        # Caches stay behind: a copy for another process fills its own.
        return _restore, (self.pieces, self.config, self.special_tokens)

    def encode(
        self,
        text: str,
        add_special_tokens: bool = True,
        *,
        max_length: int | None = None,
        allow_special: bool = True,
    ) -> list[int]:
        """Turn a text into ids.

        Args:
            text: any text; special tokens that stand in it literally become their ids, as in BERT.
            add_special_tokens: put ``[CLS]`` before and ``[SEP]`` behind.
            max_length: keep as many of the first pieces as fit, the added special tokens counted; None keeps all.
            allow_special: False makes special tokens in the text ordinary text.

        Raises:
            TypeError: not a str.
            ValueError: half a surrogate pair in the text (names its position), or ``max_length`` below the number of
                added special tokens.
        """
        if not isinstance(text, str):
            raise TypeError(f"expected str, got {type(text).__name__}")
        stretches = self._stretches if allow_special else self._plain_stretches
        try:
            # The loop over the stretches is one of C: a look-up each, and __missing__ for new ones only.
            ids = list(
                chain.from_iterable(map(stretches.__getitem__, text.replace("\n", " ").replace("\t", " ").split(" ")))
            )
        except LoneSurrogate:
            raise not_unicode(text) from None
        if max_length is not None:
            ids = ids[: self._room(max_length, add_special_tokens)]
        return [self.cls_id, *ids, self.sep_id] if add_special_tokens else ids

    def encode_batch(
        self,
        texts: Iterable[str],
        add_special_tokens: bool = True,
        *,
        max_length: int | None = None,
        allow_special: bool = True,
    ) -> list[list[int]]:
        """Turn texts into ids, each as `encode` does.

        Raises:
            TypeError: not an iterable of str; for one of them names its position.
            ValueError: as `encode`; names the text's position.
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"expected several texts, got one {type(texts).__name__}")
        batch = []
        for i, text in enumerate(texts):
            try:
                ids = self.encode(text, add_special_tokens, max_length=max_length, allow_special=allow_special)
            except (TypeError, ValueError) as error:
                raise type(error)(f"text {i}: {error}") from error
            batch.append(ids)
        return batch

    def encode_with_offsets(
        self, text: str, add_special_tokens: bool = True, *, max_length: int | None = None, allow_special: bool = True
    ) -> tuple[list[int], list[tuple[int, int]]]:
        """Turn a text into ids and say where in the text each one stands.

        Returns:
            ids, and for each the span ``(start, end)`` of characters in ``text``; (0, 0) for added special tokens.
            Pieces of one character that was taken apart, such as a Hangul syllable, have the same span.

        Raises:
            TypeError, ValueError: as `encode`.
        """
        if not isinstance(text, str):
            raise TypeError(f"expected str, got {type(text).__name__}")
        try:
            aligned = align(text, self._table, self._matcher, self._special if allow_special else {})
        except LoneSurrogate:
            raise not_unicode(text) from None
        if max_length is not None:
            aligned = aligned[: self._room(max_length, add_special_tokens)]
        if add_special_tokens:
            aligned = [(self.cls_id, (0, 0)), *aligned, (self.sep_id, (0, 0))]
        return [i for i, _ in aligned], [span for _, span in aligned]

    def tokenize(self, text: str, *, allow_special: bool = True) -> list[str]:
        """Turn a text into pieces, without added special tokens; errors as `encode`."""
        pieces = self.pieces
        return [pieces[i] for i in self.encode(text, False, allow_special=allow_special)]

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = False, clean_up: bool = True) -> str:
        """Turn ids into text: pieces joined, a blank before each one that begins a word.

        Case, accents and white space that encoding took away do not come back.

        Args:
            ids: as `encode` gives them, or a 1-D tensor or array of integers.
            skip_special_tokens: leave special tokens out.
            clean_up: no blank before ``. , ? !`` and English contractions, as ``BertTokenizerFast`` does.

        Raises:
            IndexError: an id is not in the vocabulary; names it.
            TypeError: an id is no integer.
        """
        skipped = set(self._special.values()) if skip_special_tokens else set()
        # A tensor's elements are equal to no int in a set.
        found = [(i, self._piece(i)) for i in map(operator.index, ids) if i not in skipped]
        # An id whose piece is repeated further down stands for nothing.
        return join_pieces([piece for i, piece in found if self.vocab[piece] == i], clean_up)

    def stats(self, texts: Iterable[str]) -> TextStatistics:
        """Count words, pieces, unknown and over-long words of texts (special tokens in them are ordinary text).

        Raises:
            TypeError, ValueError: as `encode_batch`.
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"expected several texts, got one {type(texts).__name__}")
        return text_statistics(texts, self._table, self._matcher)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ``vocab.txt``, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        write_vocabulary(path, self.pieces)

    def clear_caches(self) -> None:
        """Forget which characters and words were seen; the next text is slower, its ids the same."""
        self._table.clear()
        self._words.clear()
        self._stretches.clear()
        self._plain_stretches.clear()

    def to_hf(self, **settings: Any) -> PreTrainedTokenizerFast:
        """Make the ``transformers`` tokenizer with the same ids, for models and DataModules.

        Args:
            **settings: passed on, such as ``model_max_length`` or ``eos_token="[SEP]"`` for a language model.

        Returns:
            a ``BertTokenizerFast``. Where ``max_chars`` is not BERT's 100 a plain ``PreTrainedTokenizerFast``: the
            former has no setting for it and goes back to 100 when it is saved and loaded.
        """
        from transformers import BertTokenizerFast, PreTrainedTokenizerFast  # type: ignore[attr-defined]

        roles = {f"{role}_token": token for role, token in asdict(self.special_tokens).items()}
        tokenizer = BertTokenizerFast(
            # As vocab=, never vocab_file=, which transformers 5 ignores without a word.
            vocab=dict(self.vocab),
            do_lower_case=self.config.lowercase,
            strip_accents=self.config.strip_accents,
            tokenize_chinese_chars=self.config.chinese_chars,
            **roles,
            **settings,
        )
        if self.config.max_chars != BERT_MAX_CHARS:
            tokenizer.backend_tokenizer.model.max_input_chars_per_word = self.config.max_chars
            tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **roles, **settings)
        assert len(tokenizer) >= len(self.vocab)
        return tokenizer

    def _piece(self, i: int) -> str:
        if not 0 <= i < len(self.pieces):
            raise IndexError(f"id {i} is not in the vocabulary of {len(self.pieces)} pieces")
        return self.pieces[i]

    @staticmethod
    def _room(max_length: int, add_special_tokens: bool) -> int:
        added = 2 if add_special_tokens else 0
        if max_length < added:
            raise ValueError(f"max_length must be at least the {added} special tokens that are added, got {max_length}")
        return max_length - added


def _pieces(vocab: str | os.PathLike[str] | Sequence[str] | Mapping[str, int]) -> tuple[list[str], str]:
    if isinstance(vocab, FileLines):
        return vocab, "vocabulary"
    if isinstance(vocab, str | os.PathLike):
        return read_vocabulary(vocab), str(vocab)
    if isinstance(vocab, Mapping):
        if sorted(vocab.values()) != list(range(len(vocab))):
            raise ValueError(f"vocabulary: the ids of {len(vocab)} pieces must be 0 to {len(vocab) - 1}, each once")
        pieces = sorted(vocab, key=vocab.__getitem__)
    else:
        pieces = list(vocab)
    check_pieces(pieces)
    return pieces, "vocabulary"


def _restore(pieces: list[str], config: WordPieceConfig, special_tokens: SpecialTokens) -> WordPieceTokenizer:
    return WordPieceTokenizer(
        pieces,
        config.lowercase,
        config.strip_accents,
        config.max_chars,
        chinese_chars=config.chinese_chars,
        special_tokens=special_tokens,
        tables=config.tables,
    )
