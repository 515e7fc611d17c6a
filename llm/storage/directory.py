"""The directory of a run. Everything in it is complete, whenever the process was killed.

    config.yaml provenance.json first_prompt.json metrics.jsonl run.log curves.png final/
    tracker.json tensorboard/ wandb/   of train.report_to: its name for the run, and its files
    iterations/NNN/  responses/ preferences/   a file of JSON lines per chunk, a line per prompt
                     selection/                best and worst, where `selection` asks for them
                     drawn/NNN/ under/NNN/     draws of iterate NNN, and its log-probabilities
                     sampler/NNN/              the GFlowNet of iterate NNN mixed with μ
                     evaluation/               responses and preferences on held-out prompts
                     used.json losses.json     tokens and comparisons; the loss of each step
                     effective_step.json       η and τ by which the policy moved
                     adapter/                  π_{t+1}, trained in this iteration

Files and directories are written atomically, so that a path that exists is finished work. A chunk
has its hash beside it (.sha256), a directory those of its files in checksums.json: damaged chunks
are computed again, other damage is named. `final/` is written last: a run that has it is finished.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from games.errors import InputError
from llm.config.loading import differences, load_config, to_yaml
from llm.config.schema import TrainConfig
from llm.storage.files import (
    DAMAGED,
    TEMPORARY,
    Record,
    hash_file,
    hash_of,
    is_intact,
    is_there,
    read_json,
    read_lines,
    read_rows,
    remove_directory,
    remove_temporary,
    write_rows,
    write_text,
)


@dataclass(frozen=True)
class RunDirectory:
    """The paths of a run."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the run has its final adapter, complete."""
        final = self.path / "final"
        return _has_content(final / "adapter_model.safetensors") and is_intact(final)

    def finished_for(self, iterations: int) -> bool:
        """Whether it is finished and was started with at least that many iterations."""
        stored = self.path / "config.yaml"
        return self.finished and load_config(stored).iterations >= iterations

    def iteration(self, t: int) -> Path:
        """The directory of iteration t = 0, 1, …"""
        return self.path / "iterations" / f"{t:03d}"

    def drawn(self, t: int, s: int) -> Path:
        """The draws of iterate s for iteration t."""
        return self.iteration(t) / "drawn" / f"{s:03d}"

    def metrics(self) -> list[Record]:
        """The lines of metrics.jsonl. Raises InputError for one that is damaged."""
        path = self.path / "metrics.jsonl"
        rows = read_rows(path)
        hashes = read_lines(hash_file(path))
        for number, row in enumerate(rows, start=1):
            hashed = not hashes or _hashes([row]) == hashes[number - 1 : number]
            if not hashed or not isinstance(row.get("iteration"), int):
                raise InputError(f"{path}:{number}: {DAMAGED}")
        return rows

    def add_metrics(self, row: Record) -> None:
        """Appends a line, unless that iteration has one already."""
        rows = self.metrics()
        if all(old["iteration"] != row["iteration"] for old in rows):
            path = self.path / "metrics.jsonl"
            # A hash per line, first: those of lines that a kill left out do no harm.
            write_text(hash_file(path), "".join(f"{line}\n" for line in _hashes([*rows, row])))
            write_rows(path, [*rows, row])

    def adapter(self, s: int) -> Path:
        """The adapter of iterate π_s, s = 1, 2, …, trained in iteration s − 1."""
        return self.iteration(s - 1) / "adapter"

    def trained(self) -> int:
        """Number of iterations that have their adapter: the index of the next one."""
        t = 0
        while self.adapter(t + 1).is_dir():
            t += 1
        return t

    def missing(self) -> list[Path]:
        """Adapters that do not exist although a later iteration was started."""
        names = (path.name for path in self.path.glob("iterations/*"))
        begun = max((int(name) for name in names if name.isdecimal()), default=0)
        adapters = [self.adapter(s) for s in range(1, max(begun, self.trained()) + 1)]
        return [path for path in adapters if not (path / "adapter_model.safetensors").is_file()]

    def check_entries(self) -> None:
        """Raises InputError for what is neither file nor directory: a pipe would be waited for.

        Not among the chunks of a stage, which are computed again.
        """
        for pattern in ("*", "iterations/*", "iterations/*/*"):
            for path in sorted(self.path.glob(pattern)):
                if not path.is_file() and not path.is_dir():
                    raise InputError(f"{path}: neither a file nor a directory; delete {path}")

    def _provenance_with(self, start: Record) -> str:
        """The text of provenance.json with one more start. Raises InputError."""
        path = self.path / "provenance.json"
        stored = read_json(path, {"starts": []})
        if not isinstance(stored, dict) or not isinstance(stored.get("starts"), list):
            raise InputError(f"{path}: {DAMAGED}")
        return json.dumps({"starts": [*stored["starts"], start]}, indent=1) + "\n"

    @contextmanager
    def started(self, config: TrainConfig, provenance: Record) -> Iterator[None]:
        """Makes the directory, records configuration and provenance, and takes an exclusive lock.

        The lock is released when the process ends. Raises InputError if another process holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"output_dir={self.path}: cannot be created ({error.strerror}); give another one"
            ) from None
        try:
            log = (self.path / "run.log").open("a", encoding="utf-8")
        except OSError as error:
            log = self.path / "run.log"
            raise InputError(f"{log}: cannot be written ({error.strerror})") from None
        try:
            with log as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Of a run that is extended. Before the configuration: a kill between the two
                # leaves an unfinished run, not a finished one of the new length.
                remove_directory(self.path / "final")
                remove_temporary(self.path)
                write_text(self.path / "config.yaml", to_yaml(config))
                write_text(self.path / "provenance.json", self._provenance_with(provenance))
                yield
        except BlockingIOError:
            raise InputError(
                f"output_dir={self.path}: another process is running there; wait for it, or give "
                "another output_dir"
            ) from None


def find_run(config: TrainConfig) -> RunDirectory:
    """The run of a configuration: new, unfinished or finished. Writes nothing.

    Raises InputError if the directory holds something else, or a run of another configuration
    (with the differences). Fields that only affect memory and time may differ.
    """
    path = Path(config.output_dir)
    if config.fresh:
        return RunDirectory(next_free(path))
    kept = path / "config.yaml"
    if is_there(kept):
        RunDirectory(path).check_entries()
    if kept.is_file():
        stored = load_config(kept)
        if config.iterations < stored.iterations:
            raise InputError(
                f"iterations={config.iterations}: the run in output_dir={path} has "
                f"iterations={stored.iterations}; a run can be extended but not shortened: give at "
                "least as many, or another output_dir"
            )
        refused, _ = differences(stored, config)
        if refused:
            raise InputError(
                f"output_dir={path} holds a run of another configuration ({'; '.join(refused)}): "
                "give those values, another output_dir, or fresh=true"
            )
    elif not _is_free(path):
        raise InputError(
            f"output_dir={path}: exists but is not a run directory; choose a new or empty one"
        )
    check_writable(path)
    run = RunDirectory(path)
    if not run.finished_for(config.iterations) and (missing := run.missing()):
        raise InputError(
            f"output_dir={path}: {missing[0]} is missing, and later iterations start from it; put "
            "it back, or give another output_dir"
        )
    measured = {row["iteration"] for row in run.metrics()}
    lost = sorted({*range(run.trained())} - measured)  # each is measured before it is trained
    if lost:
        raise InputError(
            f"{path / 'metrics.jsonl'}: has no line of iteration {lost[0]}, and {DAMAGED}"
        )
    return run


def _hashes(rows: Sequence[Record]) -> list[str]:
    return [hash_of(json.dumps(row)) for row in rows]


def _has_content(path: Path) -> bool:
    return path.is_file() and path.stat().st_size > 0


def check_writable(path: Path) -> None:
    """Raises InputError if a directory cannot be created or written."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"output_dir={path}: {there} is not writable; give another output_dir")


def next_free(path: Path) -> Path:
    """`path` if it does not exist, else the first of path-2, path-3, … that does not."""
    numbered = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    candidates = itertools.chain([path], numbered)
    return next(p for p in candidates if _is_free(p))


def _is_free(path: Path) -> bool:
    """Whether nothing is there except what an interrupted start leaves."""
    if not path.is_dir():
        return not path.exists() and not path.is_symlink()
    return {p.name for p in path.iterdir() if p.suffix != TEMPORARY} <= {"run.log"}
