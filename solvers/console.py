"""What the commands of `solvers` and `llm` share on a terminal."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TextIO

from games.errors import InputError
from games.printable import one_line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Parser(ArgumentParser):
    """Reports an invalid argument as InputError: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError with the message of argparse."""
        raise InputError(f"{message} (see {self.prog} --help)")


def make_console(stream: TextIO, width: int = 160) -> Console:
    """A console without markup; `width` applies to files and pipes."""
    from rich.console import Console  # slow to import: the help does not need it

    narrow = stream.isatty() or "COLUMNS" in os.environ
    chosen = None if narrow else width
    return Console(file=stream, width=chosen, markup=False, emoji=False, highlight=False)


def prepare_streams() -> None:
    """Lets standard output and error take any text, and do without a stream that is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - for good
        elif isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # its encoding may lack Greek letters


def forget_output() -> None:
    """Lets the interpreter's last flush of standard output fail silently."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def output_stopped(error: OSError) -> bool:
    """Whether the error is that of standard output: closed by its reader, or full."""
    return isinstance(error, BrokenPipeError) or error.errno in (errno.ENOSPC, errno.EDQUOT)


def unexpected(error: Exception) -> str:
    """One line on an error that should not have happened; its traceback is written to a file."""
    handle, name = tempfile.mkstemp(prefix="nashplay-error-", suffix=".txt")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        traceback.print_exception(error, file=file)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return f"unexpected {reason} (traceback in {name}; please report it with this file)"


def print_path(console: Console, path: Path) -> None:
    """Prints a path on a line of its own, without wrapping."""
    print(one_line(str(path)), file=console.file, flush=True)


class ProgressBar:
    """A progress bar on standard error, on a terminal, for work that takes over a second."""

    def __init__(self, steps: int) -> None:
        from rich.progress import Progress

        self._bar = Progress(console=make_console(sys.stderr), transient=True)
        self._steps = steps
        self._began = time.monotonic()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tasks:
            self._bar.stop()

    def __call__(self, label: str, step: int) -> None:
        """Step `step` of the run of that label is done."""
        if not self._bar.console.is_terminal or time.monotonic() - self._began < 1:
            return
        if label not in self._tasks:
            for task in self._tasks.values():
                self._bar.remove_task(task)
            self._tasks = {label: self._bar.add_task(label, total=self._steps)}
            self._bar.start()
        self._bar.update(self._tasks[label], completed=step)
