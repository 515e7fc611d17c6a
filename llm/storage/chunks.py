"""Sharded, resumable stages: prompts in chunks, assigned to processes, each chunk stored when done.

The chunk size does not depend on the number of processes: rank r of W computes chunks r, r + W, …,
and all processes read the results in chunk order. The results, and the chunks that are already
stored after a kill, therefore do not depend on the number of processes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from games.errors import InputError
from llm.storage.files import (
    Record,
    is_whole,
    read_rows,
    remove_directory,
    write_rows,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chunk:
    """Items start, …, stop − 1 of a stage."""

    index: int
    start: int
    stop: int

    @property
    def slice(self) -> slice:
        """The chunk as a slice of a sequence of items."""
        return slice(self.start, self.stop)


def chunks(count: int, size: int) -> list[Chunk]:
    """`count` items in chunks of `size`; the last may be smaller."""
    starts = range(0, count, size)
    return [Chunk(i, start, min(start + size, count)) for i, start in enumerate(starts)]


@dataclass(frozen=True)
class World:
    """The processes of a run, as torchrun started them; a single one without torchrun."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls, environment: dict[str, str]) -> World:
        """Initializes the process group (NCCL on GPUs, Gloo on CPUs)."""
        size = int(environment.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        import torch
        from accelerate import PartialState

        # Stages of a large model take hours, and ranks wait for each other at their ends.
        state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the shared files."""
        return self.rank == 0

    def barrier(self) -> None:
        """Waits for all processes."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def share(self, value: Any) -> Any:
        """Broadcasts the value of rank 0."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        box = [value]
        dist.broadcast_object_list(box)
        return box[0]

    def leave(self) -> None:
        """Waits for all processes, then destroys the process group."""
        if self.size > 1:
            import torch.distributed as dist

            self.barrier()
            dist.destroy_process_group()


def _is_stored(path: Path, chunk: Chunk) -> bool:
    """Whether a chunk is stored completely; what is left of a damaged one is removed."""
    if not path.exists() and not path.is_symlink():
        return False
    try:
        if is_whole(path) and len(read_rows(path)) == chunk.stop - chunk.start:
            return True
    except InputError:
        pass
    logger.warning("%s is damaged and computed again", path)
    if path.is_dir() and not path.is_symlink():
        remove_directory(path)
    else:
        path.unlink()
    return False


def run_stage(
    directory: Path,
    work: Sequence[Chunk],
    compute: Callable[[Chunk], Sequence[Record]],
    world: World,
    on_chunk: Callable[[Chunk], object] = lambda chunk: None,
) -> list[Record]:
    """The rows of all chunks in order; stored chunks are read, the others computed and stored."""
    for chunk in work[world.rank :: world.size]:
        path = directory / f"{chunk.index:05d}.jsonl"
        if not _is_stored(path, chunk):
            write_rows(path, compute(chunk), hashed=True)
        on_chunk(chunk)
    world.barrier()
    return [row for chunk in work for row in read_rows(directory / f"{chunk.index:05d}.jsonl")]


class Progress(Protocol):
    """Where a run reports what it does; `evaluation.report.Report` is the console."""

    def say(self, text: str) -> None:
        """A line for the user and for run.log."""
        ...

    def stage(self, name: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A progress bar; call the context's value with the amount done since the last call."""
        ...


@dataclass(frozen=True)
class Work:
    """How a stage is divided: prompts per chunk, processes, and callbacks.

    advance(prompts) is called after each chunk, count(what, amount, seconds) after each part of it.
    """

    chunk_size: int
    world: World = World()
    advance: Callable[[int], object] = lambda prompts: None
    count: Callable[[str, int, float], object] = lambda what, amount, seconds: None

    def run(
        self, directory: Path, prompts: int, compute: Callable[[Chunk], Sequence[Record]]
    ) -> list[Record]:
        """The rows of that many prompts, in order."""
        return run_stage(
            directory,
            chunks(prompts, self.chunk_size),
            compute,
            self.world,
            lambda chunk: self.advance(chunk.stop - chunk.start),
        )
