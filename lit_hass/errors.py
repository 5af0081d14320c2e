"""The errors that a person caused and can mend, and the exit statuses of ``lit-hass``."""

#: The run did what was asked, and every sample succeeded.
EXIT_OK = 0
#: The run failed, or at least one sample of it did (the log and the answers name which).
EXIT_FAILED = 1
#: The input, the settings or the command line cannot be used; nothing was run.
EXIT_USAGE = 2
#: Stopped from the keyboard (128 + SIGINT).
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """Input or settings that cannot be used, described in one line for the person who gave them.

    The command line prints the message without a traceback and ends with status 2. The message names the
    file, the line where there is one, and the cause.
    """


class RunError(Exception):
    """A run that started well and could not be completed, described in one line; the status is 1."""
