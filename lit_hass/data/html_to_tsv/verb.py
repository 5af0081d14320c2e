"""``lit-hass make-data html_to_tsv``: write questions of the benchmark. Standard library only."""

from __future__ import annotations

import argparse
import logging
import sys

from lit_hass.data.html_to_tsv import Difficulty, make_questions
from lit_hass.errors import EXIT_OK, UserError
from lit_hass.records import to_json, write_lines

log = logging.getLogger(__name__)


def make_data(args: list[str]) -> int:
    """Run the verb with its arguments; returns the exit status.

    Raises:
        UserError: the arguments cannot be used, or the file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass make-data",
        description="Write questions of a shipped benchmark, in MT-bench's format.",
        epilog="lit-hass make-data sums --help: multiple-choice sums, in CommonsenseQA's schema",
    )
    parser.add_argument("benchmark", choices=("html_to_tsv",), help="HTML tables in, TSV out")
    parser.add_argument("--n", type=int, default=80, help="how many questions (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="another seed, other tables (default: %(default)s)")
    parser.add_argument(
        "--difficulty",
        default="4x4",
        help="largest table as ROWSxCOLUMNS; with -plain behind it no styles (default: %(default)s)",
    )
    parser.add_argument(
        "--split",
        choices=("test", "validation", "train"),
        default="test",
        help="training never sees the tables of test and validation (default: %(default)s)",
    )
    parser.add_argument("--out", default="-", help="the file to write; - is the standard output (default)")
    options = parser.parse_args(args)
    if options.n < 1:
        raise UserError(f"--n must be at least 1, found {options.n}")
    try:
        questions = make_questions(options.n, options.seed, Difficulty.parse(options.difficulty), options.split)
    except ValueError as error:
        raise UserError(str(error)) from error
    lines = [to_json(question) for question in questions]
    if options.out == "-":
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        write_lines(options.out, lines)
        log.info("wrote %d questions to %s", len(lines), options.out)
    return EXIT_OK
