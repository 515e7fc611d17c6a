"""The step that a policy really made, in the units of the step that its rule asked for.

A rule asks for a step size η at a temperature τ; training moves log π_θ part of the way, and adds
noise. The step that was made is read off by least squares: log π_{t+1}/π_t is regressed on G and
on the slope φ of the regularizer at the same points, with an intercept per prompt for the
normalization.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .divergences import Divergence
from .kernels import REVERSE_KL
from .plays import Plays
from .rules import UpdateRule
from .update import Update

FloatArray = NDArray[np.floating]

# A regressor is constant within prompts, or a multiple of the other one, where the square of the
# rest of it is at most this share of its own, or of 1: that much is rounding.
SMALLEST_SHARE = 1e-20


@dataclass(frozen=True)
class EffectiveStep:
    """The η and τ of a step, with standard errors over prompts; NaN where one is not identified.

    tau is also NaN for a rule without a regularizer. r_squared is the share of the variance of
    log π_{t+1}/π_t within prompts that the regression explains: below 1 by sampling noise in G, and
    by what training did that the rule did not ask for.
    """

    eta: float
    eta_error: float
    tau: float
    tau_error: float
    r_squared: float


def effective_step(
    rule: UpdateRule, plays: Plays, update: Update, logp_next: FloatArray
) -> EffectiveStep | None:
    """(B, n): log π_{t+1} at the points of `plays`, B prompts -> the step; numpy arrays only.

    In what follows y = log π_{t+1}/a for the rule's anchor a without its share of μ, most often
    π_t, and u is the policy over μ.

    - Implicit reverse KL (GMMD, MMD): y = (ηG − ητ log u_t)/(1 + ητ) + c, whose two coefficients
      are inverted. Entropy is reverse KL to the uniform policy.
    - Other implicit regularizers: y = ηG − ητφ(u_{t+1}) + c, the first-order condition of the step.
    - Explicit ones (OMD, INPO): y = ηG − ητφ(u_t) + c, where G is the payoff alone.
    - Mixtures (Nash-MD, MNPO): y = ηG − ητ log u_t + c.

    The step `steps.step(update, plays)` gives the η and τ that were asked for, on all actions and
    on samples. On samples G is an estimate, and an error in a regressor lowers its coefficient.
    Where π_t = μ, log u_t is 0 and τ is not identified; η is then that of the asked τ.

    None for a best response (η = inf), which has no step size, and where G is constant.
    """
    if update.eta == math.inf:
        return None
    own = plays.own
    # On samples `step` multiplies what pulls towards μ by this factor.
    c = 1.0 if own.log_weight is None else plays.centering
    base, pull, linear = update.anchor, None, 0.0
    if rule.regularized and rule.tau > 0:
        if rule.regularization == "mixture":
            base = rule.anchor(plays, 0.0)
            pull = base - own.logp_ref
        elif rule.regularization == "explicit":
            pull = -np.asarray(update.drift) / rule.tau
        else:
            linear = c * _weight_of_reverse_kl(rule.regularizer)
            at = own.logp if linear > 0 else logp_next
            pull = own.mirror.gradient(rule.regularizer, at, own.logp_ref)
    columns = [np.asarray(update.direction - update.drift)]
    if pull is not None:
        columns.append(c * np.asarray(pull))
    y = logp_next - own.logp - c * (base - own.logp)
    fitted = _within_prompts(np.asarray(y), columns, np.asarray(own.weights))
    if fitted is None:
        return None
    (a, b), covariance, r_squared = fitted
    tau, tau_error = math.nan, math.nan
    if not math.isnan(b):
        shrink = 1 + linear * b
        eta, gradient = a / shrink, (1 / shrink, -a * linear / shrink**2)
        if a != 0:
            tau, tau_error = -b / a, _error((b / a**2, -1 / a), covariance)
    elif pull is not None:  # at the τ that was asked for
        shrink = 1 - linear * rule.tau * a
        eta, gradient = a / shrink, (1 / shrink**2, 0.0)
    else:
        eta, gradient = a, (1.0, 0.0)
    return EffectiveStep(eta, _error(gradient, covariance), tau, tau_error, r_squared)


def _weight_of_reverse_kl(regularizer: Divergence) -> float:
    """The weight of reverse KL in a regularizer of nothing else, entropy included; otherwise 0."""
    if any(kernel != REVERSE_KL for _, kernel in regularizer.terms):
        return 0.0
    return sum(weight for weight, _ in regularizer.terms)


def _error(gradient: tuple[float, float], covariance: FloatArray) -> float:
    """Standard error of a function of the two coefficients (delta method)."""
    slope = np.array(gradient)
    return math.sqrt(slope @ covariance @ slope)


def _within_prompts(
    y: FloatArray, columns: list[FloatArray], weights: FloatArray
) -> tuple[tuple[float, float], FloatArray, float] | None:
    """(B, n), one or two of (B, n), (B, n) -> two coefficients, their covariance and R².

    Weighted least squares with an intercept per prompt; the covariance is robust to correlation
    within prompts. A coefficient that is not identified is NaN, with covariance 0. None where the
    first is not. Points that are not finite, such as actions without probability, are left out.
    """
    table = np.stack([y, *columns], axis=-1)
    finite = np.isfinite(table).all(-1)
    weights = np.where(finite, weights, 0.0)
    table = np.where(finite[..., None], table, 0.0)
    total = weights.sum(-1)
    table, weights = table[total > 0], weights[total > 0] / total[total > 0, None]
    raw = np.maximum(np.einsum("bn,bnp->p", weights, table**2), 1.0)
    table = table - np.einsum("bn,bnp->bp", weights, table)[:, None, :]
    moments = np.einsum("bn,bnp,bnq->pq", weights, table, table)
    if not moments[1, 1] > SMALLEST_SHARE * raw[1]:
        return None
    used = 1
    if len(columns) == 2:
        alone = moments[2, 2] - moments[1, 2] ** 2 / moments[1, 1]
        used += alone > SMALLEST_SHARE * raw[2]
    inner = slice(1, 1 + used)
    coefficients = np.linalg.solve(moments[inner, inner], moments[inner, 0])
    residual = table[..., 0] - table[..., inner] @ coefficients
    scores = np.einsum("bn,bnp,bn->bp", weights, table[..., inner], residual)
    prompts = len(scores)
    bread = np.linalg.inv(moments[inner, inner])
    covariance = np.zeros((2, 2))
    correction = prompts / (prompts - 1) if prompts > 1 else math.nan
    covariance[:used, :used] = correction * bread @ (scores.T @ scores) @ bread
    unexplained = np.einsum("bn,bn->", weights, residual**2)
    r_squared = 1 - unexplained / moments[0, 0] if moments[0, 0] > 0 else math.nan
    a, b = (*coefficients.tolist(), math.nan)[:2]
    return (a, b), covariance, float(r_squared)
