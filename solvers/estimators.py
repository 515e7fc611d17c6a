"""What stands for a regularizer R(π_θ, μ) in a loss on responses of π_t, one term of R at a time.

`importance`  E_{π_t}[(μ/π_t) f(π_θ/μ)], for every f. On exact Plays it is R itself; on samples it
              is exact in expectation, wherever π_θ has gone. f′(1)(π_θ/π_t − 1), of mean zero, is
              taken off, so that the gradient of a sample, (π_θ/π_t)(φ(r) − φ(0))∇log π_θ with
              r = log π_θ/μ, has no noise at π_θ = μ.
`published`   RSPO Eqs. 52–54 and their like: functions of r alone whose gradient is that of R (Eq.
              52's: twice that) at π_θ = π_t, and biased away from it. They are antiderivatives of
              φ, up to a constant in φ, which has mean zero there.

The clip of 10 is on the log-ratio in the exponent, beyond which there is no gradient, as in the
authors' code, by which their figures were made. App. C.3 says "gradient clipping with a maximum
value of 10": that would be the trainer's max_grad_norm.
"""

from __future__ import annotations

import math
from typing import Literal

from array_api_compat import array_namespace

from games.errors import InputError

from .arrays import Array

EstimatorName = Literal["importance", "published"]

# These are alpha divergences: name -> (weight, a).
_ALPHA = {"chi2": (1.0, 2.0), "hellinger": (0.25, 0.5)}


def factor(term: str, estimator: EstimatorName) -> float:
    """By how much the estimator's gradient at π_θ = π_t exceeds that of R.

    Raises InputError where `published` has no such term.
    """
    if estimator == "importance":
        return 1.0
    if term == "js":
        raise InputError("estimator 'published' has no js term: use estimator=importance")
    return 2.0 if term in ("reverse_kl", "entropy") else 1.0


def estimate(
    estimator: EstimatorName,
    term: str,
    logp: Array,
    logp_ref: Array,
    logp_current: Array,
    clip: float,
) -> Array:
    """(...,) × 3 -> (...,): a sample's part of R(π_θ, μ), at y ∼ π_t, times `factor`.

    `logp` is log π_θ(y), which may carry a gradient; `clip` is for `published`.
    """
    if term == "entropy":  # reverse KL against the counting measure
        logp_ref = logp_ref * 0
    if estimator == "published":
        return _published(term, logp - logp_ref, clip)
    return _importance(term, logp, logp_ref, logp_current)


def _importance(term: str, logp: Array, logp_ref: Array, logp_current: Array) -> Array:
    """(μ/π_t) f(π_θ/μ) − f′(1)(π_θ/π_t − 1), with the exponents taken together."""
    xp = array_namespace(logp)
    r, log_weight = logp - logp_ref, logp_ref - logp_current
    ratio = xp.exp(logp - logp_current)
    if term in ("reverse_kl", "entropy"):
        return ratio * (r - 1) + 1
    if term == "forward_kl":
        return ratio - 1 - r * xp.exp(log_weight)
    if term == "js":
        log_mean = xp.logaddexp(r, xp.zeros_like(r)) - math.log(2)
        return 0.5 * (ratio * r - (xp.exp(log_weight) + ratio) * log_mean)
    weight, a = _alpha(term)
    powers = xp.exp(a * r + log_weight) - a * ratio + (a - 1) * xp.exp(log_weight)
    return weight / (a * (a - 1)) * powers


def _published(term: str, r: Array, clip: float) -> Array:
    xp = array_namespace(r)

    def clipped_exp(x: Array) -> Array:
        return xp.exp(xp.where(x > clip, xp.full_like(x, clip), x))

    if term in ("reverse_kl", "entropy"):
        return r**2  # Eq. 52, whose right-hand side lacks a factor ½ (see its proof, Eq. 48)
    if term == "forward_kl":
        return clipped_exp(-r)  # Eq. 53
    if term == "chi2":
        return clipped_exp(r)  # Eq. 54
    weight, a = _alpha(term)
    return weight / (a - 1) * (clipped_exp((a - 1) * r) / (a - 1) - r)


def _alpha(term: str) -> tuple[float, float]:
    return _ALPHA.get(term) or (1.0, float(term.removeprefix("alpha:")))
