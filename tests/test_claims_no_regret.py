"""The rows of multiplicative weights and fictitious play."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from games import zoo
from solvers import duality_gap, get_rule
from solvers.claims import Setting, Verdict, claims
from solvers.claims.ledger import trajectory
from solvers.claims.no_regret import kinds
from solvers.loop import kl_divergence
from solvers.rules import RULES
from tests.strategies import games, random_policy, seeds

MINE = {claim.name: claim for claim in claims() if claim.module == "no_regret"}
VERDICTS = dict.fromkeys(MINE, Verdict.HOLDS) | {
    "no_regret.last_iterate": Verdict.CORRECTED,
    "no_regret.last_response": Verdict.CORRECTED,
}


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


@pytest.mark.parametrize("name", MINE)
def test_a_broken_rule_fails(name):
    def worse(plays, weights):
        return -plays.against(weights)

    broken = {name: replace(RULES[name], direction=worse) for name in RULES}
    assert MINE[name](Setting(rules=broken)).finding.verdict is Verdict.FAILS


@given(
    st.tuples(*[st.floats(0.1, 1)] * 3),
    seeds,
    st.floats(0.01, 2),
    st.floats(0.1, 1),
    st.integers(1, 30),
)
def test_mwu_moves_away_from_a_mixed_equilibrium(weights, seed, eta, strength, steps):
    game = zoo.biased_rock_paper_scissors(weights, strength)
    star = np.log(np.array(weights) / sum(weights))
    start = random_policy(seed, 3)
    points = trajectory(get_rule("mwu", eta=eta), game, start, start, steps)
    kl = kl_divergence(star, points)
    assert np.all(np.diff(kl) >= -1e-12 * (1 + kl[1:]))  # rounding of logs up to 20


@given(games(), st.integers(1, 100))
def test_the_average_of_mwu(game, steps):
    eta = math.sqrt(8 * math.log(game.n) / steps)
    start = np.full(game.n, -math.log(game.n))
    p = np.exp(trajectory(get_rule("mwu", eta=eta), game, start, start, steps - 1))
    gap = duality_gap(game, np.log(p.mean(axis=0)))
    assert gap <= 2 * math.sqrt(math.log(game.n) / (2 * steps))


def test_kinds():
    pure, mixed = kinds(zoo.rock_paper_scissors())
    assert (pure[0], mixed[0]) == (False, True)
    pure, mixed = kinds(zoo.bradley_terry(np.array([1.0, 0.0, -1.0])))
    assert (pure[0], mixed[0]) == (True, False)
