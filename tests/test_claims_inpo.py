"""INPO's and Nash-MD's rows of the ledger: verdicts, broken rules, bounds on random games."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from solvers import Plays, duality_gap, get_rule, parse, step
from solvers.arrays import against, dot
from solvers.claims import Setting, Verdict, claims
from solvers.claims.inpo import regret
from solvers.claims.instances import Instances
from solvers.claims.ledger import trajectory
from solvers.equilibrium import equilibrium
from solvers.loop import kl_divergence
from solvers.rules import RULES, current_anchor
from solvers.theory import harmonic
from tests.strategies import games_with_reference, random_policy, seeds

MINE = {claim.name: claim for claim in claims() if claim.module in ("inpo", "nash_md")}
VERDICTS = dict.fromkeys(MINE, Verdict.HOLDS) | {
    "inpo.bounded_ratio": Verdict.UNCLEAR,
    "inpo.gradient_bound": Verdict.CORRECTED,
    "inpo.best_and_worst[noisy]": Verdict.FAILS,
    "inpo.best_and_worst[cyclic]": Verdict.FAILS,
    "nash_md.constant_step": Verdict.CORRECTED,
}
REVERSE_KL = parse("reverse_kl")
taus = st.floats(0.05, 5)


@pytest.mark.parametrize("name", MINE)
def test_verdict(name):
    found = MINE[name](Setting()).finding
    assert found.verdict is VERDICTS[name], found.evidence
    if found.verdict is not Verdict.HOLDS:
        assert found.counterexample
    if found.verdict in (Verdict.CORRECTED, Verdict.UNCLEAR):
        assert found.correction


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_verdicts_do_not_hang_on_the_seed(seed):
    for name, claim in MINE.items():
        assert claim(Setting(seed=seed)).finding.verdict is VERDICTS[name], name


def worse(plays, weights):
    return -plays.against(weights)


BROKEN = {
    "inpo": replace(RULES["inpo"], direction=worse),
    "nash_md": replace(RULES["nash_md"], anchor=current_anchor),
}


@pytest.mark.parametrize(
    "name",
    [
        "inpo.closed_form",
        "inpo.pair_identity",
        "inpo.unique_minimizer",
        "inpo.one_step",
        "inpo.last_iterate",
        "inpo.regret_bound",
        "inpo.average_gap",
        "nash_md.one_step",
        "nash_md.last_iterate",
        "nash_md.constant_step",
    ],
)
def test_a_broken_rule_fails(name):
    assert MINE[name](Setting(rules=BROKEN)).finding.verdict is Verdict.FAILS


def at(game_and_mu, seed, tau) -> Instances:
    game, mu = game_and_mu
    current, other = (random_policy(seed + k, game.n) for k in (1, 2))
    return Instances(game, current, other, mu, "", tau)


@given(games_with_reference(), seeds, taus)
def test_the_value_against_the_nash_policy(game_and_mu, seed, tau):
    """J(π*, π) = ½ + τKL(π‖π*), and the gap of π is at least twice the excess."""
    here = at(game_and_mu, seed, tau)
    excess = tau * kl_divergence(here.other, here.star)
    # π* has a gap of 1e-12: its logs are good to √1e-12 at worst, and KL is flat there.
    assert here.value(here.star, here.other) - 0.5 == pytest.approx(excess, rel=1e-6, abs=1e-9)
    assert here.gap(here.other) >= 2 * excess * (1 - 1e-6) - 1e-9


@given(games_with_reference(), seeds, taus, st.floats(0.1, 100))
def test_inpo_one_step(game_and_mu, seed, tau, share):
    """KL(π*, π_{t+1}) ≤ (1 − τ/η)KL(π*, π_t) + 8C²/η², η = share·τ (Theorem 4)."""
    here = at(game_and_mu, seed, tau)
    eta = share * tau
    after = step(get_rule("inpo", tau=tau, eta=1 / eta)(here.plays), here.plays)
    c = max(tau * np.abs(here.current - here.ref).max(), 1)
    star = here.star
    bound = (1 - tau / eta) * kl_divergence(star, here.current) + 8 * c**2 / eta**2
    assert kl_divergence(star, after) <= bound * (1 + 1e-9) + 1e-9


@given(games_with_reference(), seeds, taus, st.floats(0.01, 1))
def test_nash_md_one_step(game_and_mu, seed, tau, share):
    """KL(π*‖π_{t+1}) ≤ (1 − ητ)KL(π*‖π_t) + 2η², ητ = share (Munos et al., Theorem 1)."""
    here = at(game_and_mu, seed, tau)
    eta, star = share / tau, here.star
    after = step(get_rule("nash_md", tau=tau, eta=eta)(here.plays), here.plays)
    bound = (1 - share) * kl_divergence(star, here.current) + 2 * eta**2
    assert kl_divergence(star, after) <= bound * (1 + 1e-9) + 1e-9


@given(games_with_reference(), taus, st.floats(1, 20), st.integers(1, 40))
def test_omd_stays_within_one_over_tau(game_and_mu, tau, share, steps):
    """|log π_t/π_ref| ≤ 1/τ from π_1 = π_ref for η ≥ τ, and for π*: Assumption A needs no more."""
    game, mu = game_and_mu
    points = trajectory(get_rule("inpo", tau=tau, eta=1 / (share * tau)), game, mu, mu, steps)
    star = equilibrium(game, REVERSE_KL, tau, mu).logp
    assert max(np.abs(points - mu).max(), np.abs(star - mu).max()) <= (1 + 1e-9) / tau


@given(games_with_reference(), taus, st.integers(1, 60))
def test_omd_regret_and_the_gap_of_its_average(game_and_mu, tau, steps):
    """At most 1.5·C√(TD), with the η of Lemma 2, and 3·C√(D/T) (Theorem 3)."""
    game, mu = game_and_mu
    width = -mu.min()
    c = max(1.0, tau * math.sqrt(width / steps))
    rule = get_rule("inpo", tau=tau, eta=math.sqrt(width / steps) / c)
    points = trajectory(rule, game, mu, mu, steps - 1)
    p = np.exp(points)
    slopes = tau * (points - mu + 1) - against(game.payoff, p)
    linear = dot(p, slopes).sum() - slopes.sum(axis=0).min()
    bound = 1.5 * c * math.sqrt(steps * width)
    assert linear <= bound
    assert regret(points, game, tau, mu) <= linear + 1e-9  # convexity of the losses
    average = np.log(p.mean(axis=0))
    assert duality_gap(game, average, None, REVERSE_KL, tau, mu) <= 2 * bound / steps


@given(games_with_reference(), taus)
def test_the_schedules_from_either_first_step(game_and_mu, tau):
    """Theorem 4 of INPO with C = 1, counted from t = 0 or 1."""
    game, mu = game_and_mu
    star, t = equilibrium(game, REVERSE_KL, tau, mu).logp, np.arange(1, 42)
    for first in (2, 3):
        points = trajectory(get_rule("inpo", tau=tau, eta=harmonic(tau, first)), game, mu, mu, 40)
        assert np.all(kl_divergence(star, points) <= 32 / (tau**2 * (t + 1)))


def test_nash_md_rests_where_its_row_says():
    """τ log π/μ = P(y≻π^μ) + const at the rest of a constant step."""
    here = replace(Instances.of(Setting(), count=1, n=4), tau=0.5)
    eta = 0.4
    logp = trajectory(get_rule("nash_md", tau=0.5, eta=eta), here.games, here.ref, here.ref, 400)[
        -1
    ]
    mixed = Plays.exact(here.games.payoff, logp, here.ref).own.mixture(eta * 0.5)
    field = 0.5 * (logp - here.ref) - here.wins(mixed)
    assert field == pytest.approx(field[..., :1] + 0 * field, abs=1e-12)
