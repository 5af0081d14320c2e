"""``lit-hass make-data sums``: write sums as questions, as solved examples, and their tokenizer."""

from __future__ import annotations

import argparse
import logging
import re
import sys
from pathlib import Path

from lit_hass.data.commonsense_qa_prompts import build_prompt
from lit_hass.data.commonsense_qa_questions import to_row
from lit_hass.data.sums.examples import MOST_DIGITS, make_sums
from lit_hass.errors import EXIT_OK, UserError
from lit_hass.records import ensure_writable, to_json, write_lines

log = logging.getLogger(__name__)


def make_data(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments cannot be used, or a file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass make-data sums",
        description="Write multiple-choice sums: questions in CommonsenseQA's schema, or the same questions solved.",
    )
    parser.add_argument("--n", type=int, default=500, help="how many sums (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other sums (default: %(default)s)")
    parser.add_argument(
        "--digits",
        default="2-6",
        help=f"digits of both numbers together, FEWEST-MOST within 2-{2 * MOST_DIGITS} (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="no sum of one split is in another (default: %(default)s)",
    )
    parser.add_argument(
        "--solved",
        action="store_true",
        help="write prompts with completions, for fit with CompletionDataModule, instead of questions",
    )
    parser.add_argument("--tokenizer", metavar="FOLDER", help="also write the tokenizer of the sums into this folder")
    parser.add_argument("--out", default="-", help="the file to write; - is the standard output (default)")
    options = parser.parse_args(args)
    digits = re.fullmatch(r"(\d+)-(\d+)", options.digits)
    if digits is None:
        raise UserError(f"--digits is FEWEST-MOST, such as 2-6, found {options.digits!r}")
    if options.n < 1:
        raise UserError(f"--n must be at least 1, found {options.n}")
    try:
        sums = make_sums(options.n, options.seed, (int(digits[1]), int(digits[2])), options.split)
    except ValueError as error:
        raise UserError(str(error)) from error
    if options.solved:
        rows = [
            {"id": one.question.id, "prompt": build_prompt(one.question), "completion": one.completion} for one in sums
        ]
    else:
        rows = [to_row(one.question) for one in sums]
    lines = [to_json(row) for row in rows]
    if options.out == "-":
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        write_lines(options.out, lines)
        log.info("wrote %d sums to %s", len(lines), options.out)
    if options.tokenizer is not None:
        _write_tokenizer(Path(options.tokenizer))
    return EXIT_OK


def _write_tokenizer(folder: Path) -> None:
    from lit_hass.data.sums.tokenizer import sums_tokenizer

    ensure_writable(folder)
    sums_tokenizer().save_pretrained(folder)
    log.info("wrote the tokenizer to %s", folder)
