"""``lit-hass wordpiece encode``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

from lit_hass.errors import EXIT_OK, UserError
from lit_hass.tokenization.settings_arguments import add_settings, settings, warn_of_capitals
from lit_hass.tokenization.text_lines import read_lines
from lit_hass.tokenization.tokenizer import WordPieceTokenizer
from lit_hass.tokenization.verb import for_the_person
from lit_hass.tokenization.word_counts import ERRORS


def encode(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments, the vocabulary or the text cannot be used.
        RunError: the disk failed.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass wordpiece encode",
        description="Turn text into ids, a line each, as BertTokenizerFast with the same vocabulary does.",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="UTF-8 text; - is the standard input")
    parser.add_argument("--vocab", required=True, help="a vocab.txt")
    parser.add_argument(
        "--format",
        choices=("ids", "pieces", "json"),
        default="ids",
        help="json has ids, pieces and offsets (default: %(default)s)",
    )
    parser.add_argument("--no-special-tokens", action="store_true", help="do not put [CLS] and [SEP] around a line")
    parser.add_argument("--plain", action="store_true", help="[MASK] and the like in the text are ordinary text")
    parser.add_argument("--max-length", type=int, help="keep so many ids of a line, [CLS] and [SEP] counted")
    parser.add_argument(
        "--errors", choices=ERRORS, default="strict", help="bytes that are not UTF-8 (default: %(default)s)"
    )
    add_settings(parser)
    options = parser.parse_args(args)
    with for_the_person():
        tokenizer = WordPieceTokenizer(options.vocab, **settings(options))
        warn_of_capitals(tokenizer.pieces, tokenizer.special_tokens.tokens, not options.cased)
        for line in _encoded(tokenizer, options):
            sys.stdout.write(line + "\n")
        sys.stdout.flush()
    return EXIT_OK


def _encoded(tokenizer: WordPieceTokenizer, options: argparse.Namespace) -> Iterator[str]:
    name = "standard input" if options.file == "-" else options.file
    special = not options.no_special_tokens
    how = {"max_length": options.max_length, "allow_special": not options.plain}
    for number, text in enumerate(read_lines(options.file, options.errors), start=1):
        try:
            if options.format == "json":
                ids, offsets = tokenizer.encode_with_offsets(text, special, **how)
                pieces = [tokenizer.pieces[i] for i in ids]
                yield json.dumps({"ids": ids, "pieces": pieces, "offsets": offsets}, ensure_ascii=False)
            else:
                ids = tokenizer.encode(text, special, **how)
                yield " ".join(tokenizer.pieces[i] if options.format == "pieces" else str(i) for i in ids)
        except ValueError as error:
            raise UserError(f"{name}:{number}: {error}") from error
