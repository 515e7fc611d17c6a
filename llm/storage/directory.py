"""The directory of a run: what is in it is whole, at whatever moment the process was killed.

    config.yaml provenance.json metrics.jsonl run.log curves.png final/
    iterations/NNN/  responses/ preferences/   one file of JSON lines per chunk, a line per prompt
                     selection/                best and worst, where not all pairs are compared
                     drawn/NNN/ under/NNN/     what iterate NNN said, and its log-probabilities
                     sampler/NNN/              the GFlowNet that draws from iterate NNN mixed with μ
                     evaluation/               the same on the prompts that are not trained on
                     used.json losses.json     tokens and comparisons; the loss of each step
                     adapter/                  π_{t+1}, trained in this iteration

Files and directories are written under a temporary name, flushed to the disk and renamed, so that a
name that exists stands for finished work. `final/` comes last: a run that has it is finished.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from games.errors import InputError
from llm.config.loading import differences, load_config, to_yaml
from llm.config.schema import TrainConfig
from llm.storage.files import Record, read_json, read_rows, write_rows, write_text


@dataclass(frozen=True)
class RunDirectory:
    """Where everything of a run is."""

    path: Path

    @property
    def finished(self) -> bool:
        """Whether the last adapter is in place."""
        return (self.path / "final").is_dir()

    def iteration(self, t: int) -> Path:
        """The directory of iteration t = 0, 1, …"""
        return self.path / "iterations" / f"{t:03d}"

    def metrics(self) -> list[Record]:
        """The lines of metrics.jsonl."""
        return read_rows(self.path / "metrics.jsonl")

    def add_metrics(self, row: Record) -> None:
        """Adds a line, unless the line of that iteration is there."""
        rows = self.metrics()
        if all(old["iteration"] != row["iteration"] for old in rows):
            write_rows(self.path / "metrics.jsonl", [*rows, row])

    def adapter(self, s: int) -> Path:
        """The adapter of iterate π_s, s = 1, 2, …: what iteration s − 1 trained."""
        return self.iteration(s - 1) / "adapter"

    def trained(self) -> int:
        """How many iterations have their adapter: the first that is left to do."""
        t = 0
        while self.adapter(t + 1).is_dir():
            t += 1
        return t

    def missing(self) -> list[Path]:
        """Adapters that must have been there: a later iteration was begun."""
        begun = max((int(path.name) for path in self.path.glob("iterations/[0-9]*")), default=0)
        adapters = [self.adapter(s) for s in range(1, max(begun, self.trained()) + 1)]
        return [path for path in adapters if not (path / "adapter_model.safetensors").is_file()]

    @contextmanager
    def started(self, config: TrainConfig, provenance: Record) -> Iterator[None]:
        """Makes the directory, writes who runs what, and keeps a second run out.

        The lock dies with the process. Raises InputError where another holds it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / "run.log").open("a", encoding="utf-8") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                write_text(self.path / "config.yaml", to_yaml(config))
                history = read_json(self.path / "provenance.json", {"starts": []})["starts"]
                text = json.dumps({"starts": [*history, provenance]}, indent=1)
                write_text(self.path / "provenance.json", text + "\n")
                yield
        except BlockingIOError:
            raise InputError(
                f"output_dir={self.path}: another process is running there; wait for it, or give "
                "another output_dir"
            ) from None


def find_run(config: TrainConfig) -> RunDirectory:
    """The run of a configuration: new, to be continued, or finished. Writes nothing.

    Raises InputError where the directory holds something else, or a run of another configuration,
    with the differences. Changes that only move memory or time are accepted.
    """
    path = Path(config.output_dir)
    if config.fresh:
        return RunDirectory(next_free(path))
    kept = path / "config.yaml"
    if kept.is_file():
        refused, _ = differences(load_config(kept), config)
        if refused:
            raise InputError(
                f"output_dir={path} holds a run of another configuration ({'; '.join(refused)}): "
                "give those values, another output_dir, or fresh=true"
            )
    elif not _is_free(path):
        raise InputError(f"output_dir={path}: is there and is no run; give a new or empty one")
    check_writable(path)
    run = RunDirectory(path)
    if not run.finished and (missing := run.missing()):
        raise InputError(
            f"output_dir={path}: {missing[0]} is missing, and later iterations start from it; put "
            "it back, or give another output_dir"
        )
    return run


def check_writable(path: Path) -> None:
    """Raises InputError where a directory cannot be made or written."""
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"output_dir={path}: {there} cannot be written; give another output_dir")


def next_free(path: Path) -> Path:
    """`path` itself while there is nothing, else the first of path-2, path-3, … that is free."""
    numbered = (path.with_name(f"{path.name}-{i}") for i in itertools.count(2))
    candidates = itertools.chain([path], numbered)
    return next(p for p in candidates if _is_free(p))


def _is_free(path: Path) -> bool:
    """Whether there is nothing, or only what a start that was cut off leaves."""
    if not path.is_dir():
        return not path.exists() and not path.is_symlink()
    return {p.name for p in path.iterdir()} <= {"run.log", "config.yaml.tmp"}
