"""How far policies are from an equilibrium: what the players could still gain."""

from __future__ import annotations

import math

import numpy as np

from games import MatrixGame, SymmetricGame

from .arrays import against
from .divergences import Divergence


def duality_gap(
    game: SymmetricGame | MatrixGame,
    logp: np.ndarray,
    opponent_logp: np.ndarray | None = None,
    regularizer: Divergence | None = None,
    tau: float = 0.0,
    reference: np.ndarray | tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """(..., m), (..., n) -> (...,): max_x′ J(x′, y) − min_y′ J(x, y′) ≥ 0, in units of the payoff.

    J(x, y) = xᵀAy − τR(x, μ₁) + τR(y, μ₂). In self-play y = x (no opponent given), and at τ = 0 a
    preference game's gap is 2(max_y P(y ≻ π) − ½). `reference` is log μ, a pair of them in a
    zero-sum game, uniform unless given. Rounding may leave −1e-14.
    """
    first, second = reference if isinstance(reference, tuple) else (reference, reference)
    if isinstance(game, SymmetricGame):
        if opponent_logp is None:
            against_self = against(game.payoff, np.exp(logp)) - game.value
            return 2 * _gain(against_self, logp, regularizer, tau, first)
        value, columns = game.value, against(game.payoff, np.exp(logp)) - game.value
    else:
        if opponent_logp is None:
            raise TypeError("a zero-sum game's gap needs the opponent's policy")
        value, columns = 0.0, -against(np.swapaxes(game.payoff, -1, -2), np.exp(logp))
    rows = against(game.payoff, np.exp(opponent_logp)) - value
    return _gain(rows, logp, regularizer, tau, first) + _gain(
        columns, opponent_logp, regularizer, tau, second
    )


def _gain(wins: np.ndarray, logp: np.ndarray, regularizer, tau: float, reference) -> np.ndarray:
    """max_π′ ⟨wins, π′⟩ − τR(π′) + τR(π): half of the gap where players are alike."""
    if regularizer is None or tau == 0:
        return wins.max(axis=-1)
    mu = np.full_like(wins, -math.log(wins.shape[-1])) if reference is None else reference
    return regularizer.conjugate(wins, mu, tau) + tau * regularizer.value(logp, mu)
