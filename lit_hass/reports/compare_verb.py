"""``lit-hass compare``: two runs of the same questions, side by side. Needs neither torch nor Lightning."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from lit_hass.errors import EXIT_FAILED, EXIT_OK, UserError
from lit_hass.records import HeldFolder
from lit_hass.reports.comparison import compare_runs
from lit_hass.reports.comparison_files import write_comparison
from lit_hass.reports.comparison_view import print_comparison
from lit_hass.reports.perplexity_compare import compare_perplexity
from lit_hass.reports.perplexity_compare_view import print_perplexity_comparison, write_perplexity_comparison
from lit_hass.reports.perplexity_files import is_perplexity_run
from lit_hass.reports.screen import Screen

log = logging.getLogger(__name__)


def compare(args: list[str]) -> int:
    """Run the verb with its arguments.

    Returns:
        the exit status: 1 where the second run had to give the baseline's tokens and did not.

    Raises:
        UserError: the arguments or the runs cannot be used, or the pair is unfair.
    """
    parser = argparse.ArgumentParser(
        prog="lit-hass compare",
        description="Compare a run with a draft to one without: speedup with its uncertainty, acceptance length, exact "
        "match, and whether the tokens are the same. Pairs that differ in more than the draft are refused. Two "
        "perplexity runs, such as a dense and a pruned model's, are compared protocol by protocol and document by "
        "document.",
        epilog="exit status: 0 done; 1 the second run lost tokens that had to be the baseline's; 2 the runs cannot be "
        "compared",
    )
    parser.add_argument("baseline", metavar="BASELINE_RUN", help="folder of the run without a draft, or an answer file")
    parser.add_argument("hass", metavar="HASS_RUN", help="folder of the run with a draft, or an answer file")
    parser.add_argument("--out", help="folder for the report (default: HASS_RUN/comparison)")
    parser.add_argument(
        "--allow-differences", action="store_true", help="compare an unfair pair too, and print what differs"
    )
    options = parser.parse_args(args)
    if is_perplexity_run(options.baseline) or is_perplexity_run(options.hass):
        return _compare_perplexity(options)
    comparison = compare_runs(options.baseline, options.hass, options.allow_differences)
    hass = Path(options.hass)
    out = Path(options.out) if options.out else (hass if hass.is_dir() else hass.parent) / "comparison"
    with _held(out):
        write_comparison(out, comparison)
    console = Screen()
    with console.capture() as text:
        print_comparison(comparison, console)
    sys.stdout.write(text.get())
    sys.stdout.flush()
    log.info("wrote comparison.json, comparison.md, comparison.png and report.html into %s", out)
    if comparison["lossless"] is False:
        log.error("the second run is not lossless")
        return EXIT_FAILED
    return EXIT_OK


def _held(out: Path) -> HeldFolder:
    """The folder of the report: one that was made for it, and that nobody else writes just now."""
    return HeldFolder(out, "compare", "name another with --out").take(resumes=True)


def _compare_perplexity(options: argparse.Namespace) -> int:
    for path in (options.baseline, options.hass):
        if not is_perplexity_run(path):
            raise UserError(f"{path}: is no perplexity run, and the other one is")
    comparison = compare_perplexity(options.baseline, options.hass, options.allow_differences)
    other = Path(options.hass)
    out = Path(options.out) if options.out else (other if other.is_dir() else other.parent) / "comparison"
    with _held(out):
        write_perplexity_comparison(out, comparison)
    console = Screen()
    with console.capture() as text:
        print_perplexity_comparison(comparison, console)
    sys.stdout.write(text.get())
    sys.stdout.flush()
    log.info("wrote comparison.json and comparison.md into %s", out)
    return EXIT_OK
