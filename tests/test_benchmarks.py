"""The benchmarks at toy size: the timed code gives correct answers. Nothing is timed here."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import contest, rows

TOYS = {
    "large": lambda: rows.large(sizes=(9, 12)),
    "small": lambda: rows.small(count=20, sample=4),
    "regularized": lambda: rows.regularized(cases=((12, 0.1), (9, 0.01), (10, 0.01))),
    "batch": lambda: rows.batch(count=20, sample=3),
    "step": lambda: rows.gmmd_step(n=30),
    "memory": lambda: rows.memory(n=30),
}
NOT_INSTALLED = ("nashpy", "quantecon")  # only in the environment of the benchmarks


@pytest.mark.parametrize("name", rows.ROWS)
def test_every_row_gives_right_answers(name):
    for played in TOYS[name]():
        assert played.error(played.ours()) <= played.tolerance
        for peer in played.peers:
            if peer.name.startswith(NOT_INSTALLED):
                continue
            answer = peer.run()
            if peer.answers:  # cvxpy answers to about 1e-4 in the policy
                assert played.error(answer) < 1e-3


@pytest.mark.parametrize(
    ("faster", "target", "ratio", "met"),
    [(True, 2, "4×", "yes"), (True, 5, "4×", "**no**"), (False, 0.5, "0.25×", "yes")],
)
def test_a_line_of_the_table(faster, target, ratio, met, monkeypatch):
    """A peer that does half of the work in 2 s takes 4 s; nashplay 1 s."""
    monkeypatch.setattr(contest, "TURN", 1e-6)
    played = contest.Contest(
        "work",
        lambda: 1.0,
        (contest.Peer("peer", lambda: 2.0, share=0.5), contest.Peer("slow", lambda: 9.0)),
        lambda answer: 0.0,
        0.0,
        target,
        faster,
        measure=lambda run: (run(), None),
    )
    cells = [cell.strip() for cell in played.play(budget=0).split("|")[1:-1]]
    assert cells[:4] == ["work", "1 s", "peer", "4 s"]
    assert (cells[4], cells[6]) == (ratio, met)


def test_a_wrong_answer_meets_no_target(monkeypatch):
    monkeypatch.setattr(contest, "TURN", 1e-6)
    played = contest.Contest(
        "work",
        lambda: np.zeros(3),
        (contest.Peer("peer", lambda: None, answers=False),),
        lambda answer: 1e-3,
        1e-12,
        target=0.0,
        measure=lambda run: (1.0, run()),
    )
    assert "**no**" in played.play(budget=0)
