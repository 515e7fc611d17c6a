"""Signals that end a run: SIGTERM and SIGHUP as Ctrl-C, and all three after an optimizer step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], object]


class Stop(KeyboardInterrupt):
    """What a signal raises.

    Not KeyboardInterrupt itself: where a library imports modules from C, the interpreter takes note
    of that one, and ends with the signal's exit code although it was caught.
    """


_received = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise `Stop`."""
    global _received
    _received = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _received
        _received = True
        raise Stop

    try:
        with _handled(interrupt):
            yield
    finally:
        _received = False


def check_interrupted() -> None:
    """Raises `Stop` if there was a signal inside `interruptible`.

    The exception of a signal is lost where it arrives in a callback or finalizer, whose exceptions
    are ignored.
    """
    if _received:
        raise Stop


@contextmanager
def deferred(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Inside, a first signal is only noted; the value tells whether there was one.

    A second signal raises `Stop`. Without `enabled` nothing changes.
    """
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise Stop
        noted = True

    if not enabled:
        yield lambda: False
        return
    with _handled(note):
        yield lambda: noted


@contextmanager
def _handled(handler: Handler) -> Iterator[None]:
    """Handles SIGNALS inside; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
