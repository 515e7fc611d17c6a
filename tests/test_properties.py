"""The theorems, as properties of random games: fixed points, gaps, rates, cycles."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from games import DataGame, MatrixGame, zoo
from solvers import Plays, Status, duality_gap, get_rule, parse, solve, step
from solvers.arrays import normalize
from solvers.equilibrium import equilibrium
from solvers.loop import kl_divergence, spin_target
from solvers.plays import memory_fields
from solvers.rates import (
    lipschitz,
    modulus,
    no_regret_step,
    predicted_kl,
    predicted_rate,
    theory_step,
)
from solvers.rules import RULES
from solvers.theory import harmonic
from tests.strategies import (
    divergences,
    games,
    games_with_reference,
    random_game,
    random_policy,
    seeds,
    sizes,
    strongly_convex,
    temperatures,
)

RPS = zoo.get("rps")


@given(games_with_reference(), divergences, temperatures, st.floats(0.01, 2))
def test_the_regularized_equilibrium_is_a_fixed_point(game_and_mu, regularizer, tau, eta):
    """Of GMMD, optimistic or with a half step, and of smooth fictitious play; of OMD where π* has
    no zeros.
    """
    game, mu = game_and_mu
    star = equilibrium(game, regularizer, tau, mu).logp
    plays = Plays.exact(game.payoff, star, mu, logp_average=star, logp_previous=star)
    for name in ("gmmd", "optimistic_gmmd", "egpo", "smooth_fictitious_play", "omd"):
        rule = replace(RULES[name], regularizer=regularizer, tau=tau)
        if name == "omd" and not np.isfinite(star).all():
            continue
        rule = rule if rule.eta == math.inf else replace(rule, eta=eta)
        moved = np.exp(step(rule(plays), plays))
        # π* itself is known to a gap of 1e-12, that is to √(1e-12/τm) at worst where m is small.
        assert moved == pytest.approx(np.exp(star), abs=1e-6), name


@given(games_with_reference(), temperatures, st.floats(0.05, 0.9))
def test_reverse_kl_fixed_points(game_and_mu, tau, share):
    game, mu = game_and_mu
    star = equilibrium(game, parse("reverse_kl"), tau, mu).logp
    plays = Plays.exact(game.payoff, star, mu, logp_average=star, logp_geometric=star)
    for name in ("mmd", "inpo", "mnpo"):
        rule = get_rule(name, tau=tau, eta=share / tau)
        # 1e-12 in the gap is at most 1e-6 in KL^½ (Pinsker), in practice rounding.
        assert step(rule(plays), plays) == pytest.approx(star, abs=1e-8), name


@given(games(), st.floats(0.05, 5))
def test_mwu_rests_at_the_unregularized_equilibrium(game, eta):
    star = equilibrium(game).logp
    plays = Plays.exact(game.payoff, star, np.full(game.n, -math.log(game.n)))
    # All played actions win the same to 1e-12, times η.
    assert np.exp(step(get_rule("mwu", eta=eta)(plays), plays)) == pytest.approx(
        np.exp(star), abs=1e-11
    )


def test_nash_md_with_a_constant_step_rests_elsewhere():
    """At a distance that is O(η) (KL: O(η²)), where MMD rests at the equilibrium."""
    game, mu, tau = random_game(3, 4), random_policy(4, 4), 0.5
    star = equilibrium(game, parse("reverse_kl"), tau, mu).logp
    etas = np.array([0.4, 0.2, 0.1, 0.05, 0.025])
    rests = [
        solve(game, "nash_md", tau=tau, eta=eta, reference=mu, steps=4000, tol=0).policy
        for eta in etas
    ]
    distance = [np.abs(rest - np.exp(star)).sum() for rest in rests]
    order = np.polyfit(np.log(etas), np.log(distance), 1)[0]
    assert order == pytest.approx(1, abs=0.1)  # the next order bends the fit by a few per cent
    assert distance[0] > 1e-3


@given(games(), seeds, divergences, temperatures)
def test_the_gap_is_not_negative(game, seed, regularizer, tau):
    logp = random_policy(seed, game.n)
    assert duality_gap(game, logp) >= -1e-14
    assert (
        duality_gap(game, logp, None, regularizer, tau, random_policy(seed + 1, game.n)) >= -1e-13
    )


@given(games_with_reference(), divergences, temperatures, seeds)
def test_the_gap_vanishes_only_at_the_equilibrium(game_and_mu, regularizer, tau, seed):
    game, mu = game_and_mu
    star = equilibrium(game, regularizer, tau, mu)
    assert abs(duality_gap(game, star.logp, None, regularizer, tau, mu)) <= 1e-12
    elsewhere = random_policy(seed, game.n)
    assume(np.abs(np.exp(elsewhere) - star.policy).max() > 0.05)
    assert duality_gap(game, elsewhere, None, regularizer, tau, mu) > 1e-7


@given(games_with_reference(), strongly_convex, st.floats(0.05, 2), seeds, st.floats(0.05, 1))
def test_gmmd_contracts_at_the_rate_of_the_theorem(game_and_mu, regularizer, tau, seed, part):
    """KL(π*‖π_{t+1}) ≤ KL(π*‖π_t)/(1 + ητm) for η ≤ τm/L², with each R's own modulus m."""
    game, mu = game_and_mu
    assume(lipschitz(game) > 1e-3)
    m = regularizer.modulus(mu)
    assume(tau * m > 1e-4)
    star = equilibrium(game, regularizer, tau, mu).logp
    eta = part * tau * m / lipschitz(game) ** 2
    logp, rule = (
        random_policy(seed, game.n),
        get_rule("gmmd", tau=tau, eta=eta, regularizer=regularizer),
    )
    for _ in range(3):
        before = kl_divergence(star, logp)
        plays = Plays.exact(game.payoff, logp, mu)
        logp = step(rule(plays), plays)
        # KL below 1e-9 is at the accuracy of π*.
        assert kl_divergence(star, logp) <= before / (1 + eta * tau * m) + 1e-9


@given(games_with_reference(), strongly_convex, st.floats(0.05, 2), seeds, st.floats(0.05, 1))
def test_a_half_step_allows_steps_of_one_over_l(game_and_mu, regularizer, tau, seed, part):
    """EGPO: KL(π*‖π_{t+1}) ≤ KL(π*‖π_t)/(1 + ητm) for η ≤ 1/L, however small τ is (PAPERS.md)."""
    game, mu = game_and_mu
    assume(lipschitz(game) > 1e-3)
    m = regularizer.modulus(mu)
    assume(tau * m > 1e-4)
    star = equilibrium(game, regularizer, tau, mu).logp
    rule = get_rule("egpo", tau=tau, eta=part / lipschitz(game), regularizer=regularizer)
    logp, rate = random_policy(seed, game.n), 1 / (1 + rule.eta_at(0) * tau * m)
    assert predicted_rate(rule, game, mu) == pytest.approx(rate)
    for _ in range(3):
        before = kl_divergence(star, logp)
        plays = Plays.exact(game.payoff, logp, mu)
        logp = step(rule(plays), plays)
        # KL below 1e-9 is at the accuracy of π*.
        assert kl_divergence(star, logp) <= before * rate + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_a_half_step_in_a_zero_sum_game(seed):
    """Both players look ahead: the sum of their KL falls by 1/(1 + ητ) a step, η = 1/L."""
    rng = np.random.default_rng(seed)
    game = MatrixGame(rng.normal(size=(3, 5)))
    star = equilibrium(game, parse("reverse_kl"), 0.2)
    both = (star.logp, star.opponent_logp)
    run = solve(game, "egpo", tau=0.2, steps=60, tol=0, equilibrium=both)
    rate = 1 / (1 + run.rule.eta_at(0) * 0.2)
    assert run.rule.eta_at(0) == pytest.approx(1 / lipschitz(game))
    # KL below 1e-9 is at the accuracy of π*.
    assert np.all(run.history.kl[1:] <= run.history.kl[:-1] * rate + 1e-9)


@pytest.mark.parametrize("name", ["optimistic_mwu", "egpo"])
def test_last_iterates_reach_the_plain_equilibrium(name):
    """Linearly (Wei et al. 2021), where those of MWU leave it at every step."""
    options = {"start": random_policy(7, 3), "steps": 600, "tol": 0}
    options["equilibrium"] = np.full(3, -math.log(3))
    rule = get_rule(name, eta=0.5, **({"tau": 0} if name == "egpo" else {}))
    kl, steps = (h := solve(RPS, rule, **options).history).kl, h.steps
    late = (kl < 1e-3) & (kl > 1e-20)  # below, π* itself is rounded
    slope, intercept = np.polyfit(steps[late], np.log(kl[late]), 1)
    # Near uniform the softmax of RPS turns by iω, ω = √3/6 · η; KL is the square of the distance.
    i_omega = 1j * math.sqrt(3) / 6 * 0.5
    modes = {"egpo": [1 + i_omega * (1 + i_omega)]}
    modes["optimistic_mwu"] = np.roots([1, -1 - 2 * i_omega, i_omega])
    expected = 2 * np.log(np.abs(modes[name]).max())
    assert slope == pytest.approx(expected, rel=2e-3)  # the next order at KL = 1e-3
    assert kl[-1] < 2e-7
    assert np.abs(np.log(kl[late]) - intercept - slope * steps[late]).max() < 0.01  # straight
    away = solve(RPS, "mwu", eta=0.5, **options).history.kl
    assert away[-1] > away[0]


@pytest.mark.parametrize("name", ["mpo", "comal"])
def test_a_moving_magnet_reaches_the_plain_equilibrium(name):
    """Where a magnet at rest leaves it at the regularized equilibrium."""
    game, mu = zoo.get("biased_rps"), random_policy(0, 3)
    star = equilibrium(game).logp
    options = {"tau": 0.3, "reference": mu, "tol": 1e-7, "equilibrium": star}
    moving = solve(game, name, magnet_every=10, steps=20_000, **options)
    resting = solve(game, "mmd", steps=2000, **options)
    assert moving.status is Status.CONVERGED
    assert moving.history.kl[-1] < 1e-8
    assert kl_divergence(star, resting.logp) > 0.01


def test_a_magnet_that_moves_at_every_step_is_none():
    """μ = π_t: MMD is MWU with the step η/(1 + ητ), INPO is MWU."""
    game, mu = random_game(3, 4), random_policy(4, 4)
    options = {"steps": 7, "tol": 0, "reference": mu}
    mpo = solve(game, "mpo", magnet_every=1, tau=0.5, eta=0.4, **options)
    assert mpo.logp == pytest.approx(solve(game, "mwu", eta=0.4 / 1.2, **options).logp, abs=1e-13)
    comal = solve(game, "comal", magnet_every=1, tau=0.5, eta=0.4, **options)
    assert comal.logp == pytest.approx(solve(game, "mwu", eta=0.4, **options).logp, abs=1e-13)


@pytest.mark.parametrize("name", ["mpo", "comal", "mnpo", "alpha_spin", "optimistic_mwu"])
def test_solve_remembers_what_the_rule_says(name):
    """Iterates as `magnet` and `remembered` number them, played one by one."""
    rule = get_rule(name)
    if rule.magnet_every is not None:
        rule = replace(rule, magnet_every=3)
    elif rule.needs != ("previous",):
        rule = replace(rule, memory=3)
    rule = replace(rule, eta=0.7)
    game, mu, data = random_game(3, 4), random_policy(4, 4), random_policy(5, 4)
    played = DataGame(np.exp(data)) if rule.needs_data else game
    run = solve(played, rule, steps=8, tol=0, reference=mu, keep_policies=True)
    iterates = [mu]
    for t in range(8):
        past = [iterates[s] for s in rule.remembered(t)]
        plays = Plays.exact(
            None if rule.needs_data else game.payoff,
            iterates[t],
            iterates[rule.magnet(t)],
            **memory_fields(past),
            logp_previous=iterates[max(t - 1, 0)],
            logp_data=data,
        )
        iterates.append(step(rule(plays, t), plays))
    assert run.history.logp == pytest.approx(np.array(iterates), abs=1e-12)


def test_dpo_maximizes_the_reward_of_a_bradley_terry_game():
    """In one step, whatever the divergence; with a moving reference on to the best action."""
    rewards, mu = np.random.default_rng(0).normal(size=5), random_policy(1, 5)
    game = zoo.bradley_terry(rewards)
    for regularizer in ("reverse_kl", "chi2", "js"):
        R = parse(regularizer)
        run = solve(game, "dpo", tau=0.7, regularizer=R, reference=mu, steps=1, tol=0)
        assert run.logp == pytest.approx(R.best_response(rewards, mu, 0.7), abs=1e-11)
    run = solve(game, "moving_dpo", eta=0.5, reference=mu, steps=400, tol=1e-9)
    assert run.policy.argmax() == rewards.argmax()
    assert run.gap <= 1e-9


@given(games_with_reference(), st.floats(0.05, 2))
def test_nash_md_obeys_its_bound(game_and_mu, tau):
    """KL(π*‖π_T) ≤ 8/(τ²(T + 1)) under η_t = 2/(τ(t + 2)) (Munos et al., Thm 1)."""
    game, mu = game_and_mu
    star = equilibrium(game, parse("reverse_kl"), tau, mu).logp
    run = solve(game, "nash_md", tau=tau, reference=mu, steps=60, tol=0, equilibrium=star)
    bound = predicted_kl(run.rule, game, mu, run.history.kl[0], run.history.steps)
    assert np.all(run.history.kl[1:] <= bound[1:])
    assert bound[1] == pytest.approx(8 / (2 * tau**2))


@given(games_with_reference(), st.floats(0.05, 2))
def test_inpo_obeys_its_bound(game_and_mu, tau):
    """KL(π*‖π_T) ≤ 32C²/(τ²(T + 1)), C = max(Bτ, 1), |log π_t/μ| ≤ B (INPO, Theorem 4)."""
    game, mu = game_and_mu
    star = equilibrium(game, parse("reverse_kl"), tau, mu).logp
    run = solve(
        game, "inpo", tau=tau, eta=harmonic(tau, 3), reference=mu, steps=60, tol=0,
        equilibrium=star, keep_policies=True,
    )  # fmt: skip
    widest = max(np.abs(run.history.logp - mu).max(), np.abs(star - mu).max())
    c = max(widest * tau, 1.0)
    t = run.history.steps + 1  # their π_1 is π_ref
    assert np.all(run.history.kl <= 32 * c**2 / (tau**2 * (t + 1)))


def test_mwu_moves_away_while_its_average_approaches():
    start = random_policy(7, 3)
    star = np.full(3, -math.log(3))
    run = solve(RPS, "mwu", eta=0.1, start=start, steps=4000, tol=0, equilibrium=star)
    kl, steps = run.history.kl, run.history.steps
    assert np.all(np.diff(kl) > 0)  # every step leads away from the equilibrium
    # Regret: gap of the average ≤ 2(log(n)/(ηT) + ηL²/2), here with KL(π*‖start) for log n.
    bound = 2 * (kl[0] + 2) / (0.1 * np.maximum(steps, 1)) + 0.1
    assert np.all(run.history.average_gap <= bound)
    assert run.history.average_gap[-1] < 0.2 * run.history.average_gap[0]
    assert run.gap > 5 * run.average_gap


@given(games())
def test_the_average_of_mwu_has_no_regret(game):
    """Gap of the average ≤ 2·b√(log n/(2T)) with payoffs in a range b (Freund & Schapire)."""
    steps = 200
    eta = no_regret_step(game, steps)
    run = solve(game, "mwu", eta=eta, steps=steps, tol=0)
    spread = 2 * lipschitz(game)
    # The average over π_0..π_T has one more term, worth at most 2b/T.
    assert run.average_gap <= 2 * spread * math.sqrt(math.log(game.n) / (2 * steps)) + (
        2 * spread / steps
    )


@settings(max_examples=15)  # 2000 steps each
@given(seeds, st.integers(2, 5))
def test_fictitious_plays_average_converges(seed, n):
    """Robinson: the average does. The best responses jump wherever no pure equilibrium exists."""
    game = random_game(seed, n)
    wins = game.payoff - 0.5 + np.eye(n)
    pure = bool(np.any(np.all(wins > 0, axis=1)))
    run = solve(game, "fictitious_play", steps=2000, tol=0, keep_policies=True)
    # Seen like T^-½: far below Robinson's proven T^(-1/(2n-2)).
    assert run.average_gap <= 0.05
    late = run.history.logp[run.history.steps > 200].argmax(axis=-1)
    assert pure == (len(np.unique(late)) == 1)


@settings(max_examples=25)  # 800 steps each
@given(seeds, sizes, st.floats(0.5, 1.0), st.sampled_from([1, 2]), st.floats(0.1, 0.8))
def test_alpha_spin_is_stable_above_its_threshold(seed, n, alpha, memory, excess):
    """From near its fixed point, h = 1 returns for β > 1/(1+α) and h = 2 for β > ½, else leaves."""
    data, base = random_policy(seed, n), random_policy(seed + 1, n)
    threshold = 1 / (1 + alpha) if memory == 1 else 0.5
    for beta, stable in ((threshold * (1 + excess), True), (threshold / (1 + excess), False)):
        rule = get_rule("alpha_spin", alpha=alpha, memory=memory, eta=1 / beta)
        target = spin_target(rule, data, base)
        near = normalize(target + 1e-3 * np.random.default_rng(seed).normal(size=n))
        # The slowest mode at 10 % from the threshold, 0.95 a step, falls by 1e-9 in 400.
        run = solve(DataGame(np.exp(data)), rule, start=near, reference=base, steps=400, tol=0)
        if stable:
            assert run.gap < 1e-12
        else:
            assert (
                run.status is Status.NON_FINITE or run.history.gap.max() > 100 * run.history.gap[0]
            )


@given(games())
def test_lipschitz_bounds_the_operator(game):
    """|P(π − π′)|_∞ ≤ L‖π − π′‖₁, attained, and blind to a constant."""
    rng = np.random.default_rng(0)
    p, q = rng.dirichlet(np.ones(game.n), size=(2, 50))
    moved = np.abs((p - q) @ game.payoff.T)
    assert np.all(moved.max(-1) <= lipschitz(game) * np.abs(p - q).sum(-1) + 1e-15)
    i = (game.payoff.max(-1) - game.payoff.min(-1)).argmax()
    pair = np.zeros(game.n)
    pair[game.payoff[i].argmax()], pair[game.payoff[i].argmin()] = 1, -1
    assert game.payoff[i] @ pair == pytest.approx(lipschitz(game) * 2, abs=1e-15)


def test_theory_steps():
    game, mu = random_game(0, 4), random_policy(1, 4)
    lip = lipschitz(game)
    forward = get_rule("gmmd", tau=0.3, regularizer="forward_kl")
    m = 2 * math.sqrt(np.prod(np.sort(np.exp(mu))[:2]))
    assert modulus(forward, mu) == pytest.approx(m)
    assert theory_step(forward, game, mu).eta == pytest.approx(0.3 * m / lip**2)
    nash = theory_step(get_rule("nash_md", tau=0.2), game, mu)
    assert nash.eta_at(0) == 5.0
    inpo = theory_step(get_rule("inpo", tau=0.2), game, mu)
    assert inpo.eta_at(0) == pytest.approx(10 / 3)
    assert predicted_kl(replace(forward, eta=10.0), game, mu, 1.0, [1]) is None
    assert predicted_kl(get_rule("mwu", eta=1.0), game, mu, 1.0, [1]) is None
