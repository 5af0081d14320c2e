"""Who is timed, and what one pass of each is."""

from __future__ import annotations

import importlib
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_hass.tokenization.tokenizer import WordPieceTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

#: transformers' tokenizer in plain Python; not every version has it.
LEGACY = "transformers.models.bert.tokenization_bert_legacy"
BPE_SPECIAL = ("<pad>", "<unk>", "<s>", "</s>", "<mask>")


def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contender:
    """One way to turn texts into ids.

    Args:
        key: its name in the JSON.
        name: its name for people.
        vocabulary: ``wordpiece`` or ``bpe``.
        gives: what it computes, for one cannot compare speeds without.
        run: one pass over the texts.
        prepare: what is done before each pass and not timed.
    """

    key: str
    name: str
    vocabulary: str
    gives: str
    run: Callable[[], object]
    prepare: Callable[[], object] = _nothing


def contenders(
    own: WordPieceTokenizer, bpe: Tokenizer, texts: Sequence[str], other_texts: Sequence[str]
) -> list[Contender]:
    """List the contenders; the first is ours with warm caches.

    Args:
        own: our tokenizer.
        bpe: a byte-level BPE.
        texts: what is encoded.
        other_texts: text of the same kind that fills the caches of "primed"; with none that row is left out.
    """
    backend = own.to_hf().backend_tokenizer
    encode = own.encode

    def ours() -> None:
        for text in texts:
            encode(text)

    def prime() -> None:
        own.clear_caches()
        for text in other_texts:
            encode(text)

    def single(tokenizer: Tokenizer) -> Callable[[], object]:
        def run() -> None:
            for text in texts:
                _ = tokenizer.encode(text).ids

        return run

    def batch(tokenizer: Tokenizer) -> Callable[[], object]:
        whole = list(texts)

        def run() -> None:
            for encoding in tokenizer.encode_batch_fast(whole):
                _ = encoding.ids

        return run

    objects = "ids, masks, offsets"
    found = [
        Contender("own_warm", "own, warm", "wordpiece", "ids", ours, ours),
        Contender("own_primed", "own, primed", "wordpiece", "ids", ours, prime),
        Contender("own_cold", "own, cold", "wordpiece", "ids", ours, own.clear_caches),
        # An untimed pass right before each timed one, as for ours: BPE's cache is full, and so is the processor's.
        Contender("hf_single", "HF Rust, one by one", "wordpiece", objects, single(backend), single(backend)),
        Contender("hf_batch", "HF Rust, batch", "wordpiece", "ids, masks", batch(backend), batch(backend)),
        Contender("bpe_single", "HF byte BPE, one by one", "bpe", objects, single(bpe), single(bpe)),
        Contender("bpe_batch", "HF byte BPE, batch", "bpe", "ids, masks", batch(bpe), batch(bpe)),
    ]
    if not other_texts:
        found = [c for c in found if c.key != "own_primed"]
    legacy = legacy_tokenizer(own)
    if legacy is not None:

        def python() -> None:
            for text in texts:
                _ = legacy(text)["input_ids"]

        found.append(Contender("python", "transformers, pure Python", "wordpiece", "ids, masks", python))
    return found


def train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE with as many special tokens as BERT has; a single thread is used."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=list(BPE_SPECIAL)
    )
    return trained._tokenizer


def legacy_tokenizer(own: WordPieceTokenizer) -> Any | None:
    """Make transformers' pure-Python tokenizer with our vocabulary; None where this version has none."""
    if importlib.util.find_spec(LEGACY) is None:
        return None
    legacy = importlib.import_module(LEGACY).BertTokenizerLegacy
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        own.save(path)
        return legacy(
            str(path),
            do_lower_case=own.config.lowercase,
            strip_accents=own.config.strip_accents,
            tokenize_chinese_chars=own.config.chinese_chars,
            **{f"{role}_token": token for role, token in asdict(own.special_tokens).items()},
        )
