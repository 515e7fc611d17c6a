"""Experiment trackers: one tracked run per training, with its metrics and responses."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import tracking as trackers

from games.errors import InputError
from llm.config.loading import load_config
from llm.config.schema import TrainConfig
from llm.evaluation.metrics import Evaluation
from llm.run import tracking
from llm.storage.directory import RunDirectory
from llm.train import run_training

SIZES = ["data.prompts_per_iteration=8", "evaluation.prompts=6", "train.batch_size=20"]


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take as long as a small run."""
    monkeypatch.setattr("llm.run.session.draw_curves", lambda *given: False)


def config(path: Path, tracker: str, *words: str) -> TrainConfig:
    return load_config(
        "embedded-text", [*SIZES, f"output_dir={path}", f"train.report_to={tracker}", *words]
    )


def events(run: RunDirectory) -> tuple[dict[str, list[tuple[int, float]]], list[str]]:
    """{tag: [(step, value)]} and the tables of responses, as TensorBoard reads the directory."""
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    ).EventAccumulator
    (directory,) = {file.parent for file in run.path.rglob("events.out.*")}  # one run
    read = accumulator(str(directory))
    read.Reload()
    tags = read.Tags()
    scalars = {tag: [(e.step, e.value) for e in read.Scalars(tag)] for tag in tags["scalars"]}
    texts = [e.tensor_proto.string_val[0].decode() for e in read.Tensors("responses/text_summary")]
    return scalars, texts


def test_tensorboard_shows_a_training_as_one_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_training(config(tmp_path / "run", "tensorboard", "iterations=1"))
    run = run_training(config(tmp_path / "run", "tensorboard", "iterations=2"))  # extended
    scalars, tables = events(run)
    rows = run.metrics()
    losses = [json.loads((run.iteration(t) / "losses.json").read_text()) for t in (0, 1)]
    at = [0, len(losses[0]), len(losses[0]) + len(losses[1])]
    # TensorBoard stores float32.
    for name in ("win_rate", "kl_to_reference", "length"):
        steps, values = zip(*scalars[name], strict=True)
        assert list(steps) == at
        assert values == pytest.approx([row[name] for row in rows], rel=1e-6)
    assert [value for _, value in scalars["iteration"]] == [0, 1, 2]
    steps, values = zip(*scalars["train/loss"], strict=True)
    assert list(steps) == [*range(1, at[-1] + 1)]
    assert values == pytest.approx([*losses[0], *losses[1]], rel=1e-6)
    assert {"train/learning_rate", "train/grad_norm", "per_second/tokens_sampled"} <= {*scalars}
    stored = run.iteration(1) / "evaluation" / "responses"
    first = json.loads(next(iter(sorted(stored.glob("*.jsonl")))).read_text().splitlines()[0])
    assert len(tables) == 3
    assert f"| 1 | {first['prompt']} | {first['responses'][0]} |" in tables[1]


def test_trackio_shows_a_training_as_one_run(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run = run_training(config(tmp_path / "run", "trackio", "iterations=2"))
    with closing(sqlite3.connect(tmp_path / "trackio" / "nashplay.db")) as database:
        rows = database.execute("SELECT run_name, metrics FROM metrics ORDER BY step").fetchall()
    assert len({name for name, _ in rows}) == 1
    logged = [json.loads(metrics) for _, metrics in rows]
    rates = [row["win_rate"] for row in logged if "win_rate" in row]
    assert rates == [row["win_rate"] for row in run.metrics()]
    assert sum("responses" in row for row in logged) == 3


def test_wandb_shows_a_training_as_one_run(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_training(config(tmp_path / "run", "wandb", "iterations=2"))
    (directory,) = run.path.glob("wandb/offline-run-*")
    assert directory.name.endswith(json.loads((run.path / "tracker.json").read_text())["id"])
    assert len([*directory.glob("files/media/table/responses_*.json")]) == 3


class Recorder:
    """A tracker that records, and fails from the given call on."""

    name = "recorder"

    def __init__(self, fails_at: int = 1000) -> None:
        self.logged: list[tuple[dict[str, Any], int]] = []
        self.fails_at, self.finished = fails_at, False

    def log(self, values: dict[str, Any], step: int) -> None:
        if len(self.logged) == self.fails_at:
            raise ConnectionError("no network\nat all")
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("fails_at", [3, 1000])
def test_a_tracker_that_fails_does_not_stop_the_training(
    fails_at: int, tmp_path: Path, monkeypatch, caplog
) -> None:
    recorder = Recorder(fails_at)
    monkeypatch.setattr(tracking, "check_tracker", lambda name: None)
    monkeypatch.setattr("llm.run.checks.check_tracker", lambda name: None)
    monkeypatch.setattr(tracking, "_start", lambda *given: recorder)
    run = run_training(config(tmp_path / "run", "recorder", "iterations=1"))
    assert run.finished
    steps = len(json.loads((run.iteration(0) / "losses.json").read_text()))
    assert len(recorder.logged) == min(fails_at, steps + 2)
    assert recorder.finished == (fails_at == 1000)
    said = "train.report_to=recorder failed and gets nothing more: no network"
    assert (said in caplog.text) == (fails_at == 3)


def test_a_tracker_that_refuses_is_named_before_anything_is_sampled(
    tmp_path: Path, monkeypatch
) -> None:
    def refuse(*given: object) -> None:
        raise ValueError("no API key\nlog in")

    monkeypatch.setattr("llm.run.checks.check_tracker", lambda name: None)
    monkeypatch.setattr(tracking, "_start", refuse)
    with pytest.raises(Exception, match=r"^train\.report_to=wandb: no API key; the same command"):
        run_training(config(tmp_path / "run", "wandb"))
    assert not (tmp_path / "run" / "iterations").exists()


def test_a_tracker_that_is_not_there_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(InputError, match=r"report_to=wandb: not installed; pip install wandb"):
        tracking.check_tracker("wandb")
    with pytest.raises(InputError, match=r"report_to=wandp: not supported; did you mean 'wandb'"):
        tracking.check_tracker("wandp")
    tracking.check_tracker("none")


def test_the_table_has_the_response_of_most_weight() -> None:
    evaluation = Evaluation(
        t=4,
        prompts=["p"],
        texts=[["a", "b|\n\\"]],
        token_counts=np.array([[1, 2]]),
        logp=np.zeros((1, 2)),
        logp_ref=np.zeros((1, 2)),
        weights=np.array([[0.25, 0.75]]),
        reference_texts=[["c", "d"]],
        reference_weights=np.array([[0.75, 0.25]]),
        preference=np.array([[[0.5, 0.5], [1.0, 0.5]]]),
    )
    rows = tracking._responses(evaluation)
    assert rows == [[4, "p", "b|\n\\", 2, "c", 0.875]]
    assert tracking._markdown(rows).splitlines()[2] == r"| 4 | p | b\|<br>\\ | 2 | c | 0.875 |"


def test_numbers_of_a_line_are_finite_and_flat() -> None:
    row = {"iteration": 1, "a": None, "b": float("nan"), "c": "x", "per_second": {"tokens in": 2.5}}
    assert dict(tracking._numbers(row)) == {"iteration": 1, "per_second/tokens_in": 2.5}


def test_the_key_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert tracking._key(run) == tracking._key(run)
    (tmp_path / "tracker.json").write_text("[]")
    assert len(tracking._key(run)) == 8
    assert os.listdir(tmp_path) == ["tracker.json"]
