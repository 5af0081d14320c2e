"""What the vocabularies make of the text: a tokenizer that gives up early is fast, so speed is never shown alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lit_hass.tokenization.tokenizer import WordPieceTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def quality(
    texts: Sequence[str],
    encode: Callable[[str], Sequence[int]],
    decode: Callable[[Sequence[int]], str],
    unknown_id: int | None,
    vocab_size: int,
) -> dict[str, Any]:
    """Count tokens, unknown ones and texts that come back exactly.

    Returns:
        ``vocab_size``, ``tokens``, ``unknown`` (tokens), and with them ``fertility`` (tokens per stretch between white
        space), ``bytes_per_token`` (UTF-8), ``unknown_rate`` (of the tokens) and ``round_trip_rate`` (of the texts);
        None where nothing was counted.
    """
    tokens = unknown = exact = 0
    for text in texts:
        ids = encode(text)
        tokens += len(ids)
        unknown += sum(i == unknown_id for i in ids)
        exact += decode(ids) == text
    stretches = sum(len(text.split()) for text in texts)
    return {
        "vocab_size": vocab_size,
        "tokens": tokens,
        "unknown": unknown,
        "fertility": tokens / stretches if stretches else None,
        "bytes_per_token": size(texts) / tokens if tokens else None,
        "unknown_rate": unknown / tokens if tokens else None,
        "round_trip_rate": exact / len(texts) if texts else None,
    }


def wordpiece_quality(own: WordPieceTokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """`quality` of our tokenizer; special tokens in the text are ordinary text."""
    return quality(texts, lambda text: own.encode(text, False, allow_special=False), own.decode, own.unk_id, len(own))


def bpe_quality(bpe: Tokenizer, texts: Sequence[str]) -> dict[str, Any]:
    """`quality` of a byte-level BPE, which knows no unknown token."""
    return quality(
        texts, lambda text: bpe.encode(text).ids, lambda ids: bpe.decode(list(ids)), None, bpe.get_vocab_size()
    )


def size(texts: Iterable[str]) -> int:
    """Bytes of the texts' UTF-8 form."""
    return sum(len(text.encode("utf-8")) for text in texts)


def cache_bytes(own: WordPieceTokenizer) -> int:
    """Memory of the tokenizer's caches: tables, keys and values."""
    caches: tuple[dict[Any, Any], ...] = (own._table, own._words, own._stretches, own._plain_stretches)
    total = sum(map(sys.getsizeof, caches))
    return total + sum(sys.getsizeof(key) + sys.getsizeof(value) for cache in caches for key, value in cache.items())
