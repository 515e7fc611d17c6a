"""Signals that end a run: SIGTERM and SIGHUP as Ctrl-C, and all three after an optimizer step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], object]


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise KeyboardInterrupt, as SIGINT does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled(interrupt):
        yield


@contextmanager
def deferred(enabled: bool = True) -> Iterator[Callable[[], bool]]:
    """Inside, a first signal is only noted; the value tells whether there was one.

    A second signal raises KeyboardInterrupt. Without `enabled` nothing changes.
    """
    noted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal noted
        if noted:
            raise KeyboardInterrupt
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
