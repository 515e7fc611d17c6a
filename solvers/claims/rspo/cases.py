"""RSPO's losses on random cases: gradients by the complex step, and minimizers.

θ are softmax logits over all actions. The complex-step derivative is exact up to rounding, so the
lines of the paper are tested without derivations of our own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ...arrays import Array, against, normalize
from ..ledger import (
    Setting,
    largest,
    logit_gradient,
    random_policies,
)

COUNT = 200  # random cases per claim


@dataclass(frozen=True)
class Case:
    """Games (..., n, n), log π_θ, log π_t and log μ (..., n), and the constants of a loss."""

    payoff: Array
    theta: Array
    current: Array
    ref: Array
    eta: float = 0.7
    tau: float = 0.3

    @property
    def count(self) -> int:
        """Number of cases."""
        return math.prod(self.theta.shape[:-1])

    @property
    def at_current(self) -> Case:
        """The same cases with θ = θ_t."""
        return replace(self, theta=self.current)

    @property
    def mixture(self) -> Array:
        """log π_t^μ, the geometric mixture of Nash-MD."""
        share = self.eta * self.tau
        return normalize((1 - share) * self.current + share * self.ref)

    def wins(self, opponent: Array) -> Array:
        """(..., n): P(y ≻ opponent)."""
        return against(self.payoff, np.exp(opponent))

    def mean(self, values: Array) -> Array:
        """E_{y∼π_θ}[∇log π_θ(y) values(y)]."""
        return logit_gradient(self.theta, np.exp(self.theta) * values)

    def gradient(self, loss: Callable[[Array], Array]) -> Array:
        """(..., n): ∇_θ loss(log π_θ), by the complex step; all but logp is constant."""
        n, tiny = self.theta.shape[-1], 1e-30

        def along(direction: Array) -> Array:
            moved = self.theta + 1j * tiny * direction
            logp = moved - np.log(np.exp(moved).sum(axis=-1, keepdims=True))
            return loss(logp).imag / tiny

        return np.stack([along(direction) for direction in np.eye(n)], axis=-1)

    def fit(self, values: Array, weights: Array | None = None) -> Array:
        """∇_θ E_{y∼π_t}[(log π_θ/π_t − values)²], or under other constant weights."""
        weights = np.exp(self.current) if weights is None else weights
        return self.gradient(lambda logp: mean_of(weights, (logp - self.current - values) ** 2))

    def kl_gradient(self) -> Array:
        """∇_θ KL(π_θ‖μ)."""
        return self.gradient(lambda logp: mean_of(np.exp(logp), logp - self.ref))


def mean_of(weights: Array, values: Array) -> Array:
    """(..., n), (..., n) -> (...,): Σ weights · values; complex values are allowed."""
    return (weights * values).sum(axis=-1)


def cases(setting: Setting, n: int = 4) -> Case:
    """Random games with independent random π_θ, π_t and μ."""
    rng = setting.rng
    games = setting.games(rng, COUNT, n)
    ref = setting.references(rng, games)
    shape = ref.shape
    if setting.game is not None:  # many policies on one game, fewer if it is large
        shape = (min(COUNT, max(4, 2000 // games.n)), *ref.shape)
        ref = np.broadcast_to(ref, shape)
    return Case(games.payoff, random_policies(rng, shape), random_policies(rng, shape), ref)


def by_hand() -> Case:
    """Two actions: P(y¹ ≻ y²) = 0.9, μ uniform, π_t = (0.8, 0.2), π_θ = (0.6, 0.4), τ = η = ½.

    Derivatives are with respect to the first logit, where
    E_{π_θ}[∇log π_θ a] = π_θ(y¹)π_θ(y²)(a₁ − a₂).
    """
    logs = np.log([[0.6, 0.4], [0.8, 0.2], [0.5, 0.5]])
    return Case(np.array([[0.5, 0.9], [0.1, 0.5]]), *logs, eta=0.5, tau=0.5)


HAND = (
    "Two actions, P(y¹≻y²) = 0.9, μ = (½, ½), π_t = (0.8, 0.2), πθ = (0.6, 0.4), τ = η = ½; "
    "derivatives by the first logit. There E_πθ[∇log πθ·a] = 0.24(a₁ − a₂), E_πt[∇log πθ·a] = "
    "0.32a₁ − 0.12a₂; P(y≻π_t) = (0.58, 0.18), A = P(y≻π_t^μ) − ½ = (0.1045, −0.2955), log πθ/π_t "
    "= (−0.2877, 0.6931), log πθ/μ = (0.1823, −0.2231), log π_t/μ = (0.4700, −0.9163)."
)
KINDS = ("preference", "skew")


def minimizer(current: Array, target: Array, regularizer=None, lam: float = 0.0, ref=None) -> Array:
    """(..., n): argmin over distributions of Σ π_t (log π − target)² + λR(π, μ).

    Newton's method in x = log π and a multiplier ν of Σ eˣ = 1.
    """
    w, x = np.exp(current), normalize(target)
    nu = np.zeros((*x.shape[:-1], 1))
    for _ in range(60):
        p = np.exp(x)
        force, bend = 2 * w * (x - target) - nu * p, 2 * w - nu * p
        if regularizer is not None:
            slope = regularizer.gradient(x, ref)
            force = force + lam * p * slope
            bend = bend + lam * p * (slope + regularizer.slope_derivative(x - ref))
        bend = np.maximum(bend, 0.1 * w)
        excess = p.sum(axis=-1, keepdims=True) - 1
        dnu = ((p * force / bend).sum(axis=-1, keepdims=True) - excess) / (
            (p**2 / bend).sum(axis=-1, keepdims=True)
        )
        move = (p * dnu - force) / bend
        x, nu = x + np.clip(move, -1, 1), nu + dnu
        if largest(move) < 1e-14:
            break
    return normalize(x)
