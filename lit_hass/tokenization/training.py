"""Building a WordPiece vocabulary."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import get_args

from lit_hass.tokenization.config import SpecialTokens, Tables, WordPieceConfig
from lit_hass.tokenization.merge_order import Score, merges
from lit_hass.tokenization.progress import Show, quiet
from lit_hass.tokenization.vocabulary import write_vocabulary
from lit_hass.tokenization.whole_file import check_target
from lit_hass.tokenization.word_counts import count_words
from lit_hass.tokenization.word_symbols import WordSymbols

log = logging.getLogger(__name__)


def train_wordpiece(
    texts_or_files: Iterable[str | os.PathLike[str]],
    vocab_size: int = 8000,
    score: Score = "frequency",
    min_frequency: int = 2,
    special_tokens: SpecialTokens = SpecialTokens(),
    lowercase: bool = True,
    strip_accents: bool | None = None,
    *,
    max_chars: int = 100,
    chinese_chars: bool = True,
    tables: Tables = "bert",
    errors: str = "strict",
    out: str | os.PathLike[str] | None = None,
    show: Show = quiet,
) -> list[str]:
    """Build a vocabulary: the alphabet of the texts, then the best pair of neighbours again and again.

    Words are those of the tokenizer with the same settings. The same words with the same counts give the same
    vocabulary, whatever their order (that of ``tokenizers`` changes from run to run). Only words and their counts are
    kept in memory, never the texts.

    With c the count of a pair, u those of its units and N the sum of all units, the pair that is merged has the
    highest

    * ``frequency``: c. In effect BPE with a prefix, as in ``tokenizers``.
    * ``pmi``: c ln(c N / (u_a u_b)), pointwise mutual information weighted by count; ends where it is not positive.
    * ``likelihood``: c / (u_a u_b), the criterion of most textbooks (Schuster and Nakajima, ICASSP 2012, choose by the
      likelihood of a language model). It spends the vocabulary on rare pairs and needs almost twice the tokens.

    Args:
        texts_or_files: each a text (str) or a UTF-8 file (a `pathlib.Path`, read a block at a time).
        vocab_size: pieces in all. Fewer come out when no pair is left that is frequent enough.
        score: the criterion.
        min_frequency: rarer pairs are not merged.
        special_tokens: come first, in their order.
        lowercase: as for `WordPieceTokenizer`, and so are ``strip_accents``, ``max_chars``, ``chinese_chars`` and
            ``tables``.
        strip_accents: see above.
        max_chars: longer words are left out.
        chinese_chars: see above.
        tables: see above.
        errors: ``strict`` refuses a file that is not UTF-8; ``replace`` and ``ignore`` are those of `open`.
        out: where to write ``vocab.txt``; None writes nothing.
        show: shows progress, see `lit_hass.tokenization.progress`.

    Returns:
        the pieces in the order of their ids.

    Raises:
        FileNotFoundError: a file is not there.
        TypeError: a single str or bytes instead of several texts, or something else than texts and paths in them.
        ValueError: no text, ``vocab_size`` below special tokens and alphabet (names the minimum), a file that is not
            UTF-8 (names path, line and byte), half a surrogate pair.
        OSError: ``out`` cannot be written.
    """
    if isinstance(texts_or_files, str | bytes | os.PathLike):
        raise TypeError(f"expected several texts or Paths, got one {type(texts_or_files).__name__}; put it in a list")
    if score not in get_args(Score):
        raise ValueError(f"score must be one of {', '.join(get_args(Score))}, found {score!r}")
    if min_frequency < 1:
        raise ValueError(f"min_frequency must be at least 1, found {min_frequency}")
    if out is not None:
        check_target(out)
    config = WordPieceConfig(lowercase, strip_accents, chinese_chars, max_chars, tables)
    with show("reading", None) as progress:
        counts = count_words(texts_or_files, config, errors, progress)
    if not counts:
        raise ValueError("the corpus is empty: no word to learn from")
    words = WordSymbols(counts)
    # A character that is also a special token would be in the vocabulary twice.
    pieces = list(dict.fromkeys([*special_tokens.tokens, *words.symbols]))
    _check_size(vocab_size, len(pieces), len(special_tokens.tokens))
    known = set(pieces)
    with show("merging", vocab_size - len(pieces)) as progress:
        made = 0
        # Nothing is asked of `merges` beyond the last piece: each step costs a merge.
        following = merges(words, score, min_frequency)
        while len(pieces) < vocab_size and (pair := next(following, None)) is not None:
            piece = words.merged(pair)
            # Two pairs may give one string (a + bc, ab + c).
            if piece not in known:
                known.add(piece)
                pieces.append(piece)
                made += 1
                progress(made)
    if len(pieces) < vocab_size:
        log.info("no pair is left to merge: %d pieces instead of %d", len(pieces), vocab_size)
    if out is not None:
        write_vocabulary(out, pieces)
    return pieces


def _check_size(vocab_size: int, needed: int, special: int) -> None:
    if vocab_size < needed:
        raise ValueError(
            f"vocab_size {vocab_size} is below the {needed} that the special tokens ({special}) and the characters of "
            f"the text ({needed - special} pieces) need; give at least {needed}"
        )
    if needed - special > vocab_size / 2:
        log.warning(
            "the characters of the text take %d of %d pieces, more than half; a larger vocab_size holds more words",
            needed - special,
            vocab_size,
        )
