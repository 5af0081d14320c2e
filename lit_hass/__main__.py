"""The door: ``lit-hass VERB ...`` and ``python -m lit_hass VERB ...``.

What a verb needs is imported when the verb is known, so ``lit-hass --help`` and the light verbs start at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lit_hass import __version__
from lit_hass.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, RunError, UserError
from lit_hass.interrupt import interruptible
from lit_hass.logs import configure_logging
from lit_hass.terminal import one_line
from lit_hass.verb_arguments import check_configurations, configurations_first

_HELP = """\
usage: lit-hass [-v | -q] [--debug] VERB [ARGUMENT ...]

Decoding with a HASS draft head, representation collapse, perplexity and lengths, measured on one footing.

run a job with the LightningCLI (-c FILE, any number of times):
  evaluate         answer questions with a base and with its draft, and compare
  predict          answer questions with a model
  fit              train a base model or a draft
  star             generate rationales, keep the correct ones, train on them, and again
  validate, test   evaluate a module on its DataModule

without Lightning:
  compare          compare a run with a draft to one without: speedup, acceptance, same tokens
  report           show what runs left: representation collapse, speed, memory; several side by side
  lengths          measure prompts and answers; recommend gen_length, max_length and the batch that fits
  make-data        write questions of a shipped benchmark, or dialogues that a base writes itself
  draft-vocabulary choose the tokens that a draft scores: the most frequent of its base's answers
  wordpiece        train a WordPiece vocabulary, encode with it, and compare it with BPE: train, encode, bench

options:
  -h, --help       this text; lit-hass VERB --help explains a verb
  --version        the version
  -v, -vv          log more (each step; everything)
  -q               log warnings only
  --debug          show the traceback of an error

exit status: 0 done; 1 the run or one of its samples failed; 2 the input or the command line cannot be used;
             130 interrupted (143 by SIGTERM)

try:
  lit-hass evaluate
"""

_RESUMED = "; the same command with --trainer.logger.init_args.version N, that of the run's folder, resumes it"
#: What to do after Ctrl-C, by verb.
_WAY_ON = {
    "evaluate": _RESUMED,
    "predict": _RESUMED,
    "fit": "; with --trainer.logger.init_args.version N --ckpt_path last it goes on at the folder's last checkpoint",
    "star": "; the same command resumes the loop",
    "test": _RESUMED,
}

_LIGHTNING_VERBS = ("evaluate", "star", "fit", "validate", "test", "predict")


def _make_data(args: list[str]) -> int:
    if args[:1] == ["sums"]:
        from lit_hass.data.sums.verb import make_data as make_sums

        return make_sums(args[1:])
    if args[:1] == ["dialogues"]:
        from lit_hass.dialogues.verb import make_data as make_dialogues

        return make_dialogues(args[1:])
    from lit_hass.data.html_to_tsv.verb import make_data

    return make_data(args)


def _draft_vocabulary(args: list[str]) -> int:
    from lit_hass.data.draft_vocabulary_verb import draft_vocabulary

    return draft_vocabulary(args)


def _compare(args: list[str]) -> int:
    from lit_hass.reports.compare_verb import compare

    return compare(args)


def _wordpiece(args: list[str]) -> int:
    from lit_hass.tokenization.verb import wordpiece

    return wordpiece(args)


def _report(args: list[str]) -> int:
    from lit_hass.reports.report_verb import report

    return report(args)


def _lengths(args: list[str]) -> int:
    from lit_hass.reports.lengths_verb import lengths

    return lengths(args)


_LIGHT_VERBS: dict[str, Callable[[list[str]], int]] = {
    "compare": _compare,
    "report": _report,
    "lengths": _lengths,
    "make-data": _make_data,
    "draft-vocabulary": _draft_vocabulary,
    "wordpiece": _wordpiece,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``lit-hass`` with these arguments (``sys.argv[1:]`` if None).

    Returns:
        the exit status, see `lit_hass.errors`.
    """
    args, verbosity, debug = _common_options(list(sys.argv[1:] if argv is None else argv))
    configure_logging(verbosity)
    try:
        with interruptible():
            return _dispatch(args)
    except (UserError, RunError) as error:
        if debug:
            raise
        print(f"lit-hass: error: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, UserError) else EXIT_FAILED
    except KeyboardInterrupt:
        print("lit-hass: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough; the files are written
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except SystemExit as error:
        # Lightning turns Ctrl-C into an orderly shutdown and sys.exit(1).
        if isinstance(error.__context__, KeyboardInterrupt):
            print(f"lit-hass: interrupted{_WAY_ON.get(args[0], '')}", file=sys.stderr)
            return EXIT_INTERRUPTED
        raise
    except Exception as error:
        if debug:
            raise
        summary = one_line((str(error).strip().splitlines() or [""])[0])
        print(f"lit-hass: failed: {type(error).__name__}: {summary} (--debug shows where)", file=sys.stderr)
        return EXIT_FAILED


def _common_options(args: list[str]) -> tuple[list[str], int, bool]:
    """Take ``-v``, ``-q`` and ``--debug`` out, wherever they stand: every verb knows them."""
    verbosity, debug, rest = 0, False, []
    for arg in args:
        if arg in ("-v", "-vv", "-q"):
            verbosity += {"-v": 1, "-vv": 2, "-q": -1}[arg]
        elif arg == "--debug":
            debug = True
        else:
            rest.append(arg)
    return rest, verbosity, debug


def _dispatch(args: list[str]) -> int:
    if not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")
        return EXIT_OK
    if args[0] == "--version":
        print(f"lit-hass {__version__}")
        return EXIT_OK
    if args[0] in _LIGHT_VERBS:
        return _LIGHT_VERBS[args[0]](args[1:])
    if args[0] in _LIGHTNING_VERBS:
        if args[0] == "star":
            args = [args[0], *configurations_first(args[1:])]
            check_configurations(args)
            from lit_hass.star.loop import star

            return star(args[1:])
        if "-h" in args or "--help" in args:
            from lit_hass.verb_help import verb_help

            print(verb_help(args[0]), end="")
            return EXIT_OK
        args = ["--help" if arg == "--help-all" else arg for arg in args]
        args = [args[0], *configurations_first(args[1:])]
        check_configurations(args)
        from lit_hass.cli import main as lightning_main

        return lightning_main(args)
    verbs = ", ".join((*_LIGHTNING_VERBS, *_LIGHT_VERBS))
    raise UserError(f"no such verb: {args[0]!r}; there are {verbs} (lit-hass --help)")


if __name__ == "__main__":
    sys.exit(main())
