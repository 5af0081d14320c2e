"""Windows: which tokens a model reads, and which of them it is scored on. Plain integers, no tensors.

A window reads the tokens ``start .. stop - 1`` of a sequence from position 0, and its last ``scored`` outputs are held
against the tokens behind them, ``stop - scored + 1 .. stop``. The last target is never read. Every function takes the
number of tokens T of a sequence and gives the windows of one protocol; of the T tokens each is scored, or one of those
that nothing predicts (``unscored``), or left out (``dropped``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Window(NamedTuple):
    """What is read and what is scored.

    Attributes:
        start: first token read.
        stop: one behind the last token read; the last token scored.
        scored: how many tokens, up to and with ``stop``, are scored.
        first: a token id that is read in the place of the first one (llama.cpp's BOS); None reads what is there.
    """

    start: int
    stop: int
    scored: int
    first: int | None = None

    @property
    def read(self) -> int:
        """Tokens that are forwarded."""
        return self.stop - self.start

    @property
    def targets(self) -> range:
        """Positions of the scored tokens."""
        return range(self.stop - self.scored + 1, self.stop + 1)


def disjoint_windows(tokens: int, length: int, score_tail: bool = False) -> list[Window]:
    """Pieces of ``length`` tokens, each scored but for its first token (Wanda, GPTQ, SparseGPT).

    Args:
        tokens: T.
        length: L.
        score_tail: score the ragged rest behind the last full piece too; the originals drop it.
    """
    windows = [Window(i, i + length - 1, length - 1) for i in range(0, tokens - length + 1, length)]
    rest = tokens % length
    if score_tail and rest > 1:
        windows.append(Window(tokens - rest, tokens - 1, rest - 1))
    return windows


def rolling_windows(tokens: int, length: int) -> list[Window]:
    """Every token but the first is scored once, in windows that read up to ``length`` tokens (lm-evaluation-harness).

    The first token is the prefix. A full window sees one token of history; the last, ragged one reads ``length`` tokens
    all the same, so that what it scores has a full history.
    """
    targets = tokens - 1
    first = min(length, targets)
    windows = [Window(0, first, first)] if targets > 0 else []
    for done in range(length, targets, length):
        count = min(length, targets - done)
        stop = done + count
        windows.append(Window(stop - length, stop, count))
    return windows


def strided_windows(tokens: int, length: int, stride: int, score_tail: bool = True) -> list[Window]:
    """Windows of ``length`` tokens that begin ``stride`` tokens apart and score what no window before them has scored.

    The exact form of the loop in Hugging Face's documentation. A window scores nothing that it has not read a token
    before, so with ``stride == length`` its first token is lost, as in `disjoint_windows`.

    Args:
        tokens: T.
        length: L.
        stride: at most L; more would pass over tokens.
        score_tail: keep the last window where it is shorter than ``length``.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"a stride of {stride} does not lie between 1 and the window of {length}")
    return list(_strided(tokens, length, stride, score_tail))


def _strided(tokens: int, length: int, stride: int, score_tail: bool) -> Iterator[Window]:
    before = 0
    for begin in range(0, tokens, stride):
        end = min(begin + length, tokens)
        if end - begin < length and not score_tail:
            return
        scored = min(end - before, end - begin - 1)
        if scored > 0:
            yield Window(begin, end - 1, scored)
        before = end
        if end == tokens:
            return


def second_half_windows(tokens: int, length: int, first: int | None = None, score_tail: bool = False) -> list[Window]:
    """Pieces of ``length`` tokens, of which the second half is scored (llama.cpp's ``perplexity``).

    Of the L tokens of a piece, those behind position ``L // 2`` are scored: ``L - L // 2 - 1``.

    Args:
        tokens: T.
        length: L, llama.cpp's ``n_ctx``.
        first: a token id read in the place of each piece's first token.
        score_tail: score the second half of the ragged rest too.
    """
    half = length // 2
    windows = [Window(i, i + length - 1, length - half - 1, first) for i in range(0, tokens - length + 1, length)]
    rest = tokens % length
    if score_tail and rest > half + 1:
        windows.append(Window(tokens - rest, tokens - 1, rest - half - 1, first))
    return [window for window in windows if window.scored > 0]
