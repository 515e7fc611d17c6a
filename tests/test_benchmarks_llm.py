"""The benchmark of the trainer at toy size. Nothing is timed here."""

from __future__ import annotations

import json

import pytest

from benchmarks import llm as bench


@pytest.fixture(scope="module")
def load() -> bench.Workload:
    size = bench.Size(3, 2, 4, prompt_tokens=20, batch_size=4, micro_batch_size=2)
    return bench.Workload("embedded:text", "float32", size)


def test_ours_and_the_bare_loops_do_the_same_work(load: bench.Workload) -> None:
    assert load.score() == load.score_bare() == 3 * 2 * (20 + 4)
    assert load.train() == load.train_bare() == 3 * 2 * (20 + 4)
    assert 0 < load.sample() <= 3 * 2 * 4
    assert 0 < load.sample_bare() <= 3 * 2 * 4
    assert load.iteration() == 3


def test_the_figures_are_a_table_and_json(load: bench.Workload, monkeypatch) -> None:
    monkeypatch.setattr(bench, "Workload", lambda *given: load)
    result = bench.measure("here", "float32", load.size, 1, ("memory", "sample", "score", "train"))
    assert json.loads(json.dumps(result)) == result
    text = "\n".join(bench.table(result))
    assert all(f"| {work} |" in text for work in ("sample", "score", "train"))
    assert 'GPU: "not measured"' in text
    assert result["scoring_memory_mib"]["ratio"] > 0
