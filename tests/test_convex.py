"""The exact equilibria against cvxpy and a linear program."""

from __future__ import annotations

import numpy as np
import pytest

from games import InputError, MatrixGame, PreferenceGame, zoo
from solvers import parse
from solvers.convex import equilibrium_by_cvxpy, equilibrium_by_lp
from solvers.equilibrium import equilibrium
from tests.strategies import SPECS, random_game, random_policy


def agree(exact, peer, policy: float) -> None:
    """Clarabel stops at 1e-8: a policy is known to √(gap/τ), worse where R is flat, as is xᵀAy."""
    assert peer.status == exact.status == "converged"
    assert exact.duality_gap <= 1e-12
    assert peer.duality_gap >= exact.duality_gap - 1e-12
    assert peer.value == pytest.approx(exact.value, abs=1e-4)
    if policy:
        assert peer.policy == pytest.approx(exact.policy, abs=policy)
        assert peer.opponent_policy == pytest.approx(exact.opponent_policy, abs=policy)


@pytest.mark.parametrize("tau", [2.0, 0.1, 0.01])
@pytest.mark.parametrize("spec", SPECS)
def test_symmetric_games(spec, tau):
    game, mu = random_game(1, 5), random_policy(2, 5)
    regularizer = parse(spec)
    exact = equilibrium(game, regularizer, tau, mu)
    agree(exact, equilibrium_by_cvxpy(game, regularizer, tau, mu), policy=2e-3)


@pytest.mark.parametrize("spec", SPECS)
def test_zero_sum_games(spec):
    rng = np.random.default_rng(3)
    game, references = (
        MatrixGame(rng.normal(size=(3, 4))),
        (random_policy(4, 3), random_policy(5, 4)),
    )
    regularizer = parse(spec)
    exact = equilibrium(game, regularizer, 0.2, references)
    agree(exact, equilibrium_by_cvxpy(game, regularizer, 0.2, references), policy=2e-3)


@pytest.mark.parametrize("solver", [equilibrium_by_cvxpy, equilibrium_by_lp])
@pytest.mark.parametrize(
    "game",
    [random_game(6, 8), zoo.get("league"), zoo.get("blotto"), zoo.get("matching_pennies")],
    ids=["random", "league", "blotto", "matching_pennies"],
)
def test_unregularized_games(solver, game):
    exact = equilibrium(game)
    agree(exact, solver(game), policy=1e-5 if exact.unique else 0)


def test_what_they_refuse():
    batch = PreferenceGame(np.full((2, 3, 3), 0.5))
    for solver in (equilibrium_by_cvxpy, equilibrium_by_lp):
        with pytest.raises(InputError, match="one game, not a batch"):
            solver(batch)
    with pytest.raises(InputError, match="method lp has no regularizer"):
        equilibrium_by_lp(zoo.get("rps"), parse("chi2"), 0.1)
    with pytest.raises(InputError, match="needs a regularizer"):
        equilibrium_by_cvxpy(zoo.get("rps"), None, 0.1)
