"""The loop: what it returns, records, refuses, and that it plays every kind of game."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from games import DataGame, InputError, MatrixGame, PreferenceGame, SaddlePointGame, SkewGame, zoo
from solvers import RULES, Plays, Status, duality_gap, get_rule, parse, saddle, solve, step
from solvers.loop import kl_divergence, spin_target
from tests.strategies import random_game, random_policy

SKEWED_RPS = random_policy(0, 3)
RPS = zoo.get("rps")


def test_the_loop_is_the_step_repeated():
    game, rule = random_game(1, 4), get_rule("gmmd", eta=0.5, tau=0.2, regularizer="js")
    mu = random_policy(2, 4)
    logp = random_policy(3, 4)
    solution = solve(game, rule, steps=7, tol=0, start=logp, reference=mu, keep_policies=True)
    iterates = [logp]
    for t in range(7):
        plays = Plays.exact(game.payoff, iterates[-1], mu)
        iterates.append(step(rule(plays, t), plays))
    assert np.array_equal(solution.logp, iterates[-1])
    assert np.array_equal(solution.history.logp, iterates)
    assert solution.average == pytest.approx(np.exp(iterates).mean(0), abs=1e-15)
    assert solution.history.steps.tolist() == list(range(8))
    gap = duality_gap(game, iterates[-1], None, rule.regularizer, 0.2, mu)
    assert solution.gap == solution.history.gap[-1] == gap


def test_batches_are_the_games_one_by_one():
    batch = zoo.random(4, np.random.default_rng(5), (3, 2))
    together = solve(batch, "gmmd", tau=0.3, eta=0.5, steps=20, tol=0)
    for i in np.ndindex(3, 2):
        alone = solve(PreferenceGame(batch.payoff[i]), "gmmd", tau=0.3, eta=0.5, steps=20, tol=0)
        assert together.logp[i] == pytest.approx(alone.logp, abs=1e-14)
        assert together.gap[i] == pytest.approx(alone.gap, abs=1e-14)
    assert together.gap.shape == together.average_gap.shape == (3, 2)


def test_statuses():
    converged = solve(RPS, "mmd", tau=0.5, start=SKEWED_RPS, tol=1e-9)
    assert converged.status is Status.CONVERGED
    assert converged.gap <= 1e-9
    assert converged.steps < 1000
    out_of_steps = solve(RPS, "mmd", tau=0.5, start=SKEWED_RPS, tol=0, steps=converged.steps)
    assert out_of_steps.status is Status.MAX_STEPS
    assert np.array_equal(out_of_steps.logp, converged.logp)
    blown = solve(RPS, "omd", tau=1.0, eta=1e3, start=SKEWED_RPS, steps=1000)
    assert blown.status is Status.NON_FINITE
    assert np.isfinite(blown.logp).any()  # the last policy that still was one
    assert np.exp(blown.logp).sum() == pytest.approx(1)


def test_zero_steps_return_the_start():
    solution = solve(RPS, "mwu", eta=1.0, steps=0, start=SKEWED_RPS)
    assert solution.logp == pytest.approx(SKEWED_RPS, abs=1e-15)
    assert solution.status is Status.MAX_STEPS


def test_long_runs_are_recorded_sparsely():
    steps = solve(RPS, "mwu", eta=0.01, steps=5000, tol=0).history.steps
    assert steps[0] == 0
    assert steps[-1] == 5000
    assert np.diff(steps).max() <= 5000 / 64
    assert len(steps) < 600


def test_zero_sum_games_let_both_players_learn():
    game = MatrixGame([[3.0, -1.0], [-1.0, 2.0]])
    solution = solve(game, "gmmd", tau=0.3, steps=3000, tol=1e-13)
    assert solution.status is Status.CONVERGED
    x, y = solution.policy, solution.opponent_policy
    # The logit equilibrium, each player's answer to the other; √gap/τ bounds how far off it is.
    assert np.log(x[0] / x[1]) == pytest.approx((game.payoff @ y) @ [1, -1] / 0.3, abs=1e-5)
    assert np.log(y[0] / y[1]) == pytest.approx(-(x @ game.payoff) @ [1, -1] / 0.3, abs=1e-5)


def test_a_symmetric_game_is_a_zero_sum_game_of_two_equal_players():
    game, mu = random_game(4, 5), random_policy(6, 5)
    settings = {"tau": 0.1, "eta": 0.4, "steps": 30, "tol": 0}
    alone = solve(game, "gmmd", regularizer="hellinger", reference=mu, **settings)
    table = MatrixGame(game.payoff - 0.5)
    pair = solve(table, "gmmd", regularizer="hellinger", reference=(mu, mu), **settings)
    assert pair.logp == pytest.approx(alone.logp, abs=1e-13)
    assert pair.opponent_logp == pytest.approx(alone.logp, abs=1e-13)
    assert pair.gap == pytest.approx(alone.gap, abs=1e-13)


def test_the_step_by_theory_is_safe_for_both_players():
    game = MatrixGame([[0.9, 0.2], [0.1, 0.6]])
    even, uneven = np.log([0.5, 0.5]), np.log([0.99, 0.01])
    settings = {"regularizer": "forward_kl", "tau": 0.3, "eta": "theory", "steps": 0}
    pair = solve(game, "gmmd", reference=(even, uneven), **settings)
    assert pair.rule.eta == solve(game, "gmmd", reference=(uneven, even), **settings).rule.eta
    assert pair.rule.eta < solve(game, "gmmd", reference=(even, even), **settings).rule.eta


def test_equal_payoffs_leave_nothing_to_learn():
    game, mu = PreferenceGame(np.full((2, 2), 0.5)), np.log([0.3, 0.7])
    run = solve(game, "mwu", reference=mu, tol=0, steps=10)
    assert run.policy == pytest.approx(np.exp(mu), abs=1e-15)


def test_skew_games_are_in_their_own_units():
    game = random_game(7, 4)
    settings = {"eta": 0.3, "steps": 40, "tol": 0}
    plain = solve(game, "mmd", tau=0.2, **settings)
    skew = solve(SkewGame(10 * (game.payoff - 0.5)), "mmd", tau=2.0, eta=0.03, steps=40, tol=0)
    assert skew.logp == pytest.approx(plain.logp, abs=1e-12)
    assert skew.gap == pytest.approx(10 * plain.gap, abs=1e-12)


@pytest.mark.parametrize("name", ["mmd", "omd", "gmmd"])
def test_saddle_point(name):
    """The same rules on ℝ × ℝ rest at the regularized saddle, found by a linear solve."""
    game, mu = SaddlePointGame(alpha=1.0), np.array([0.2, -0.4])
    z = saddle.equilibrium(game, 0.5, mu)
    solution = solve(game, name, tau=0.5, eta=0.1, steps=1000, tol=0, reference=mu, equilibrium=z)
    assert solution.policy == pytest.approx(z, abs=1e-12)
    assert solution.gap == pytest.approx(0, abs=1e-24)
    assert saddle.equilibrium(game) == pytest.approx(np.concatenate(game.equilibrium), abs=1e-15)
    assert solution.history.kl[0] == pytest.approx(0.5 * ((z - mu) ** 2).sum(), abs=1e-15)


def test_saddle_gap_is_what_the_players_can_gain():
    game, tau, mu = SaddlePointGame(alpha=2.0), 0.3, np.array([0.2, -0.4])
    z, grid = np.array([0.7, 0.4]), np.linspace(-4, 4, 400_001)[:, None]

    def regularized(x, y):
        return game.f(x, y) + tau / 2 * ((x - mu[0]) ** 2 - (y - mu[1]) ** 2)[..., 0]

    best_y = regularized(z[:1], grid).max()
    best_x = regularized(grid, z[1:]).min()
    # A grid of spacing 2e-5 misses a parabola's top by (2e-5)².
    assert saddle.duality_gap(game, z, tau, mu) == pytest.approx(best_y - best_x, abs=1e-9)


def test_mirror_descent_on_the_plane_is_gradient_descent():
    game = SaddlePointGame(alpha=1.5)
    z = np.array([0.3, -0.2])
    solution = solve(game, "mwu", eta=0.1, steps=1, tol=0, start=z)
    dx, dy = game.gradient(z[:1], z[1:])
    assert solution.policy == pytest.approx(z + 0.1 * np.concatenate([-dx, dy]), abs=1e-15)


def test_spin_plays_a_data_distribution():
    data, base = np.exp(random_policy(8, 5)), random_policy(9, 5)
    solution = solve(DataGame(data), "spin", eta=0.5, reference=base, tol=1e-14)
    assert solution.status is Status.CONVERGED
    assert solution.policy == pytest.approx(data, abs=1e-6)
    mixed = solve(DataGame(data), "alpha_spin", alpha=0.6, eta=0.5, reference=base, tol=1e-14)
    target = spin_target(mixed.rule, np.log(data), base)
    assert mixed.policy == pytest.approx(np.exp(target), abs=1e-6)


def test_alpha_spin_remembers_as_algorithm_2_says():
    """h = 2: the mean of π_t and π_{t−1}, with π_{−1} = base; h = ∞: of π_1..π_t, base at first."""
    data, base = random_policy(10, 4), random_policy(11, 4)
    base_p = np.exp(base)
    for memory, opponents in [
        (2, lambda past: (past[-1] + ([base_p, *past])[-2]) / 2),
        (math.inf, lambda past: np.mean(past[1:], axis=0) if len(past) > 1 else past[0]),
    ]:
        past, logs = [base_p], [base]
        for _ in range(4):
            theta = 0.9 * logs[-1] + 0.1 * base + 0.5 * (data - np.log(opponents(past)))
            logs.append(theta - np.log(np.exp(theta).sum()))
            past.append(np.exp(logs[-1]))
        solution = solve(
            DataGame(np.exp(data)), "alpha_spin", alpha=0.9, eta=0.5, memory=memory, steps=4,
            tol=0, reference=base,
        )  # fmt: skip
        assert solution.logp == pytest.approx(logs[-1], abs=1e-13)


def test_a_rule_of_ones_own():
    """Steps against a blend of π_t and μ: no line of the loop knows of it."""
    blend = replace(
        RULES["gmmd"],
        name="blend",
        opponent=lambda plays, rule, eta: (plays.other.weights + np.exp(plays.other.logp_ref)) / 2,
    )
    solution = solve(RPS, blend, tau=0.5, eta=0.5, start=SKEWED_RPS)
    assert solution.policy == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_kl_divergence_with_zeros():
    assert kl_divergence(np.log([0.5, 0.5]), np.array([0.0, -np.inf])) == np.inf
    assert kl_divergence(np.array([0.0, -np.inf]), np.log([0.5, 0.5])) == pytest.approx(np.log(2))
    assert kl_divergence(np.array([0.0, -np.inf]), np.array([0.0, -np.inf])) == 0


def test_memory_stays_near_the_payoff():
    """No n × n temporary in the loop: at n = 700 vectors are below 1 % of the payoff."""
    game = random_game(12, 700)
    tracemalloc.start()
    solve(game, "gmmd", tau=0.1, eta=0.1, steps=3, tol=0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.1 * game.payoff.nbytes


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda: solve(RPS, "gmmd", steps=-1), "must not be negative"),
        (lambda: solve(RPS, "gmmd", tol=-1.0), "must not be negative"),
        (lambda: solve(RPS, "gmmd", reference=np.log([0.5, 0.5])), "has shape (2,)"),
        (lambda: solve(RPS, "gmmd", reference=np.array([0.5, 0.3, 0.2])), "log-probabilities"),
        (lambda: solve(RPS, "gmmd", reference=np.array([0.0, -np.inf, -np.inf])), "zeros"),
        (lambda: solve(RPS, "spin"), "needs a data distribution"),
        (lambda: solve(DataGame([0.5, 0.5]), "mwu"), "needs a game with payoffs"),
        (lambda: solve(RPS, "mwu", eta="theory"), "no step size by theory"),
        (lambda: solve(RPS, "gmmd", regularizer="chi2", eta="theory"), "(m = 0)"),
        (lambda: solve(PreferenceGame(np.full((2, 2), 0.5)), "mmd", eta="theory"), "(L = 0)"),
        (lambda: solve(MatrixGame([[1.0, 0.0]]), "mmd", reference=np.zeros(1)), "is a pair"),
        (lambda: solve(SaddlePointGame(1.0), "mwu"), "needs a step size"),
        (lambda: solve(SaddlePointGame(1.0), "gmmd", regularizer="js", eta=0.1), "on R^d use"),
    ],
)
def test_bad_input(call, hint):
    with pytest.raises(InputError) as error:
        call()
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_references_with_zeros_are_refused_but_starts_may_have_them():
    start = np.log([0.5, 0.5, 1.0]) + np.array([0, 0, -np.inf])
    stays = solve(RPS, "mwu", eta=1.0, steps=10, start=start)
    assert stays.logp[2] == -np.inf  # mirror steps never leave a face
    assert parse("reverse_kl").value(stays.logp, np.full(3, -np.log(3))) < np.log(3)


@pytest.mark.parametrize("scale", [1e-11, 1e-6, 1.0, 1e6])
def test_it_stops_at_the_same_policy_in_any_unit(scale):
    """η, τ and the gap have the units of the payoff, and so has the default tolerance."""
    skew = np.array([[0.0, 1.0, -2.0], [-1.0, 0.0, 3.0], [2.0, -3.0, 0.0]])
    game = SkewGame(scale * skew)
    found = solve(game, "egpo", tau=0.1 * scale, steps=500)
    expected = solve(SkewGame(skew), "egpo", tau=0.1, steps=500)
    assert found.status is Status.CONVERGED
    assert found.steps == expected.steps
    # Rounding of the scaled payoffs, over some hundred contracting steps.
    np.testing.assert_allclose(found.policy, expected.policy, atol=1e-12)
    absolute = solve(game, "egpo", tau=0.1 * scale, steps=500, tol=scale)
    assert absolute.steps < found.steps  # an explicit tolerance is an absolute gap


def test_a_negative_gap_is_an_error_of_arithmetic(monkeypatch):
    """Whatever its cause: it is not a converged policy."""
    for gap, status in ((-1e-6, Status.NON_FINITE), (-1e-12, Status.CONVERGED)):
        monkeypatch.setattr("solvers.loop.duality_gap", lambda *_, gap=gap: np.asarray(gap))
        assert solve(zoo.get("rps"), "gmmd", tau=0.1, eta=1.0).status is status
