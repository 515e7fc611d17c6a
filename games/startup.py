"""Ctrl-C in a command of this project, also while it imports its modules: one line, no traceback.

`python -m llm.train` imports for a second before its own handling of signals begins. The packages
import this module first; it does nothing in other programs.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

COMMANDS = ("solvers", "llm")
INTERRUPTED = 130  # the exit code of shells: 128 + SIGINT


class Stop(KeyboardInterrupt):
    """What a signal raises in a command.

    Not KeyboardInterrupt itself: where a library imports modules from C, the interpreter takes note
    of that one, and ends with the signal's exit code although it was caught.
    """


def is_command() -> bool:
    """Whether `python -m` is about to run a module of these packages.

    While Python imports the package of that module, `sys.argv[0]` is "-m".
    """
    words = sys.orig_argv
    if sys.argv[:1] != ["-m"] or "-m" not in words[:-1]:
        return False
    return words[words.index("-m") + 1].split(".")[0] in COMMANDS


def leave(number: int, frame: FrameType | None) -> None:
    """Ends the process: nothing is under way that would have to be undone.

    An exception would be raised within an import, where some libraries lose it or replace it.
    """
    if os.environ.get("RANK", "0") == "0":
        os.write(2, b"error: interrupted\n")
    os._exit(INTERRUPTED)


def begin() -> None:
    """From here on Ctrl-C raises `Stop`: the command is imported and handles it."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stop


# One that ignores the signal, as background jobs of a shell do, goes on ignoring it.
if is_command() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, leave)
