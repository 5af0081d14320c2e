"""``lit-hass wordpiece bench``."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lit_hass.errors import EXIT_FAILED, EXIT_OK, UserError
from lit_hass.tokenization.bench.contenders import train_bpe
from lit_hass.tokenization.bench.plot import plot_result
from lit_hass.tokenization.bench.run import run_benchmark
from lit_hass.tokenization.bench.sentences import compare_sentences, lines
from lit_hass.tokenization.bench.timing import one_thread
from lit_hass.tokenization.bench.view import print_result, to_markdown
from lit_hass.tokenization.progress import bar, still_bar
from lit_hass.tokenization.settings_arguments import add_settings, settings, warn_of_capitals
from lit_hass.tokenization.text_lines import read_lines
from lit_hass.tokenization.tokenizer import WordPieceTokenizer
from lit_hass.tokenization.training import train_wordpiece
from lit_hass.tokenization.verb import for_the_person
from lit_hass.tokenization.whole_file import check_target, write_whole
from lit_hass.tokenization.word_counts import ERRORS

log = logging.getLogger(__name__)

#: Of a text without a training text beside it, what is trained on; the rest is timed.
TRAIN_SHARE = 0.8
_VOCAB_SIZE = 8000
# Any text has some lines twice, headings and blank phrases; above this share of them it is told.
_MOST_AGAIN = 0.1
# A vocabulary is mostly special tokens and bytes below this.
_SMALLEST_BPE = 300


def bench(args: list[str]) -> int:
    """Run the verb with its arguments.

    Returns:
        the exit status: 1 where an id differs from BertTokenizerFast's.

    Raises:
        UserError: the arguments or the files cannot be used.
        RunError: the disk is full or failed.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass wordpiece bench",
        description="Compare our WordPiece with HF's (Rust), with byte-level BPE of the same vocabulary size trained "
        "on the same text, and with transformers' tokenizer in pure Python: speed in CPU time of one thread, taken in "
        "turn, beside what the vocabularies make of the text. Writes bench.json, bench.md and bench.png.",
        epilog="exit status: 0 done; 1 an id differs from BertTokenizerFast's; 2 the input cannot be used",
    )
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text, timed line by line")
    parser.add_argument(
        "--train-text",
        metavar="FILE",
        help="what vocabularies are trained on (default: the first 80%% of the lines of --text; the rest is timed)",
    )
    parser.add_argument("--vocab", help="a vocab.txt (default: trained on the training text)")
    parser.add_argument("--vocab-size", type=int, help=f"without --vocab (default: {_VOCAB_SIZE})")
    parser.add_argument("--repeats", type=int, default=5, help="passes of each contender (default: %(default)s)")
    parser.add_argument(
        "--per-sentence", action="store_true", help="print ids, pieces, both times and the running average of each line"
    )
    parser.add_argument("--limit", type=int, help="time so many lines only")
    parser.add_argument("--out", default="logs/wordpiece_bench", help="folder of the files (default: %(default)s)")
    parser.add_argument(
        "--errors", choices=ERRORS, default="strict", help="bytes that are not UTF-8 (default: %(default)s)"
    )
    add_settings(parser)
    options = parser.parse_args(args)
    if options.repeats < 1:
        raise UserError(f"--repeats must be at least 1, found {options.repeats}")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit must be at least 1, found {options.limit}")
    if options.vocab is not None and options.vocab_size is not None:
        raise UserError("give either --vocab or --vocab-size")
    with for_the_person(), one_thread():
        return _bench(options)


def _bench(options: argparse.Namespace) -> int:
    train_texts, texts = _texts(options)
    how = settings(options)
    vocab = options.vocab
    if vocab is None:
        size = _VOCAB_SIZE if options.vocab_size is None else options.vocab_size
        vocab = train_wordpiece(train_texts, size, **how, show=bar)
    own = WordPieceTokenizer(vocab, **how)
    warn_of_capitals(own.pieces, own.special_tokens.tokens, not options.cased)
    if len(own) < _SMALLEST_BPE:
        raise UserError(
            f"a vocabulary of {len(own)} pieces is too small to compare: a byte-level BPE has 256 bytes and 5 special "
            f"tokens before it learns anything; at least {_SMALLEST_BPE}"
        )
    check_target(Path(options.out) / "bench.json")
    log.info("training a byte-level BPE of %d pieces", len(own))
    bpe = train_bpe(train_texts, len(own))
    if options.per_sentence:
        for times in compare_sentences(own, bpe, texts):
            sys.stdout.write("\n".join(lines(times)) + "\n\n")
    result = run_benchmark(own, bpe, texts, train_texts, options.repeats, still_bar)
    result["notes"] = _notes(options, train_texts, texts, len(own), bpe.get_vocab_size())
    _write(Path(options.out), result)
    # Piped, a table must not be squeezed into 80 columns.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    with console.capture() as text:
        print_result(result, console)
    sys.stdout.write(text.get())
    sys.stdout.flush()
    log.info("wrote bench.json, bench.md and bench.png into %s", options.out)
    if result["same_ids"] < len(texts):
        log.error("%d lines have other ids than BertTokenizerFast's", len(texts) - result["same_ids"])
        return EXIT_FAILED
    return EXIT_OK


def _texts(options: argparse.Namespace) -> tuple[list[str], Sequence[str]]:
    """Lines to train on and lines to time; blank ones are left out."""
    texts = [line for line in read_lines(options.text, options.errors) if line.strip()]
    if options.train_text:
        train = [line for line in read_lines(options.train_text, options.errors) if line.strip()]
    else:
        cut = round(len(texts) * TRAIN_SHARE)
        train, texts = texts[:cut], texts[cut:]
    if not train or not texts:
        if options.train_text:
            empty = options.text if train else options.train_text
            raise UserError(f"{empty}: no line that is not blank")
        raise UserError(f"{options.text}: too few lines to train on some and to time others")
    return train, texts[: options.limit]


def _notes(
    options: argparse.Namespace, train_texts: Sequence[str], texts: Sequence[str], pieces: int, bpe_pieces: int
) -> list[str]:
    """What makes the vocabularies or the states of the caches less comparable than the table looks."""
    notes = []
    if options.vocab is not None:
        notes.append(
            "The WordPiece vocabulary was given: its tokens compare with the BPE's only if it learnt from the same "
            "training text, and its fertility flatters it if it has seen the timed text."
        )
    if bpe_pieces < pieces:
        notes.append(f"The training text was too short for a BPE of {pieces} pieces; it has {bpe_pieces}.")
    known = set(train_texts)
    again = sum(text in known for text in texts)
    if again > _MOST_AGAIN * len(texts):
        notes.append(
            f"{again:,} of the {len(texts):,} timed lines are in the training text, too: they flatter both "
            "vocabularies, and to them primed is warm."
        )
    return notes


def _write(folder: Path, result: dict[str, object]) -> None:
    content = json.dumps(result, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    write_whole(folder / "bench.json", content.encode("utf-8"))
    write_whole(folder / "bench.md", to_markdown(result).encode("utf-8"))
    write_whole(folder / "bench.png", plot_result(result))
