"""The duality gap against its definition, with best responses for the two deviations."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from games import MatrixGame, PreferenceGame, zoo
from solvers import duality_gap, parse
from tests.strategies import divergences, random_game, random_policy, seeds, sizes


def objective(payoff, x, y, regularizer, tau, references):
    """J(x, y) = xᵀAy − τR(x, μ₁) + τR(y, μ₂)."""
    pulls = [regularizer.value(p, mu) for p, mu in zip((x, y), references, strict=True)]
    return np.exp(x) @ payoff @ np.exp(y) - tau * pulls[0] + tau * pulls[1]


@given(seeds, st.integers(1, 5), st.integers(1, 5), divergences, st.floats(0.05, 2))
def test_two_players(seed, m, n, regularizer, tau):
    game = MatrixGame(np.random.default_rng(seed).normal(size=(m, n)))
    x, y = random_policy(seed, m), random_policy(seed + 1, n)
    references = random_policy(seed + 2, m), random_policy(seed + 3, n)
    up = regularizer.best_response(game.payoff @ np.exp(y), references[0], tau)
    down = regularizer.best_response(-game.payoff.T @ np.exp(x), references[1], tau)
    best = objective(game.payoff, up, y, regularizer, tau, references)
    worst = objective(game.payoff, x, down, regularizer, tau, references)
    gap = duality_gap(game, x, y, regularizer, tau, references)
    # Rounding of R, which references of e^-20 make large: f(u) = u³ at worst.
    scale = max(
        1.0, *(regularizer.value(p, mu) for p, mu in ((x, references[0]), (y, references[1])))
    )
    assert gap == pytest.approx(best - worst, abs=1e-12 * scale, rel=1e-10)


@given(seeds, sizes, divergences, st.floats(0.05, 2))
def test_self_play_is_two_players_who_play_the_same(seed, n, regularizer, tau):
    game, x, mu = random_game(seed, n), random_policy(seed, n), random_policy(seed + 1, n)
    alone = duality_gap(game, x, None, regularizer, tau, mu)
    assert alone == pytest.approx(duality_gap(game, x, x, regularizer, tau, mu), rel=1e-10)
    table = MatrixGame(game.payoff)
    assert alone == pytest.approx(duality_gap(table, x, x, regularizer, tau, (mu, mu)), rel=1e-9)


@given(seeds, sizes)
def test_without_a_regularizer_it_is_twice_the_best_win_rate_over_a_half(seed, n):
    game, x = random_game(seed, n), random_policy(seed, n)
    rates = game.payoff @ np.exp(x)
    assert duality_gap(game, x) == pytest.approx(2 * (rates.max() - 0.5), abs=1e-15)


def test_batches_and_default_references():
    game = PreferenceGame(np.stack([random_game(seed, 4).payoff for seed in range(3)]))
    x = np.stack([random_policy(seed, 4) for seed in range(3)])
    uniform = np.full(4, -np.log(4))
    for regularizer, tau in ((None, 0.0), (parse("js"), 0.2)):
        gaps = duality_gap(game, x, None, regularizer, tau)
        for i in range(3):
            one = PreferenceGame(game.payoff[i])
            assert gaps[i] == duality_gap(one, x[i], None, regularizer, tau, uniform)


def test_it_is_one_product_and_no_second_table():
    game = random_game(0, 1000)
    x = random_policy(1, 1000)
    tracemalloc.start()
    duality_gap(game, x, None, parse("reverse_kl"), 0.1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.05 * game.payoff.nbytes


def test_a_zero_sum_gap_needs_both_policies():
    with pytest.raises(TypeError, match="opponent's policy"):
        duality_gap(zoo.get("blotto"), random_policy(0, 21))
