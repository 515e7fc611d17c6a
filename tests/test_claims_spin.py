"""α-SPIN's rows of the ledger: verdicts, broken rules, and what they rest on."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from games import DataGame
from solvers import get_rule, solve
from solvers.arrays import normalize
from solvers.claims import Setting, Verdict, claims
from solvers.claims.alpha_spin import (
    excess_loss,
    iterates,
    plays,
    radius,
    threshold,
    total_variation,
)
from solvers.fits import get_fit
from solvers.loop import kl_divergence
from solvers.plays import Measure
from solvers.rules import RULES, current_anchor, log_odds
from tests.strategies import random_policy, seeds, sizes

MINE = {claim.name: claim for claim in claims() if claim.module == "alpha_spin"}
VERDICTS = dict.fromkeys(MINE, Verdict.HOLDS) | {
    "alpha_spin.spin_reaches_data": Verdict.CORRECTED,
    "alpha_spin.alpha_zero": Verdict.UNCLEAR,
    "alpha_spin.two_remembered": Verdict.UNCLEAR,
    "alpha_spin.all_remembered": Verdict.UNCLEAR,
    "alpha_spin.follows_the_leader": Verdict.UNCLEAR,
}
betas, alphas = st.floats(0.05, 5), st.floats(0, 1)


@pytest.mark.parametrize("name", MINE)
def test_verdict(name):
    found = MINE[name](Setting()).finding
    assert found.verdict is VERDICTS[name], found.evidence
    if found.verdict is not Verdict.HOLDS:
        assert found.counterexample
        assert found.correction


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_verdicts_do_not_hang_on_the_seed(seed):
    for name, claim in MINE.items():
        assert claim(Setting(seed=seed)).finding.verdict is VERDICTS[name], name


def swapped(plays, weights):
    return -log_odds(plays, weights)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("dpo_minimizer", {"anchor": current_anchor}),
        ("interpolates", {"anchor": current_anchor}),
        ("interpolates", {"direction": swapped}),
        ("alpha_one", {"direction": swapped}),
        ("spin_reaches_data", {"direction": swapped}),
        ("alpha_zero", {"direction": swapped}),
        ("two_remembered", {"direction": swapped}),
        ("all_remembered", {"direction": swapped}),
    ],
)
def test_a_broken_rule_fails(name, part):
    broken = {"alpha_spin": replace(RULES["alpha_spin"], **part)}
    found = MINE[f"alpha_spin.{name}"](Setting(rules=broken)).finding
    assert found.verdict is Verdict.FAILS


def policies(seed: int, n: int, count: int) -> list[np.ndarray]:
    return [random_policy(seed + k, n) for k in range(count)]


@given(seeds, sizes, alphas)
def test_the_mixture_identity(seed, n, alpha):
    """KL(π‖π_ref) = αKL(π‖a) + (1 − α)KL(π‖b) + log Σ a^α b^(1−α)."""
    logp, a, b = policies(seed, n, 3)
    mixed = Measure(a, b).mixture(1 - alpha)
    parts = alpha * kl_divergence(logp, a) + (1 - alpha) * kl_divergence(logp, b)
    constant = np.log(np.exp(alpha * a + (1 - alpha) * b).sum())
    # Logs of up to 20 in the sums.
    assert kl_divergence(logp, mixed) == pytest.approx(parts + constant, abs=1e-12)


@given(seeds, sizes, betas)
def test_the_minimizer_of_the_expected_loss(seed, n, beta):
    """Any π loses a sum of binary KLs on π_ref (data/opponent)^(1/β)."""
    data, base, current, opponent, other = policies(seed, n, 5)
    here = plays(current, base, data, opponent)
    update = get_rule("alpha_spin", eta=1 / beta)(here)
    formula = normalize(update.anchor + (data - opponent) / beta)
    fit = get_fit("logistic")
    excess = fit(here, update, other) - fit(here, update, formula)
    known = excess_loss(beta, other - formula, data, opponent)
    # The losses themselves reach β times logs of 40.
    assert excess == pytest.approx(known, rel=1e-9, abs=1e-11)
    assert known >= 0


@given(seeds, sizes, alphas, st.floats(0.6, 3), st.sampled_from([1, 2, math.inf]))
def test_iterates_are_those_of_solve(seed, n, alpha, beta, memory):
    data, base = policies(seed, n, 2)
    rule = get_rule("alpha_spin", alpha=alpha, eta=1 / beta, memory=memory)
    run = solve(DataGame(np.exp(data)), rule, reference=base, steps=6, tol=0, keep_policies=True)
    # `solve` averages probabilities, which loses what is below 1e-16 of the largest.
    mine = iterates(rule, base, data, 6)
    assert run.history.logp is not None
    assert np.exp(run.history.logp) == pytest.approx(np.exp(mine), abs=1e-9)


@given(seeds, sizes, alphas, st.floats(0.3, 3), st.sampled_from([1, 2, 3, math.inf]))
def test_it_follows_the_leader_with_a_discount(seed, n, alpha, beta, memory):
    """π_t ∝ base exp(Σ α^(t−s) r_s/β), r_s = log data/opponent_s, whatever the memory."""
    data, base = policies(seed, n, 2)
    rule = get_rule("alpha_spin", alpha=alpha, eta=1 / beta, memory=memory)
    points, rewards = iterates(rule, base, data, 5), np.zeros(n)
    for t in range(5):
        first = 1 if memory == math.inf and t else 0
        known = [base] * 10 + list(points[: t + 1])
        known = known[10 + first :] if memory == math.inf else known[-int(memory) :]
        rewards = alpha * rewards + data - (np.logaddexp.reduce(known, axis=0) - np.log(len(known)))
        # Deviations of up to (1/0.3)^5 times logs of 20, and means that lose 1e-16 of the largest.
        leader = np.exp(normalize(base + rewards / beta))
        assert np.exp(points[t + 1]) == pytest.approx(leader, abs=1e-6)


@given(alphas, betas)
def test_spectral_radii(alpha, beta):
    assert radius(beta, alpha, 1) == pytest.approx(abs(alpha - 1 / beta), rel=1e-12, abs=1e-12)
    c = 1 / (2 * beta)
    roots = np.roots([1, c - alpha, c])
    # A double root is good to √1e-16 only.
    assert radius(beta, alpha, 2) == pytest.approx(np.abs(roots).max(), abs=1e-6)


@given(alphas)
def test_thresholds(alpha):
    assert threshold(alpha, 1) == pytest.approx(1 / (1 + alpha), abs=1e-12)
    assert threshold(alpha, 2) == pytest.approx(0.5, abs=1e-12)


def test_mixing_tokens_by_hand():
    """Two symbols, two positions; one model follows A by (0.9, 0.1): the row's own example."""
    half = np.log([0.5, 0.5])
    follow = np.stack([np.log([[0.9, 0.1], [0.5, 0.5]]), np.log([[0.5, 0.5], [0.5, 0.5]])])
    tables = [np.stack([half, half])[:, None], follow[:, None]]
    a = math.sqrt(0.45) + math.sqrt(0.05)
    assert total_variation(tables, 0.5)[0] == pytest.approx(0.5 - a / (a + 1), abs=1e-12)
    assert total_variation(tables[:1], 0.5)[0] == pytest.approx(0, abs=1e-15)
    assert total_variation(tables, 1.0)[0] == pytest.approx(0, abs=1e-15)
