"""The tabular step: the policy π_{t+1} of an update."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace

from .arrays import Array
from .divergences import Divergence
from .plays import Plays
from .update import Update


def step(update: Update, plays: Plays) -> Any:
    """(..., n): θ of π_{t+1} = argmin −η⟨G, π⟩ + B_ψ(π; anchor) + ητR(π, μ).

    The one step of every rule: without R the mirror step anchor + ηG, with η = inf the (smooth)
    best response. GMMD as in RSPO Eq. 38, whose fixed point is the equilibrium at temperature τ;
    Eq. 13 as printed lacks the η before τR, and its fixed point is that of temperature τ/η.

    On K samples of π_t it is log π_{t+1} at the K responses, normalized over the K draws. This
    centers all terms on the batch, which scales them by (K − 1)/K. Payoffs without the own entry
    are not scaled, so all terms that pull towards μ (R, the drift of G, the anchor's share of μ)
    are multiplied by K/(K − 1) there. The fixed point in expectation is then the equilibrium at the
    temperature asked for, up to O(η/K).
    """
    own, mirror = plays.own, plays.own.mirror
    direction, anchor, reference = update.direction, update.anchor, own.logp_ref
    tau, shift = update.tau, None
    if own.log_weight is not None:
        c = plays.centering
        tau, direction = c * tau, direction + (c - 1) * update.drift
        anchor = own.logp + c * (anchor - own.logp)
        # Under the weights of the samples, a density q is log q + log_weight − log of what they are
        # drawn from.
        shift = own.log_base
        anchor, reference = anchor + shift, reference + shift
        if update.regularizer is not None:  # ⟨π, log μ⟩, in the entropy, is about μ unshifted
            direction = direction + tau * update.regularizer.tilt * shift
    if update.eta == math.inf:
        theta = _best_response(direction, update.regularizer, reference, tau)
    elif update.regularizer is None:
        theta = mirror.normalize(anchor + update.eta * direction)
    else:
        theta = mirror.prox(update.regularizer, direction, anchor, reference, update.eta, tau)
    return theta if shift is None else theta - shift


def _best_response(
    direction: Array, regularizer: Divergence | None, reference: Array, tau: float
) -> Array:
    """(..., n): log of argmax ⟨G, π⟩ − τR(π, μ); without R the first of the best actions."""
    if regularizer is not None:
        return regularizer.best_response(direction, reference, tau)
    xp = array_namespace(direction)
    first = xp.expand_dims(xp.argmax(direction, axis=-1), axis=-1)
    chosen = xp.arange(direction.shape[-1]) == first
    return xp.where(chosen, xp.zeros_like(direction), xp.full_like(direction, -math.inf))
