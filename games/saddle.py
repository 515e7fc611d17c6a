"""The saddle point problem on the plane that RSPO uses as its motivating example."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from games.errors import InputError


@dataclass(frozen=True)
class SaddlePointGame:
    """min over x, max over y of f(x, y) = α/2 x² + (x - 1)(y - 1) - α/2 y², on ℝ x ℝ.

    Points x and y have shape (..., 1): batch axes, then ℝ^d with d = 1. In the example the true
    game has α = 2 and its misspecified surrogate α = 1. Raises InputError unless α >= 0 (convex in
    x, concave in y). Source: RSPO (arXiv 2503.00030), App. D.1 and Fig. 4, where x is called y′;
    introduced by Sokota et al. (2022).

    >>> game = SaddlePointGame(alpha=1.0)
    >>> game.equilibrium
    (array([1.]), array([0.]))
    """

    alpha: float

    def __post_init__(self) -> None:
        if not (0 <= self.alpha < math.inf):
            raise InputError(f"alpha is {self.alpha}; it must be a finite number >= 0")

    def f(self, x, y):
        """(..., 1), (..., 1) -> (...,): the payoff of player y, which player x pays."""
        return (self.alpha / 2 * (x * x - y * y) + (x - 1) * (y - 1))[..., 0]

    def gradient(self, x, y):
        """(..., 1), (..., 1) -> (..., 1), (..., 1): ∂f/∂x and ∂f/∂y."""
        return self.alpha * x + y - 1, x - 1 - self.alpha * y

    @property
    def equilibrium(self) -> tuple[np.ndarray, np.ndarray]:
        """(x*, y*), (1,) each: where both gradients vanish."""
        alpha, scale = self.alpha, 1 + self.alpha**2
        return np.array([(1 + alpha) / scale]), np.array([(1 - alpha) / scale])

    @property
    def lipschitz(self) -> float:
        """Spectral norm of [[α, 1], [-1, α]], the linear part of (x, y) -> (∂f/∂x, -∂f/∂y)."""
        return math.hypot(self.alpha, 1.0)
