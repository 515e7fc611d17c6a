"""The knock-out tournament against brute force, and its count of comparisons."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from games.errors import InputError
from solvers.tournament import tournament
from tests.strategies import random_game, seeds


def by_hand(p: np.ndarray) -> tuple[int, int, int]:
    """Best, worst and comparisons of one table, match by match."""
    asked = 0

    def play(players: list[int], keep_winner: bool) -> list[int]:
        nonlocal asked
        left = []
        for first, second in zip(players[::2], players[1::2], strict=False):
            asked += 1
            won = p[first, second] >= 0.5
            left.append(first if won == keep_winner else second)
        return left + players[len(players) // 2 * 2 :]

    everyone = list(range(len(p)))
    winners, losers = play(everyone, True), play(everyone, False)
    asked -= len(p) // 2  # one match gives both
    while len(winners) > 1:
        winners = play(winners, True)
    while len(losers) > 1:
        losers = play(losers, False)
    return winners[0], losers[0], asked + 1


@given(seeds, st.integers(2, 11))
def test_it_is_played_match_by_match(seed, k):
    payoff = random_game(seed, k).payoff
    found = tournament(payoff)
    assert (found.best, found.worst, found.comparisons) == by_hand(payoff)
    assert found.passed == (payoff[found.best, found.worst] > 0.5)


@given(seeds, st.integers(2, 11))
def test_an_order_is_found(seed, k):
    reward = np.random.default_rng(seed).permutation(k)
    found = tournament((reward[:, None] > reward) + 0.5 * np.eye(k))
    assert found.best == reward.argmax()
    assert found.worst == reward.argmin()
    assert found.passed


def test_eleven_comparisons_of_eight():
    assert tournament(np.full((8, 8), 0.5)).comparisons == 11
    assert [tournament(np.full((k, k), 0.5)).comparisons for k in (2, 4, 16)] == [2, 5, 23]


def test_the_first_wins_a_tie_but_does_not_pass():
    found = tournament(np.full((8, 8), 0.5))
    assert (found.best, found.worst, found.passed) == (0, 7, False)


def test_a_batch_is_its_tables():
    tables = np.stack([random_game(seed, 8).payoff for seed in range(6)]).reshape(2, 3, 8, 8)
    found = tournament(tables)
    assert found.best.shape == found.worst.shape == found.passed.shape == (2, 3)
    for index in np.ndindex(2, 3):
        one = tournament(tables[index])
        assert (one.best, one.worst) == (found.best[index], found.worst[index])
        assert one.passed == found.passed[index]


@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
def test_too_few_or_not_square(shape):
    with pytest.raises(InputError, match="K x K"):
        tournament(np.full(shape, 0.5))
