"""What the theorems promise: constants, the largest safe step, predicted against measured."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from games import MatrixGame, PreferenceGame, SaddlePointGame, SkewGame, zoo
from games.errors import InputError
from solvers import get_rule, parse, solve
from solvers.arrays import against
from solvers.equilibrium import equilibrium
from solvers.rates import (
    largest_step,
    lipschitz,
    modulus,
    no_regret_step,
    predicted_kl,
    predicted_rate,
    theory_step,
    with_step_size,
)
from tests.strategies import (
    games_with_reference,
    random_policy,
    seeds,
    strongly_convex,
    temperatures,
)

UNIFORM = np.full(3, -math.log(3))


@given(games_with_reference(), seeds)
def test_lipschitz_is_the_smallest_constant(case, seed):
    game, ref = case
    lip = lipschitz(game)
    change = np.exp(ref) - np.exp(random_policy(seed, game.n))
    moved = np.abs(against(game.payoff, change)).max()
    # Rounding of sums of at most 7 numbers of order 1.
    assert moved <= lip * np.abs(change).sum() + 1e-14
    i = np.argmax(game.payoff.max(axis=-1) - game.payoff.min(axis=-1))
    vertices = np.eye(game.n)[[np.argmax(game.payoff[i]), np.argmin(game.payoff[i])]]
    attained = against(game.payoff, vertices[0] - vertices[1])[i] / 2
    assert attained == pytest.approx(lip, abs=1e-15)


def test_lipschitz_is_blind_to_constants_and_scales():
    rps = zoo.rock_paper_scissors()
    assert lipschitz(rps) == 0.5
    assert lipschitz(SkewGame(2 * rps.payoff - 1)) == 1.0
    assert lipschitz(PreferenceGame(np.full((3, 3), 0.5))) == 0


def test_the_largest_step_by_hand():
    # Forward KL with μ = (0.2, 0.3, 0.5) has m = 2√0.06; L = ½: τm/L² = 0.8√0.06 at τ = 0.1.
    rule = get_rule("gmmd", tau=0.1, regularizer="forward_kl")
    ref = np.log([0.2, 0.3, 0.5])
    # The modulus comes from a minimizer that stops at 1e-9 in its argument.
    assert largest_step(rule, zoo.rock_paper_scissors(), ref) == pytest.approx(
        0.8 * math.sqrt(0.06), rel=1e-9
    )
    assert theory_step(rule, zoo.rock_paper_scissors(), ref).eta == largest_step(
        rule, zoo.rock_paper_scissors(), ref
    )


@pytest.mark.parametrize("size", [1e150, 1e160, 1e300])
def test_steps_for_payoffs_whose_square_is_no_number(size: float):
    """τm/L² where it is a number; else the no-regret step, which has the units of 1/payoff."""
    game = MatrixGame(size * np.array([[3.0, -1, 2], [-2, 4, 1]]))
    reference = np.log(np.full(2, 1 / 2)), np.log(np.full(3, 1 / 3))
    rule = get_rule("mmd", tau=0.1)
    if size < 1e155:
        expected = 0.1 / (3 * size) / (3 * size)  # L = (4 + 2)/2 of that size
        assert largest_step(rule, game, reference) == pytest.approx(expected)
    else:
        with pytest.raises(InputError, match=r"too small to compute with at τ = 0.1"):
            largest_step(rule, game, reference)
        step = with_step_size(rule, game, reference, 100).eta
        assert step == pytest.approx(no_regret_step(game, 100))
        for solution in (solve(game, "mmd", tau=0.1, steps=100), solve(game, "mpo", steps=100)):
            assert solution.status in ("max_steps", "converged")
    # A step that is too large for the theorem has no rate.
    assert predicted_rate(replace(rule, eta=1.0), game, reference) is None


def test_no_largest_step_without_strong_convexity_or_payoffs():
    chi2 = get_rule("gmmd", tau=0.1, regularizer="chi2")
    with pytest.raises(InputError, match="m = 0"):
        largest_step(chi2, zoo.rock_paper_scissors(), UNIFORM)
    flat = PreferenceGame(np.full((3, 3), 0.5))
    with pytest.raises(InputError, match="L = 0"):
        largest_step(get_rule("mmd", tau=0.1), flat, UNIFORM)


def test_rate_by_hand_and_where_there_is_none():
    game = zoo.rock_paper_scissors()
    mmd = get_rule("mmd", tau=0.2, eta=0.8)  # 0.8 = τ/L²
    assert predicted_rate(mmd, game, UNIFORM) == pytest.approx(1 / 1.16, abs=1e-15)
    assert predicted_rate(get_rule("mmd", tau=0.2, eta=0.81), game, UNIFORM) is None
    assert (
        predicted_rate(get_rule("gmmd", tau=0.2, eta=0.1, regularizer="chi2"), game, UNIFORM)
        is None
    )
    for name in ("mwu", "omd", "nash_md"):
        assert predicted_rate(get_rule(name, eta=0.1), game, UNIFORM) is None
    assert predicted_rate(get_rule("smooth_fictitious_play", tau=0.2), game, UNIFORM) is None


def test_without_payoffs_any_step_has_its_rate():
    flat = PreferenceGame(np.full((3, 3), 0.5))
    rule = get_rule("mmd", tau=0.5, eta=100.0)
    assert predicted_rate(rule, flat, UNIFORM) == pytest.approx(1 / 51, abs=1e-15)


@given(games_with_reference(), strongly_convex, temperatures, seeds)
@settings(max_examples=30)
def test_measured_stays_below_predicted(case, regularizer, tau, seed):
    game, ref = case
    rule = theory_step(get_rule("gmmd", tau=tau, regularizer=regularizer), game, ref)
    star = equilibrium(game, regularizer, tau, ref).logp
    start = random_policy(seed, game.n)
    solution = solve(game, rule, steps=20, tol=0, start=start, reference=ref, equilibrium=star)
    kl, steps = solution.history.kl, solution.history.steps
    predicted = predicted_kl(rule, game, ref, kl[0], steps)
    # The equilibrium is known to a gap of 1e-12, its KL to about the same over τm.
    assert np.all(kl <= predicted * (1 + 1e-9) + 1e-11 / (tau * modulus(rule, ref)))


@given(st.integers(1, 10_000))
def test_no_regret_step_minimizes_its_bound(steps):
    game = zoo.rock_paper_scissors()
    eta = no_regret_step(game, steps)

    def bound(eta: float) -> float:
        return math.log(3) / (eta * steps) + eta / 8

    assert bound(eta) <= min(bound(0.99 * eta), bound(1.01 * eta))


def test_saddle_point_has_the_spectral_norm():
    game = SaddlePointGame(0.3)
    # [[−α, −1], [1, −α]] stretches every vector by √(1 + α²).
    assert lipschitz(game) == pytest.approx(math.hypot(1, 0.3), abs=1e-15)


def test_a_schedule_or_number_is_left_as_it_is():
    rule = get_rule("gmmd", eta=0.3)
    assert with_step_size(rule, zoo.rock_paper_scissors(), UNIFORM, 10) is rule


def test_modulus_of_unregularized_rules_is_zero():
    assert modulus(get_rule("mwu"), UNIFORM) == 0
    assert modulus(get_rule("gmmd", regularizer=parse("entropy")), UNIFORM) == 1
