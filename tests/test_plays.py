"""A sample is a measure: what sampled Plays say in expectation, by enumeration of all draws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from games import InputError
from solvers import Plays, get_rule, step
from solvers.rules import current_opponent
from tests.enumeration import equilibrium, given_response, order, sampled_plays, zero
from tests.strategies import random_game, random_policy, seeds

N = 3
GAME, PI, MU = random_game(3, N), random_policy(4, N), random_policy(5, N)


@given(seeds, st.sampled_from([2, 3, 5]))
def test_a_round_robin_is_unbiased_without_own_entries(seed, k):
    payoff, pi, mu = random_game(seed, N).payoff, random_policy(seed + 1, N), random_policy(0, N)
    win_rate = payoff @ np.exp(pi)
    plays, y, probability = sampled_plays(payoff, pi, mu, k)
    assert given_response(plays.against(plays.other.weights), y, probability, pi) == pytest.approx(
        win_rate, abs=1e-12
    )
    plays, y, probability = sampled_plays(payoff, pi, mu, k, "include")
    assert given_response(plays.against(plays.other.weights), y, probability, pi) == pytest.approx(
        (k - 1) / k * win_rate + 0.5 / k, abs=1e-12
    )


def test_a_mixture_on_exact_plays_is_the_policy_itself():
    plays = Plays.exact(GAME.payoff, PI, MU)
    mixture = np.exp(PI) ** 0.7 * np.exp(MU) ** 0.3
    mixture /= mixture.sum()
    assert np.exp(plays.own.mixture(0.3)) == pytest.approx(mixture, abs=1e-14)
    assert plays.other.weights_of(plays.other.mixture(0.3)) == pytest.approx(mixture, abs=1e-14)


def test_self_normalized_importance_weights_are_biased_at_one_over_k():
    exact = Plays.exact(GAME.payoff, PI, MU)
    target = exact.against(exact.other.weights_of(exact.other.mixture(0.5)))
    sizes, bias = [8, 16, 32, 64], []
    for k in sizes:
        plays, y, probability = sampled_plays(GAME.payoff, PI, MU, k)
        wins = plays.against(plays.other.weights_of(plays.other.mixture(0.5)))
        bias.append(np.abs(given_response(wins, y, probability, PI) - target).max())
    # The next order, 1/K², is a few percent at these K.
    assert order(sizes, bias) == pytest.approx(-1, abs=0.1)


def balanced(name: str, regularizer: str, tau: float):
    """The rule; Nash-MD against π_t, since its mixed opponent has a bias of its own."""
    rule = get_rule(name, tau=tau, regularizer=regularizer)
    return replace(rule, opponent=current_opponent) if name == "nash_md" else rule


def drift(rule, logp, k: int, diagonal):
    """(n,): where the proximal step of K samples moves π in expectation, in units of η."""
    plays, y, probability = sampled_plays(GAME.payoff, logp, MU, k, diagonal)
    moved = given_response(step(rule(plays), plays) - plays.own.logp, y, probability, logp)
    return (moved - np.exp(logp) @ moved) / rule.eta


@pytest.mark.parametrize("diagonal", ["exclude", "include"])
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize(
    ("name", "regularizer"),
    [
        ("gmmd", "reverse_kl"),
        ("gmmd", "chi2"),
        ("gmmd", "entropy"),
        ("gmmd", "0.5*js+0.2*forward_kl"),
        ("omd", "reverse_kl"),
        ("omd", "hellinger"),
        ("nash_md", "reverse_kl"),
    ],
)
def test_a_step_on_samples_aims_at_the_temperature_asked_for(name, regularizer, k, diagonal):
    """At the equilibrium at τ nothing moves in expectation, up to O(η)."""
    aim, etas = equilibrium(GAME.payoff, MU, regularizer, 0.3), [0.1, 0.05, 0.025]
    rules = [replace(balanced(name, regularizer, 0.3), eta=eta) for eta in etas]
    moved = [np.abs(drift(rule, aim, k, diagonal)).max() for rule in rules]
    # Next order: η again. A pull that is left at (K − 1)/K of its size moves by a constant.
    assert order(etas, moved) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_fixed_point_in_expectation_is_that_of_tau(k):
    """And not that of (K − 1)/K τ, at which a step aims that centers R but not the payoffs."""
    rule = replace(balanced("gmmd", "reverse_kl", 0.3), eta=1e-3)
    aim = equilibrium(GAME.payoff, MU, "reverse_kl", 0.3)
    other = equilibrium(GAME.payoff, MU, "reverse_kl", 0.3 * (k - 1) / k)
    rest = zero(lambda logp: drift(rule, logp, k, "exclude"), aim)
    # O(η/K), with a constant below 1 here.
    assert np.abs(rest - aim).max() < 1e-3 / k
    assert np.abs(rest - other).max() > 0.02


def test_spin_samples_carry_the_data_first():
    logp = np.tile(PI, (4, 1))
    plays = Plays.with_data(logp, logp, data=1)
    assert np.exp(plays.own.logp_data) == pytest.approx(np.tile([1, 0, 0], (4, 1)))
    assert np.exp(plays.own.logp_average) == pytest.approx(np.tile([0, 0.5, 0.5], (4, 1)))
    with pytest.raises(InputError, match="payoffs"):
        plays.against(plays.own.weights)
    for data in (0, 3):
        with pytest.raises(InputError, match="SPIN needs"):
            Plays.with_data(logp, logp, data)


def test_refusals():
    with pytest.raises(InputError, match="choose 'exclude' or 'include'"):
        Plays.sampled(GAME.payoff, PI, MU, "skip")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="at least 2"):
        Plays.sampled(GAME.payoff[:1, :1], PI[:1], MU[:1])
