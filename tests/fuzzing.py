"""What the fuzz tests share: how many examples they run, and how a command may end."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from hypothesis import HealthCheck, Phase, settings

from solvers.console import prepare_streams

SECONDS = 60  # for one command; the slowest takes a few

CODES = {0, 1, 2, 130}  # 70 is an unexpected error: a defect


class Hanging(BaseException):
    """Not an Exception: no command turns it into a line."""


def campaign(examples: int) -> settings:
    """The same examples in each run, or NASHPLAY_FUZZ_EXAMPLES random ones."""
    chosen = int(os.environ.get("NASHPLAY_FUZZ_EXAMPLES", "0"))
    return settings(
        max_examples=chosen or examples,
        derandomize=not chosen,
        deadline=None,
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        # An example is a command with its files, not a function call.
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The line that says why it failed."""
        return self.err.splitlines()[-1]


def ended(main: Callable[[Sequence[str]], int], *words: str) -> Ended:
    """Runs a command in this process, and checks how it ends.

    It ends in time, with one of CODES and no traceback; where it fails, with one line after its
    warnings; and it never prints a control character.
    """
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with (
        _in_time(SECONDS),
        _handlers_kept(),
        redirect_stdout(streams[0]),
        redirect_stderr(streams[1]),
    ):
        prepare_streams()
        code = main(list(words))
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode("utf-8") for stream in streams)  # pyright: ignore
    found = Ended(code, out, err)
    assert code in CODES, f"exit {code}: {err}{_stored_traceback(err)}"
    assert "Traceback (most recent" not in out + err, found
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out + err), found
    lines = [line for line in err.splitlines() if not line.startswith("WARNING: ")]
    if code:
        assert len(lines) == 1, found
    return found


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty working directory."""
    with tempfile.TemporaryDirectory(prefix="nashplay-fuzz-") as name, chdir(name):
        yield Path(name)


def _stored_traceback(err: str) -> str:
    stored = re.search(r"traceback in (\S+);", err)
    return "\n" + Path(stored[1]).read_text() if stored else ""


@contextmanager
def _in_time(seconds: int) -> Iterator[None]:
    def hang(number: int, frame: FrameType | None) -> None:
        raise Hanging(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Each call of a command adds a handler to the package's logger."""
    logger = logging.getLogger("llm")
    before = logger.handlers[:]
    try:
        yield
    finally:
        logger.handlers[:] = before
