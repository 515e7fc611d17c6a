"""How a run starts and ends: its log, and what an error becomes."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from games.errors import InputError
from games.printable import one_line, printable
from games.startup import INTERRUPTED
from llm.config.schema import TrainConfig
from llm.policy.interrupts import interruptible
from llm.storage.chunks import World
from llm.storage.directory import RunDirectory
from llm.storage.files import is_disk_error
from solvers.console import forget_output, output_stopped, prepare_streams, unexpected

if TYPE_CHECKING:
    from llm.evaluation.report import Report

# A file where a directory should be, or a directory, a link, or a file that was not expected.
NOT_THE_KIND = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP}

DISK = "the disk is full, or a file larger than allowed: free some space"

logger = logging.getLogger("llm.train")


class Interrupted(RuntimeError):
    """A run that stopped before its end and can be continued by the same command."""


@contextmanager
def started(run: RunDirectory, config: TrainConfig, world: World, report: Report) -> Iterator[None]:
    """A run that is locked, logged and shown; whatever stops it becomes one line.

    Raises Interrupted, or InputError where another process holds the run.
    """
    from llm.storage.provenance import provenance

    locked = run.started(config, provenance()) if world.is_main else nullcontext()
    with _disk_errors(run), locked, _logged(run, world), resumable(run), report.progress:
        yield


@contextmanager
def _disk_errors(run: RunDirectory) -> Iterator[None]:
    """Turns a full disk into Interrupted, also where the run has only its lock."""
    try:
        yield
    except OSError as error:
        if is_disk_error(error):
            raise _stopped(run, DISK) from error
        raise


@contextmanager
def resumable(run: RunDirectory) -> Iterator[None]:
    """Turns what stops a run into Interrupted, in one line that says how to continue it."""
    from llm.judges.preferences import JudgeError
    from llm.sampling.engine import EngineError
    from llm.sources.base import TooFewItems

    try:
        yield
    except TooFewItems as error:
        raise Interrupted(f"{error}; {run.path} keeps what is done") from error
    except (InputError, JudgeError, EngineError, FloatingPointError) as error:
        raise _stopped(run, str(error)) from error
    except KeyboardInterrupt as error:
        raise _stopped(run, "interrupted") from error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # so rich takes one
            forget_output()
            raise _stopped(run, "standard output was closed") from error
        raise _stopped(run, f"SystemExit: some code called sys.exit({error.code!r})") from error
    except Exception as error:
        if is_disk_error(error):
            raise _stopped(run, DISK) from error
        if isinstance(error, OSError) and (reason := _file_error(run, error)):
            raise _stopped(run, reason) from error
        raise


def _file_error(run: RunDirectory, error: OSError) -> str | None:
    """One line on an error of the file system; None if it is not about a file of the run."""
    path = Path(os.fsdecode(error.filename2 or error.filename or ""))  # the target of a rename
    if not path.is_relative_to(run.path):
        return None
    if error.errno not in NOT_THE_KIND:
        return f"{path}: {error.strerror}"
    inside = [p for p in reversed(path.parents) if p.is_relative_to(run.path)]
    wrong = next((p for p in inside if not p.is_dir()), path)
    return f"{wrong} is damaged ({error.strerror}); delete it"


def _stopped(run: RunDirectory, why: str) -> Interrupted:
    return Interrupted(f"{why}; the same command continues the run in {run.path}")


@contextmanager
def _logged(run: RunDirectory, world: World) -> Iterator[None]:
    """Writes what this package logs to run.log."""
    if not world.is_main:
        yield
        return
    handler = _LogFile(run.path / "run.log", encoding="utf-8")
    handler.setFormatter(_Printable("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger("llm")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        logger.info("stopped: %s", error, exc_info=True)  # the console gets one line
        raise
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        handler.close()


class _LogFile(logging.FileHandler):
    """A file that may be incomplete: where the disk is full, what is logged is lost."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Says nothing: the run itself stops in one line."""

    def close(self) -> None:
        """Closes the file, whatever is left to write."""
        with suppress(OSError):
            super().close()


class _Printable(logging.Formatter):
    """Escapes control characters, also those of tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _ConsoleHandler(logging.StreamHandler):
    """The handler of `prepare_console`."""


def prepare_console() -> None:
    """Keeps the libraries' progress bars and advice off the console; shows our own warnings."""
    prepare_streams()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    handler = _ConsoleHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(_Printable("%(levelname)s: %(message)s"))
    log = logging.getLogger("llm")
    for earlier in [h for h in log.handlers if isinstance(h, _ConsoleHandler)]:
        log.removeHandler(earlier)  # of another command in this process; its stream may be closed
    log.addHandler(handler)


def exit_code(command: Callable[[], int]) -> int:
    """Runs a command; what it raises becomes one line on standard error and an exit code.

    2: invalid input, nothing is lost. 1: the run stopped, and the same command continues it. 70: an
    unexpected error, whose traceback is in a file. 130: interrupted before there was a run.
    """
    try:
        with interruptible():
            return command()
    except InputError as error:
        return _fail(str(error), 2)
    except Interrupted as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail("interrupted before the run was started", INTERRUPTED)
    except Exception as error:
        if isinstance(error, OSError) and output_stopped(error):
            forget_output()
            return _fail(f"output stopped: {error.strerror}", 1)
        return _fail(unexpected(error), 70)


def _fail(message: str, code: int) -> int:
    """Prints the message, once for all processes."""
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {one_line(message)}", file=sys.stderr)
    return code
