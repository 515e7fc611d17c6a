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

from .fits.base import drawn_weights
from .plays import Plays
from .rules import UpdateRule
from .update import Update

FloatArray = NDArray[np.floating]

# What varies less than this within prompts, in nats or in G, is rounding: log-probabilities of long
# responses are sums in float32.
SMALLEST = 1e-6

Y, G, PULL, INSTRUMENT = range(4)  # the variables of the regression


@dataclass(frozen=True)
class EffectiveStep:
    """The η and τ of a step, with standard errors over prompts; NaN where one is not identified.

    tau is also NaN for a rule without a regularizer. r_squared is the share of the variance of
    log π_{t+1}/π_t within prompts that the regression explains: below 1 by sampling noise in G, and
    by what training did that the rule did not ask for; NaN for a corrected step.
    """

    eta: float
    eta_error: float
    tau: float
    tau_error: float
    r_squared: float


def effective_step(
    rule: UpdateRule,
    plays: Plays,
    update: Update,
    logp_next: FloatArray,
    *,
    corrected: bool = False,
) -> EffectiveStep | None:
    """(B, n): log π_{t+1} at the points of `plays`, B prompts -> the step; numpy arrays only.

    In what follows y = log π_{t+1}/a for the rule's anchor a without its share of μ, most often
    π_t, and u is the policy over μ. Up to a constant per prompt y is

    - ηG − ητφ(u_{t+1}) where R acts in the step (GMMD, MMD): its first-order condition,
    - ηG − ητφ(u_t) where R acts in the direction (OMD, INPO) and G is the payoff alone,
    - ηG − ητ log u_t where μ is mixed into the anchor (Nash-MD, MNPO).

    φ(u_{t+1}) contains log π_{t+1}, whatever that is: its coefficient is estimated with φ(u_t) as
    the instrument. For reverse KL this is least squares of log π_{t+1}/π_t on G and log π_t/μ,
    whose coefficients are η/(1 + ητ) and −ητ/(1 + ητ).

    The step `steps.step(update, plays)` gives the η and τ that were asked for, on all actions and
    on samples. Where π_t = μ, φ(u_t) is 0 and τ is not identified; η is then that of the asked τ.

    On samples G is a mean over K − 1 opponents. A policy that took the step in expectation does not
    follow the noise in it, and shows a smaller η: at K = 5 often less than half. With `corrected`
    the variance of that noise, which the spread of a response's comparisons tells, is taken off the
    variance of G (errors in variables; Fuller 1987): then this policy shows η and τ.

    A correction that is uncertain itself is not made: near the equilibrium, where G and τφ nearly
    agree, τ and then η are not identified.

    None for a best response (η = inf), which has no step size; where G is constant, or may be
    noise alone; and corrected where G is not the plain mean over two or more opponents.
    """
    if update.eta == math.inf:
        return None
    own, gain, noise = plays.own, np.asarray(update.direction - update.drift), None
    # On samples `step` multiplies what pulls towards μ by this factor.
    c = 1.0 if own.log_weight is None else plays.centering
    if corrected and own.log_weight is not None:
        found = _over_opponents(plays, gain)
        if found is None:
            return None
        (gain, noise), c = found, 1.0
    base, none = update.anchor, np.zeros(gain.shape)
    pull = instrument = none
    if rule.regularized and rule.tau > 0:
        if rule.regularization == "mixture":
            base = rule.anchor(plays, 0.0)
            pull = instrument = base - own.logp_ref
        else:
            instrument = own.mirror.gradient(rule.regularizer, own.logp, own.logp_ref)
            pull = instrument
            if rule.regularization == "implicit":
                pull = own.mirror.gradient(rule.regularizer, logp_next, own.logp_ref)
    moved = logp_next - own.logp - c * (base - own.logp)
    columns = [moved, gain, c * pull, c * instrument]
    table = np.stack([*map(np.asarray, columns)], axis=-1)
    moments = _moments(table, np.asarray(drawn_weights(plays)), noise)
    total = moments.mean(0) if len(moments) else np.zeros((4, 4))
    if not total[G, G] > SMALLEST**2:
        return None
    rows = [G, INSTRUMENT]
    system = moments[:, rows][:, :, [G, PULL]]
    rest = total[INSTRUMENT, INSTRUMENT] - total[G, INSTRUMENT] ** 2 / total[G, G]
    if not rest > SMALLEST**2 or (corrected and _is_weak(system)):
        tau = 0.0 if pull is none else rule.tau  # y = η(G − τφ) at the τ that was asked for
        system = (moments[:, G, G] - tau * moments[:, G, PULL])[:, None, None]
        if corrected and _is_weak(system):
            return None
        (eta,), covariance = _root(system, moments[:, G, Y, None])
        b, tau, tau_error = -eta * tau, math.nan, math.nan
    else:
        (eta, b), covariance = _root(system, moments[:, rows, Y])
        gradient = np.array([b / eta**2, -1 / eta])  # of τ = −b/η
        tau, tau_error = -b / eta, math.sqrt(gradient @ covariance @ gradient)
    residual = np.array([1.0, -eta, -b, 0.0])
    r_squared = math.nan
    if noise is None and total[Y, Y] > 0:
        r_squared = float(1 - residual @ total @ residual / total[Y, Y])
    return EffectiveStep(eta, math.sqrt(covariance[0, 0]), tau, tau_error, r_squared)


def _over_opponents(plays: Plays, gain: FloatArray) -> tuple[FloatArray, FloatArray] | None:
    """(B, K) × 2: the mean of each response's comparisons with the others, and its variance.

    None where `gain` is not a plain mean over at least two opponents.
    """
    k = gain.shape[-1]
    if plays.payoff is None or k < 3:
        return None
    if not np.allclose(gain, np.asarray(plays.against(drawn_weights(plays)))):
        return None
    others = np.where(np.eye(k, dtype=bool), math.nan, np.asarray(plays.payoff))
    return np.nanmean(others, axis=-1), np.nanvar(others, axis=-1, ddof=1) / (k - 1)


def _moments(table: FloatArray, weights: FloatArray, noise: FloatArray | None) -> FloatArray:
    """(B, n, 4), (B, n) -> (B, 4, 4): covariances of y, G, φ and its instrument within prompts.

    Points that are not finite, such as actions without probability, are left out, and prompts
    without any. With `noise`, (B, n), the points are draws, and the covariances are estimates of
    those over all responses: unbiased but for that of G with itself.
    """
    finite = np.all(np.isfinite(table), axis=-1)
    table, weights = np.where(finite[..., None], table, 0.0), np.where(finite, weights, 0.0)
    used = weights.sum(-1) > 0
    table, weights = table[used], weights[used] / weights[used].sum(-1, keepdims=True)
    table = table - np.einsum("bn,bnp->bp", weights, table)[:, None, :]
    moments = np.einsum("bn,bnp,bnq->bpq", weights, table, table)
    if noise is not None:
        # Covariances with the mean of K draws are biased by 1 − 1/K. Those with G are not: where
        # the other draws are better, G is lower, which makes up for it exactly if P + Pᵀ = 1.
        k = table.shape[1]
        rows, columns = np.ix_([Y, PULL, INSTRUMENT], [Y, PULL, INSTRUMENT])
        moments[:, rows, columns] *= k / (k - 1)
        moments[:, G, G] -= np.einsum("bn,bn->b", weights, noise[used])
    return moments


def _is_weak(systems: FloatArray) -> bool:
    """(B, p, p), p = 1 or 2: whether the mean system may be singular, for all that is known.

    Its determinant is then less than three standard errors from 0, and a solution means nothing.
    """
    mean = systems.mean(0)
    adjugate = np.ones((1, 1))
    if len(mean) == 2:
        adjugate = np.array([[mean[1, 1], -mean[1, 0]], [-mean[0, 1], mean[0, 0]]])
    each = np.einsum("pq,bpq->b", adjugate, systems - mean)  # first order in the deviations
    spread = math.sqrt(float(each @ each) / max(len(each) - 1, 1) / len(each))
    return not abs(np.linalg.det(mean)) > 3 * spread


def _root(systems: FloatArray, values: FloatArray) -> tuple[list[float], FloatArray]:
    """(B, p, p), (B, p) -> the solution x of the mean system, and its covariance.

    The prompts are independent of each other (the sandwich); NaN for a single one.
    """
    inverse = np.linalg.inv(systems.mean(0))
    x = inverse @ values.mean(0)
    scores = values - systems @ x
    prompts = len(scores)
    scale = 1 / (prompts * (prompts - 1)) if prompts > 1 else math.nan
    return x.tolist(), scale * inverse @ (scores.T @ scores) @ inverse.T
