"""``lit-hass wordpiece train|encode|bench``."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lit_hass.errors import EXIT_OK, RunError, UserError

_HELP = """\
usage: lit-hass wordpiece {train,encode,bench} [ARGUMENT ...]

WordPiece vocabularies and a tokenizer equal to BERT's.

  train    build a vocabulary from text files
  encode   turn text into ids, pieces or JSON lines
  bench    compare with HF's WordPiece, with byte-level BPE and with a tokenizer in pure Python

lit-hass wordpiece VERB --help explains one.
"""

# What a full disk, a quota or a broken device answers: the person's settings were good, the run failed.
_RUN_FAILURES = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def wordpiece(args: list[str]) -> int:
    """Run ``lit-hass wordpiece`` with its arguments.

    Returns:
        the exit status.

    Raises:
        UserError: the arguments or the input cannot be used.
        RunError: the disk is full or failed.
    """
    if not args or args[0] in ("-h", "--help"):
        print(_HELP, end="")
        return EXIT_OK
    verbs: dict[str, Callable[[list[str]], int]] = {"train": _train, "encode": _encode, "bench": _bench}
    if args[0] not in verbs:
        raise UserError(f"no such verb of wordpiece: {args[0]!r}; there are {', '.join(verbs)}")
    return verbs[args[0]](args[1:])


def _train(args: list[str]) -> int:
    from lit_hass.tokenization.train_verb import train

    return train(args)


def _encode(args: list[str]) -> int:
    from lit_hass.tokenization.encode_verb import encode

    return encode(args)


def _bench(args: list[str]) -> int:
    from lit_hass.tokenization.bench.verb import bench

    return bench(args)


@contextmanager
def for_the_person() -> Iterator[None]:
    """Turn what input and files were refused for into the door's errors."""
    try:
        yield
    except BrokenPipeError:  # the door knows what to do
        raise
    except OSError as error:
        # Our own messages have no errno and name the file already; the system's name it in `filename`.
        named = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        raise (RunError if error.errno in _RUN_FAILURES else UserError)(named) from error
    except ValueError as error:
        raise UserError(str(error)) from error
