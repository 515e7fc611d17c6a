"""Signals that end a run: SIGTERM and SIGHUP as Ctrl-C, and all three after an optimizer step."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from games.startup import Stop

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RESEND = 0.05  # seconds until a signal whose exception was lost is raised again
Handler = Callable[[int, FrameType | None], object]


_received = False


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGINT, SIGTERM and SIGHUP raise `Stop`.

    One that arrives in a callback or finalizer, whose exceptions are ignored, is raised again.
    """
    global _received
    _received = False
    last, report = signal.SIGINT, sys.unraisablehook

    def interrupt(number: int, frame: FrameType | None) -> None:
        global _received
        nonlocal last
        _received, last = True, signal.Signals(number)
        raise Stop

    def again() -> None:
        if _received:
            _thread.interrupt_main(last)

    def ignored(found: Any) -> None:
        if isinstance(found.exc_value, Stop):
            threading.Timer(RESEND, again).start()
        else:
            report(found)

    try:
        with _handled(interrupt):
            sys.unraisablehook = ignored
            yield
    finally:
        _received, sys.unraisablehook = False, report


def check_interrupted() -> None:
    """Raises `Stop` if there was a signal inside `interruptible`.

    Some libraries catch all exceptions, the one of a signal among them.
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
    """Handles those of SIGNALS that are not ignored; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # nohup and background jobs of a shell ignore signals, and shall go on so.
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
