"""Constants of games and regularizers, and the step sizes and rates of theorems with them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from games import MatrixGame, SymmetricGame
from games.errors import InputError
from games.saddle import SaddlePointGame

from .arrays import Array
from .mirror import ENTROPY, MirrorMap
from .rules import UpdateRule
from .theory import Constants, constant
from .theory import largest_step as step_of_gmmd

Game = SymmetricGame | MatrixGame | SaddlePointGame
Reference = Array | tuple[Array, Array]  # log μ, a pair of them in a zero-sum game


def lipschitz(game: Game) -> float:
    """L of the operator π -> −Pπ, from ‖·‖₁ to ‖·‖_∞ on the simplex, blind to constants in P.

    ½ maxᵢ(maxⱼ Pᵢⱼ − minⱼ Pᵢⱼ), the largest over a batch; both players' in a zero-sum game. For a
    saddle point game the spectral norm of the linear part.
    """
    if isinstance(game, SaddlePointGame):
        return game.lipschitz
    payoff = game.payoff
    rows = float((payoff.max(axis=-1) - payoff.min(axis=-1)).max())
    columns = float((payoff.max(axis=-2) - payoff.min(axis=-2)).max())
    return 0.5 * max(rows, columns)


def modulus(rule: UpdateRule, reference: Reference, mirror: MirrorMap = ENTROPY) -> float:
    """m: how strongly convex the rule's R(·, μ) is relative to ψ; 0 without a regularizer.

    The smaller one of a zero-sum game's two players, where `reference` is a pair.
    """
    if not rule.regularized:
        return 0.0
    if mirror is not ENTROPY:
        return 1.0
    each = reference if isinstance(reference, tuple) else (reference,)
    return min(rule.regularizer.modulus(mu) for mu in each)


def constants(
    rule: UpdateRule, game: Game, reference: Reference, mirror: MirrorMap = ENTROPY
) -> Constants:
    """The constants that the theorem of a rule takes."""
    m = modulus(rule, reference, mirror)
    return Constants(lipschitz(game), m, rule.tau, rule.regularizer.name)


def theory_step(
    rule: UpdateRule, game: Game, reference: Reference, mirror: MirrorMap = ENTROPY
) -> UpdateRule:
    """The rule with the step size of its theorem (`UpdateRule.theory`).

    τm/L² for GMMD and MMD (Sokota et al. 2022, Thm 3.4), 1/L for EGPO (PAPERS.md, Derivations),
    1/(8L) for optimistic rules (Wei et al. 2021, Thm 3: a unique equilibrium), 2/(τ(t + 2)) for
    Nash-MD (Munos et al., Thm 1), 2/(τ(t + 3)) for OMD with reverse KL (INPO, Theorem 4). Raises
    InputError with the reason where there is no theorem.
    """
    if rule.theory is None or rule.eta == math.inf:
        raise InputError(f"rule '{rule.name}' has no step size by theory: give a number for eta")
    return replace(rule, eta=rule.theory.step(constants(rule, game, reference, mirror)))


def largest_step(
    rule: UpdateRule, game: Game, reference: Reference, mirror: MirrorMap = ENTROPY
) -> float:
    """τm/L² of a rule on a game: `theory.largest_step`. Raises InputError where m or L is 0.

    >>> from games import zoo
    >>> from solvers.rules import get_rule
    >>> rule = get_rule("gmmd", tau=0.1, regularizer="forward_kl")
    >>> round(largest_step(rule, zoo.get("rps"), np.log([0.2, 0.3, 0.5])), 6)
    0.195959
    """
    return step_of_gmmd(constants(rule, game, reference, mirror))


def no_regret_step(game: SymmetricGame | MatrixGame, steps: int) -> float:
    """√(8 log n / T)/(2L): the step that minimizes the regret bound of MWU over T steps."""
    spread = 2 * lipschitz(game)
    if spread == 0:  # all policies are equilibria
        return 1.0
    n = max(2, *game.payoff.shape[-2:])
    return math.sqrt(8 * math.log(n) / max(steps, 1)) / spread


def with_step_size(
    rule: UpdateRule, game: Game, reference: Reference, steps: int, mirror: MirrorMap = ENTROPY
) -> UpdateRule:
    """The rule with a step size that is a number or a schedule: None and `theory` resolved.

    None is the step size of theory where there is one, else the no-regret step.
    """
    if rule.eta == "theory":
        return theory_step(rule, game, reference, mirror)
    if rule.eta is not None:
        return rule
    try:
        return theory_step(rule, game, reference, mirror)
    except InputError:
        if isinstance(game, SaddlePointGame):
            raise InputError(f"rule '{rule.name}' needs a step size here: give eta") from None
        eta = no_regret_step(game, steps)
        if rule.regularization in ("explicit", "mixture") and rule.tau > 0:
            eta = min(eta, 0.5 / rule.tau)  # beyond 1/(τφ′) its regularizer overshoots
        return replace(rule, eta=eta)


def predicted_kl(
    rule: UpdateRule,
    game: Game,
    reference: Reference,
    kl_start: float,
    steps: Array,
    mirror: MirrorMap = ENTROPY,
) -> np.ndarray | None:
    """(T,) -> (T,): the theorem's bound on KL(π*‖π_t) at these steps; None where there is none.

    GMMD, MMD: KL₀/(1 + ητm)^t for η ≤ τm/L², EGPO: for η ≤ 1/L. Nash-MD under its schedule:
    8/(τ²(t + 1)), for preferences in [0, 1].
    """
    steps = np.asarray(steps)
    if rule.theory is not None and rule.theory.bound is not None and rule.eta is not None:
        assert not isinstance(rule.eta, str)
        known = constants(rule, game, reference, mirror)
        bound = rule.theory.bound(rule.eta, known, steps)
        if bound is not None:
            return np.asarray(bound)
    rate = predicted_rate(rule, game, reference, mirror)
    return None if rate is None else kl_start * rate**steps


def predicted_rate(
    rule: UpdateRule, game: Game, reference: Reference, mirror: MirrorMap = ENTROPY
) -> float | None:
    """The factor by which a step shrinks KL(π*‖π_t) at least: 1/(1 + ητm) for GMMD, MMD, EGPO.

    For η ≤ τm/L² (GMMD, MMD) and η ≤ 1/L (EGPO). None where no theorem gives a rate: another rule,
    a schedule, a magnet that moves, m = 0, or a larger step.
    """
    if rule.theory is None or rule.theory.rate is None or not constant(rule.eta):
        return None
    if rule.magnet_every is not None or rule.tau == 0:
        return None
    assert isinstance(rule.eta, int | float)
    return rule.theory.rate(rule.eta, constants(rule, game, reference, mirror))
