"""``lit-hass wordpiece train``."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import get_args

from lit_hass.errors import EXIT_OK, UserError
from lit_hass.tokenization.merge_order import Score
from lit_hass.tokenization.progress import bars
from lit_hass.tokenization.settings_arguments import add_settings, settings
from lit_hass.tokenization.tokenizer import WordPieceTokenizer
from lit_hass.tokenization.training import train_wordpiece
from lit_hass.tokenization.verb import for_the_person
from lit_hass.tokenization.whole_file import check_target
from lit_hass.tokenization.word_counts import ERRORS

log = logging.getLogger(__name__)


def train(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments or files cannot be used.
        RunError: the disk is full or failed.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass wordpiece train",
        description="Build a WordPiece vocabulary from UTF-8 text files, which may be larger than memory. The same "
        "words give the same vocabulary. Encode with the settings that it was trained with.",
    )
    parser.add_argument("files", metavar="FILE", nargs="+", help="text to learn from")
    parser.add_argument("--vocab-size", type=int, default=8000, help="pieces in all (default: %(default)s)")
    parser.add_argument("--out", default="vocab.txt", help="the file to write (default: %(default)s)")
    parser.add_argument(
        "--hf", metavar="FOLDER", help="write a transformers tokenizer folder, too, for data.tokenizer of a config"
    )
    parser.add_argument(
        "--score",
        choices=get_args(Score),
        default="frequency",
        help="which pair is merged first (default: %(default)s; likelihood needs twice the tokens)",
    )
    parser.add_argument(
        "--min-frequency", type=int, default=2, help="rarer pairs are not merged (default: %(default)s)"
    )
    parser.add_argument(
        "--errors", choices=ERRORS, default="strict", help="bytes that are not UTF-8 (default: %(default)s)"
    )
    add_settings(parser)
    options = parser.parse_args(args)
    files = [Path(name) for name in options.files]
    with for_the_person():
        out = Path(options.out)
        if any(path.is_file() and out.exists() and path.samefile(out) for path in files):
            raise UserError(f"{options.out}: --out would replace the text to learn from")
        if options.hf:
            # A file in its place would be found out after the training, and transformers only logs it.
            check_target(Path(options.hf) / "tokenizer.json")
        pieces = train_wordpiece(
            files,
            options.vocab_size,
            options.score,
            options.min_frequency,
            **settings(options),
            errors=options.errors,
            out=options.out,
            show=bars(sum(path.stat().st_size for path in files if path.is_file())),
        )
        log.info("wrote %d pieces to %s", len(pieces), options.out)
        if options.hf:
            # A language model ends a text with the token that BERT ends it with.
            tokenizer = WordPieceTokenizer(pieces, **settings(options)).to_hf(eos_token=options.sep_token)
            tokenizer.save_pretrained(options.hf)
            log.info("wrote a transformers tokenizer into %s", options.hf)
    return EXIT_OK
