"""The update that a rule computes, and `steps` and `fits` carry out."""

from __future__ import annotations

from dataclasses import dataclass

from .arrays import Array
from .divergences import Divergence


@dataclass(frozen=True)
class Update:
    """The target of one step of a rule (RSPO Eq. 6 and 13).

    direction    (..., n) G at the points
    anchor       (..., n) θ of the policy that the step starts from (up to a constant on samples)
    eta          step size; inf: a best response, without anchor
    baseline     B, a number or (..., 1)
    regularizer  R where it acts in the step itself, else None; `tau` is its temperature, else 0
    drift        (..., n) the part of G that is not a payoff: −τ∂R(π_t, μ) of explicit rules
    """

    direction: Array
    anchor: Array
    eta: float
    baseline: float | Array = 0.5
    regularizer: Divergence | None = None
    tau: float = 0.0
    drift: Array | float = 0.0
