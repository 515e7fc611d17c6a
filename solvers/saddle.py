"""The saddle point game as an affine game on ℝ²: z = (x, y), played against itself.

The direction of each player at z is offset + payoff·z = (−∂f/∂x, ∂f/∂y): the operator of the
variational inequality (Sokota et al. 2022), so that rules and steps need no special case.
"""

from __future__ import annotations

import numpy as np

from games.saddle import SaddlePointGame

from .arrays import against


def affine(game: SaddlePointGame) -> tuple[np.ndarray, np.ndarray]:
    """Payoff (2, 2) and offset (2,)."""
    alpha = game.alpha
    return np.array([[-alpha, -1.0], [1.0, -alpha]]), np.array([1.0, -1.0])


def equilibrium(game: SaddlePointGame, tau: float = 0.0, reference=(0.0, 0.0)) -> np.ndarray:
    """(..., 2) -> (..., 2): z* = (x*, y*) of f + τ/2 (x − μ_x)² − τ/2 (y − μ_y)²."""
    payoff, offset = affine(game)
    operator = tau * np.eye(2) - payoff
    return np.linalg.solve(operator, (offset + tau * np.asarray(reference, float))[..., None])[
        ..., 0
    ]


def duality_gap(game: SaddlePointGame, z, tau: float, reference) -> np.ndarray:
    """(..., 2) -> (...,): max over y′ less min over x′ of the regularized game at z = (x, y).

    Each player's objective is quadratic with curvature α + τ: the remaining gain is the squared
    gradient over twice that (inf where α + τ = 0, unless z is the equilibrium).
    """
    payoff, offset = affine(game)
    slope = offset + against(payoff, z) - tau * (z - reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = (slope**2).sum(axis=-1) / (2 * (game.alpha + tau))
    return np.where((slope == 0).all(axis=-1), 0.0, gap)
