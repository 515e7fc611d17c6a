"""Mirror maps: where a policy lives, and which coordinates make a mirror step an addition.

θ = ∇ψ(π) are the coordinates: log π for the entropy on the simplex, the point itself for ½‖·‖² on
ℝᵈ. In them a mirror step is anchor + ηG, a geometric mixture is a weighted mean, and both are
brought back to the set by `normalize`.
"""

from __future__ import annotations

from typing import Protocol

from array_api_compat import array_namespace

from games.errors import InputError

from .arrays import Array, normalize
from .divergences import Divergence, reverse_kl


class MirrorMap(Protocol):
    """The operations of ψ that a step needs, in the coordinates θ."""

    name: str

    def normalize(self, theta: Array) -> Array:
        """(..., n) -> (..., n): θ brought back to the set."""
        ...

    def point(self, theta: Array) -> Array:
        """(..., n) -> (..., n): the policy itself, ∇ψ*(θ)."""
        ...

    def gradient(self, regularizer: Divergence, theta: Array, reference: Array) -> Array:
        """(..., n), (..., n) -> (..., n): ∂R/∂π, less f′(1): 0 where π = μ."""
        ...

    def prox(
        self,
        regularizer: Divergence,
        direction: Array,
        anchor: Array,
        reference: Array,
        eta: float,
        tau: float,
    ) -> Array:
        """(..., n) × 3 -> (..., n): argmin −η⟨direction, π⟩ + B_ψ(π; anchor) + ητR(π, μ), as θ."""
        ...


class Entropy:
    """ψ(π) = Σ π log π on the simplex; θ = log π, and B_ψ is the reverse KL divergence."""

    name = "entropy"

    def normalize(self, theta):
        return normalize(theta)

    def point(self, theta):
        return array_namespace(theta).exp(theta)

    def gradient(self, regularizer, theta, reference):
        # f′(1) is the same for all actions, and would shift what a loss takes G − B for.
        return regularizer.gradient(theta, reference) - regularizer.slope(0 * reference)

    def prox(self, regularizer, direction, anchor, reference, eta, tau):
        return regularizer.prox(direction, anchor, reference, eta, tau)


class Euclidean:
    """ψ(z) = ½‖z‖² on ℝᵈ; θ = z. Its own Bregman divergence ½‖z − z′‖² is the only regularizer.

    It corresponds to `reverse_kl` on the simplex, and has the same name here.
    """

    name = "euclidean"

    def normalize(self, theta):
        return theta

    def point(self, theta):
        return theta

    def gradient(self, regularizer, theta, reference):
        _only_bregman(regularizer)
        return theta - reference

    def prox(self, regularizer, direction, anchor, reference, eta, tau):
        _only_bregman(regularizer)
        return (anchor + eta * direction + eta * tau * reference) / (1 + eta * tau)


def _only_bregman(regularizer: Divergence) -> None:
    if regularizer != reverse_kl:
        raise InputError(
            f"regularizer '{regularizer.name}' is a divergence between distributions: "
            "on R^d use 'reverse_kl', which is 1/2 |z - reference|^2 there"
        )


ENTROPY: MirrorMap = Entropy()
EUCLIDEAN: MirrorMap = Euclidean()
