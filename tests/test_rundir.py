from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from games.errors import InputError
from llm.config.schema import TrainConfig
from llm.storage import files as rundir
from llm.storage.chunks import Chunk, World, chunks, run_stage
from llm.storage.directory import RunDirectory, find_run, next_free
from llm.storage.files import read_rows, remove_temporary, write_directory, write_rows, write_text

CONFIG = TrainConfig.from_dict(
    {"model": {"path": "m"}, "data": {"path": "d"}, "judge": {"kind": "pairrm"}}
)


def config_in(path: Path, **changes) -> TrainConfig:
    return replace(CONFIG, output_dir=str(path), **changes)


def start(path: Path) -> RunDirectory:
    run = find_run(config_in(path))
    with run.started(config_in(path), {"time": "now"}):
        return run


# --- whole or not there ---------------------------------------------------------------------------


class Killed(BaseException):
    pass


def die(*_):
    raise Killed


@pytest.mark.parametrize("call", ["fsync", "replace", "rename"])
def test_a_kill_while_writing_leaves_the_old_or_nothing(tmp_path, monkeypatch, call) -> None:
    file, directory = tmp_path / "file", tmp_path / "directory"
    write_text(file, "old")
    owner = os if call == "fsync" else Path
    with monkeypatch.context() as patched:
        patched.setattr(owner, call, die)
        for write in (
            lambda: write_text(file, "new"),
            lambda: write_directory(directory, lambda d: (d / "a").write_text("a")),
        ):
            try:
                write()
            except Killed:
                continue
            assert call != "fsync"  # each of the two renames in its own way
    assert file.read_text() == ("new" if call == "rename" else "old")
    assert directory.exists() == (call == "replace")
    write_text(file, "new")
    if not directory.exists():
        write_directory(directory, lambda d: (d / "a").write_text("a"))
    assert (file.read_text(), (directory / "a").read_text()) == ("new", "a")
    remove_temporary(tmp_path)  # as a start does
    assert sorted(p.name for p in tmp_path.iterdir()) == ["directory", "file"]


numbers = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.lists(st.fixed_dictionaries({"text": texts, "logp": st.lists(numbers)})))
def test_rows_come_back_to_the_bit(tmp_path_factory, rows) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows


# --- chunks ---------------------------------------------------------------------------------------


@given(st.integers(0, 200), st.integers(1, 70), st.integers(1, 5))
def test_chunks_cover_everything_once_whatever_the_number_of_processes(count, size, world) -> None:
    work = chunks(count, size)
    covered = [i for chunk in work for i in range(count)[chunk.slice]]
    assert covered == list(range(count))
    assert [chunk.index for chunk in work] == list(range(len(work)))
    dealt = [chunk for rank in range(world) for chunk in work[rank::world]]
    assert sorted(dealt, key=lambda chunk: chunk.index) == work


def test_a_stage_keeps_what_is_done_and_does_it_once(tmp_path: Path) -> None:
    asked: list[int] = []

    def compute(chunk: Chunk) -> list[dict]:
        asked.append(chunk.index)
        if chunk.index == 2 and len(asked) == 3:
            raise Killed
        return [{"i": i} for i in range(chunk.start, chunk.stop)]

    work = chunks(10, 3)
    with pytest.raises(Killed):
        run_stage(tmp_path, work, compute, World())
    rows = run_stage(tmp_path, work, compute, World())
    assert [row["i"] for row in rows] == list(range(10))
    assert asked == [0, 1, 2, 2, 3]


def test_processes_share_the_chunks_and_all_read_them_in_order(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(World, "barrier", lambda self: None)

    def compute(chunk: Chunk) -> list[dict]:
        return [{"i": i} for i in range(chunk.start, chunk.stop)]

    work = chunks(10, 3)
    run_stage(tmp_path, work, compute, World(1, 2))
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == ["00001.jsonl", "00003.jsonl"]
    rows = run_stage(tmp_path, work, compute, World(0, 2))
    assert [row["i"] for row in rows] == list(range(10))


# --- a run ----------------------------------------------------------------------------------------


def test_a_new_run_is_found_without_a_trace_and_started_with_its_configuration(tmp_path) -> None:
    path = tmp_path / "deep" / "run"
    run = find_run(config_in(path))
    assert not path.parent.exists()
    with run.started(config_in(path), {"time": "one"}):
        pass
    with find_run(config_in(path)).started(config_in(path), {"time": "two"}):
        pass
    starts = rundir.read_json(path / "provenance.json", None)["starts"]
    assert [s["time"] for s in starts] == ["one", "two"]


def test_a_changed_configuration_is_refused_with_the_difference(tmp_path: Path) -> None:
    start(tmp_path / "run")
    with pytest.raises(InputError) as caught:
        find_run(config_in(tmp_path / "run", seed=1, eta=2.0))
    assert "seed: 42 -> 1; eta: None -> 2.0" in str(caught.value)
    assert "\n" not in str(caught.value)
    cheaper = replace(CONFIG.train, micro_batch_size=1)
    assert find_run(config_in(tmp_path / "run", train=cheaper)).path == tmp_path / "run"


def test_fresh_takes_the_next_free_directory(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert next_free(path) == path
    start(path)
    assert find_run(config_in(path, fresh=True)).path == tmp_path / "run-2"
    start(tmp_path / "run-2")
    assert find_run(config_in(path, fresh=True)).path == tmp_path / "run-3"


def test_a_directory_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists but is not a run directory"):
        find_run(config_in(tmp_path))
    with pytest.raises(InputError, match="exists but is not a run directory"):
        find_run(config_in(tmp_path / "thesis.tex"))
    with pytest.raises(InputError, match="is not writable"):
        find_run(config_in(tmp_path / "thesis.tex" / "run"))


def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    config = config_in(tmp_path / "run")
    run = find_run(config)
    with (
        run.started(config, {}),
        pytest.raises(InputError, match="another process is running"),
        find_run(config).started(config, {}),
    ):
        pass


def test_metrics_have_one_line_per_iteration(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.add_metrics({"iteration": 0, "loss": None})
    run.add_metrics({"iteration": 1, "loss": 0.1})
    run.add_metrics({"iteration": 1, "loss": 0.2})
    assert [(row["iteration"], row["loss"]) for row in run.metrics()] == [(0, None), (1, 0.1)]


def test_what_is_trained_is_counted_up_to_the_first_gap(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert run.trained() == 0
    for t in (0, 1, 3):
        (run.iteration(t) / "adapter").mkdir(parents=True)
    assert run.trained() == 2
