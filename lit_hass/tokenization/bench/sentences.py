"""Sentence by sentence: both tokenizers' ids, pieces and times, and the running average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lit_hass.tokenization.bench.timing import take_turns
from lit_hass.tokenization.tokenizer import WordPieceTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: Passes over each sentence; the fastest counts, for a sentence takes microseconds and any interruption is longer.
REPEATS = 20
# Calls per pass: the clock's own cost and step disappear in them.
_CALLS = 10


@dataclass(frozen=True)
class SentenceTimes:
    """One sentence.

    Args:
        sentence: the text.
        bpe_ids: of the byte-level BPE, and its ``bpe_pieces``.
        bpe_pieces: see above.
        ids: ours, and our ``pieces``, without added special tokens.
        pieces: see above.
        bpe_seconds: the fastest of `REPEATS`, and ``seconds`` ours.
        seconds: see above.
        bpe_sum: of all sentences so far, and ``sum`` ours.
        sum: see above.
    """

    sentence: str
    bpe_ids: list[int]
    bpe_pieces: list[str]
    ids: list[int]
    pieces: list[str]
    bpe_seconds: float
    seconds: float
    bpe_sum: float
    sum: float

    @property
    def ratio(self) -> float:
        """How many times as long the BPE takes."""
        return self.bpe_seconds / self.seconds

    @property
    def running_ratio(self) -> float:
        """The same of the summed times, which no short sentence dominates."""
        return self.bpe_sum / self.sum


def compare_sentences(own: WordPieceTokenizer, bpe: Tokenizer, sentences: Sequence[str]) -> Iterator[SentenceTimes]:
    """Time both tokenizers on one sentence after the other, warm."""
    bpe_sum = own_sum = 0.0
    for sentence in sentences:

        def theirs(text: str = sentence) -> None:
            for _ in range(_CALLS):
                _ = bpe.encode(text).ids

        def ours(text: str = sentence) -> None:
            for _ in range(_CALLS):
                own.encode(text, False)

        theirs()
        ours()
        times = take_turns([(_nothing, theirs), (_nothing, ours)], REPEATS)
        bpe_seconds, seconds = (min(passes) / _CALLS for passes in times)
        bpe_sum, own_sum = bpe_sum + bpe_seconds, own_sum + seconds
        encoding = bpe.encode(sentence)
        ids = own.encode(sentence, False)
        yield SentenceTimes(
            sentence, encoding.ids, encoding.tokens, ids, own.tokenize(sentence), bpe_seconds, seconds, bpe_sum, own_sum
        )


def lines(times: SentenceTimes) -> list[str]:
    """What a person reads of one sentence."""
    return [
        f"Sentence: {times.sentence}",
        f"BPE ids: {times.bpe_ids}",
        f"BPE pieces: {times.bpe_pieces}",
        f"WordPiece ids: {times.ids}",
        f"WordPiece pieces: {times.pieces}",
        f"BPE: {times.bpe_seconds * 1e6:.1f} us, WordPiece: {times.seconds * 1e6:.1f} us",
        f"This tokenizer is {_percent(times.ratio)}% faster ({times.ratio:.2f} times)",
        f"Average so far: {_percent(times.running_ratio)}% faster ({times.running_ratio:.2f} times)",
    ]


def _percent(ratio: float) -> str:
    return f"{100 * (1 - 1 / ratio):.2f}"


def _nothing() -> None:
    pass
