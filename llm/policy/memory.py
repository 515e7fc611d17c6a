"""Memory of the device: errors that suggest settings, and the peak."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from games.errors import InputError


@contextmanager
def out_of_memory(doing: str, settings: str) -> Iterator[None]:
    """Turns CUDA's out-of-memory error into an InputError that suggests settings to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"out of GPU memory while {doing}: lower or change {settings}") from error


def peak_memory() -> float:
    """GiB: of the GPU where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
