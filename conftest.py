"""Settings that every test shares: one thread, no network, repeatable hypothesis."""

from __future__ import annotations

import os
import socket
from typing import Any

# Before numpy and torch are imported. Two threads on busy cores were measured up to 30 times slower
# than one, and a fixed number of threads keeps sums in a fixed order.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import pytest
from hypothesis import settings

# No deadline: the machine may be busy. `pytest --hypothesis-profile explore` looks further.
settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection beyond this machine."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionRefusedError(f"tests run offline: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_locally)
