"""Experiment trackers: a training is one tracked run, however often it is interrupted.

Steps are optimizer steps since the start of the run. After each step the Trainer's loss, gradient
norm and learning rate are sent, as train/…; at π_t all numbers of its line in metrics.jsonl, under
the same names, and a table of responses. The trackers are those of accelerate.
"""

from __future__ import annotations

import importlib
import logging
import math
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate import tracking as trackers

from games.errors import InputError
from games.lookup import suggestion
from llm.config.loading import to_yaml
from llm.config.schema import TrainConfig
from llm.config.section import flatten, plain
from llm.evaluation.metrics import Evaluation
from llm.storage.chunks import World
from llm.storage.directory import RunDirectory
from llm.storage.files import Record, read_json, write_text

logger = logging.getLogger(__name__)

PROJECT = "nashplay"  # where the tracker's own variable, such as WANDB_PROJECT, names none
OF_STEPS = ("loss", "grad_norm", "learning_rate")
COLUMNS = ("iteration", "prompt", "response", "tokens", "response of μ", "preference")
ROWS = 20  # of the table of responses


def check_tracker(name: str) -> None:
    """Raises InputError for a tracker that is unknown or not installed."""
    known = trackers.LOGGER_TYPE_TO_CLASS
    if name != "none" and name not in known:
        raise InputError(
            f"train.report_to={name}: not supported; {suggestion(name, ['none', *known])}"
        )
    if name != "none" and name not in map(str, trackers.get_available_trackers()):
        raise InputError(
            f"train.report_to={name}: not installed; pip install {name}, or set it to none"
        )


@dataclass
class Tracking:
    """The tracked run of a training; without a tracker, as in all but the main process, nothing."""

    run: RunDirectory
    tracker: Any = None

    def step(self, t: int, step: int, logs: Mapping[str, Any]) -> None:
        """What the Trainer logged after a step of iteration t, counted from 1."""
        if values := {f"train/{name}": logs[name] for name in OF_STEPS if name in logs}:
            self._send(lambda: self.tracker.log(values, step=self._steps_before(t) + step))

    def iteration(self, row: Record, evaluation: Evaluation) -> None:
        """The line of π_t in metrics.jsonl, and responses to the first prompts."""

        def send() -> None:
            step = self._steps_before(row["iteration"])
            self.tracker.log(dict(_numbers(row)), step=step)
            _log_table(self.tracker, "responses", _responses(evaluation), step)

        self._send(send)

    def _steps_before(self, t: int) -> int:
        each = (read_json(self.run.iteration(s) / "losses.json", []) for s in range(t))
        return sum(map(len, each))

    def _send(self, send: Callable[[], object]) -> None:
        """A tracker that fails is given up: training goes on."""
        if self.tracker is None:
            return
        try:
            send()
        except Exception as error:  # of any tracker's library
            logger.warning(
                "train.report_to=%s failed and gets nothing more: %s",
                self.tracker.name,
                _one_line(error),
            )
            self.tracker = None


@contextmanager
def tracked(config: TrainConfig, run: RunDirectory, world: World) -> Iterator[Tracking]:
    """Starts or continues the tracked run. Raises InputError where the tracker refuses."""
    name = config.train.report_to
    if name == "none" or not world.is_main:
        yield Tracking(run)
        return
    try:
        tracker = _start(name, config, run)
    except Exception as error:  # of any tracker's library, such as a missing login
        raise InputError(f"train.report_to={name}: {_one_line(error)}") from error
    tracking = Tracking(run, tracker)
    try:
        yield tracking
    finally:
        tracking._send(tracker.finish)


def _start(name: str, config: TrainConfig, run: RunDirectory) -> Any:
    project = os.environ.get(f"{name.upper()}_PROJECT", PROJECT)
    title = run.path.name
    settings = {field: plain(value) for field, value in flatten(config).items()}
    match name:
        case "tensorboard":
            # Not as hyperparameters: those would be a second run in a subdirectory.
            tracker = trackers.TensorBoardTracker("tensorboard", str(run.path))
            tracker.start()
            tracker.log({"config": f"```\n{to_yaml(config)}```"}, step=0)
        case "wandb":
            tracker = trackers.WandBTracker(
                project,
                name=title,
                id=_key(run),
                resume="allow",
                dir=str(run.path),
                config=settings,
            )
            tracker.start()
        case "trackio":
            tracker = trackers.TrackioTracker(
                project, name=f"{title}-{_key(run)}", resume="allow", config=settings
            )
            tracker.start()
        case _:
            make: Any = trackers.LOGGER_TYPE_TO_CLASS[name]
            place = {"logging_dir": str(run.path)} if make.requires_logging_directory else {}
            tracker = make(project, **place)
            tracker.start()
            texts = {field: str(value) for field, value in settings.items()}
            tracker.store_init_configuration(texts)
    return tracker


def _key(run: RunDirectory) -> str:
    """What identifies the run to a tracker, the same whenever it is resumed."""
    path = run.path / "tracker.json"
    stored = read_json(path, None)
    if not isinstance(stored, dict) or not isinstance(stored.get("id"), str):
        stored = {"id": uuid.uuid4().hex[:8]}
        write_text(path, f'{{"id": "{stored["id"]}"}}\n')
    return stored["id"]


def _numbers(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a line of metrics.jsonl; those inside others as outer/inner."""
    for name, value in row.items():
        key = f"{prefix}{name}".replace(" ", "_")
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{key}/")
        elif isinstance(value, int | float) and math.isfinite(value):
            yield key, value


def _responses(evaluation: Evaluation) -> list[list[Any]]:
    """Rows of `COLUMNS`: to each prompt the response of most weight; the first of samples.

    `preference` is P(response ≻ a response of μ), averaged over those of μ.
    """
    rows = []
    for b, prompt in enumerate(evaluation.prompts[:ROWS]):
        k = int(np.argmax(evaluation.weights[b]))
        m = int(np.argmax(evaluation.reference_weights[b]))
        wins = None
        if evaluation.preference is not None:
            wins = float(evaluation.preference[b, k] @ evaluation.reference_weights[b])
        text, other = evaluation.texts[b][k], evaluation.reference_texts[b][m]
        rows.append([evaluation.t, prompt, text, int(evaluation.token_counts[b, k]), other, wins])
    return rows


def _log_table(tracker: Any, name: str, rows: list[list[Any]], step: int) -> None:
    """The rows as the tracker's table; trackers other than these three get none."""
    match tracker.name:
        case "wandb":
            tracker.log_table(name, columns=list(COLUMNS), data=rows, step=step)
        case "trackio":
            import pandas

            trackio: Any = importlib.import_module("trackio")  # no dependency: types unknown
            frame = pandas.DataFrame(rows, columns=list(COLUMNS))
            tracker.log({name: trackio.Table(dataframe=frame)}, step=step)
        case "tensorboard":
            tracker.log({name: _markdown(rows)}, step=step)


def _markdown(rows: list[list[Any]]) -> str:
    lines = [[*COLUMNS], ["---"] * len(COLUMNS)]
    lines += [["–" if cell is None else _cell(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value).replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
