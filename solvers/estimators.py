"""Sample estimators of a regularizer R(π_θ, μ) in a loss on responses of π_t, for one kernel.

`importance`  E_{π_t}[(μ/π_t) f(π_θ/μ)], for every f. On exact Plays it is R itself; on samples it
              is exact in expectation for any π_θ. f′(1)(π_θ/π_t − 1), of mean zero, is subtracted,
              so that the gradient of a sample, (π_θ/π_t)(φ(r) − φ(0))∇log π_θ with r = log π_θ/μ,
              is 0 at π_θ = μ.
`published`   RSPO Eqs. 52–54 and their like (`Kernel.published`): functions of r alone whose
              gradient is that of R (Eq. 52: twice that) at π_θ = π_t, and biased away from it. They
              are antiderivatives of φ, up to a constant in φ, which has mean zero there.

The clip of 10 is on the log-ratio in the exponent, beyond which there is no gradient, as in the
authors' code, which produced their figures. App. C.3 says "gradient clipping with a maximum value
of 10": that would be the trainer's max_grad_norm.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from array_api_compat import array_namespace

from games.errors import InputError

from .arrays import Array
from .divergences import Summand
from .kernels import Kernel, Published

EstimatorName = Literal["importance", "published"]


def factor(kernel: Kernel, estimator: EstimatorName) -> float:
    """The ratio of the estimator's gradient at π_θ = π_t to that of R.

    Raises InputError where `published` has no estimator for that kernel.
    """
    return 1.0 if estimator == "importance" else _published(kernel).factor


def estimate(
    estimator: EstimatorName,
    summand: Summand,
    logp: Array,
    logp_ref: Array,
    logp_current: Array,
    clip: float,
) -> Array:
    """(...,) × 3 -> (...,): the estimate of R(π_θ, μ) from a sample y ∼ π_t, times `factor`.

    R is the summand's divergence, without its weight. `logp` is log π_θ(y), which may carry a
    gradient; `clip` is for `published`.
    """
    if summand.counting:  # entropy is reverse KL against the counting measure
        logp_ref = array_namespace(logp_ref).zeros_like(logp_ref)
    if estimator == "published":
        return _published(summand.kernel).loss(logp - logp_ref, clip)
    return _importance(summand.kernel, logp, logp_ref, logp_current)


def _importance(kernel: Kernel, logp: Array, logp_ref: Array, logp_current: Array) -> Array:
    """(μ/π_t) f(π_θ/μ) − f′(1)(π_θ/π_t − 1), with the exponents added before exponentiation."""
    log_ratio = logp - logp_current
    value = kernel.times_weight(logp - logp_ref, logp_ref - logp_current, log_ratio)
    tangent = float(kernel.slope(np.zeros(1))[0])
    if tangent == 0:
        return value
    return value - tangent * (array_namespace(logp).exp(log_ratio) - 1)


def _published(kernel: Kernel) -> Published:
    if kernel.published is None:
        raise InputError(
            f"estimator 'published' has no {kernel.name} term: use estimator=importance"
        )
    return kernel.published
