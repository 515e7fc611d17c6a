"""How a tabular policy moves to where a rule points."""

from __future__ import annotations

import math

from array_api_compat import array_namespace

from .arrays import Array
from .plays import Plays
from .rules import Update


def step(update: Update, plays: Plays) -> Array:
    """(..., n): θ of π_{t+1} = argmin −η⟨G, π⟩ + B_ψ(π; anchor) + ητR(π, μ).

    The one step of every rule: without R the mirror step anchor + ηG, with η = inf the (smooth)
    best response. GMMD as in RSPO Eq. 38, whose fixed point is the equilibrium at temperature τ;
    Eq. 13 as printed lacks the η before τR, and its fixed point is that of temperature τ/η.

    On K samples of π_t it is log π_{t+1} at the K responses, normalised over the K draws. That
    centres what it sees on the batch, which shrinks its pull by (K − 1)/K; G without the own
    entry is not shrunk, and so R takes K/(K − 1) there to aim at the same temperature.
    """
    own, mirror = plays.own, plays.own.mirror
    # Under the weights that stand for π_t, a density q is log q + log_weight − log π_t.
    shift = 0.0 if own.log_weight is None else own.log_weight - own.logp
    k = own.logp.shape[-1]
    tau = update.tau * k / (k - 1) if plays.diagonal == "exclude" else update.tau
    reference = own.logp_ref + shift
    if update.eta == math.inf:
        theta = _best_response(update.direction, update.regularizer, reference, tau)
    elif update.regularizer is None:
        theta = mirror.normalise(update.anchor + shift + update.eta * update.direction)
    else:
        anchor = update.anchor + shift
        prox = mirror.prox
        theta = prox(update.regularizer, update.direction, anchor, reference, update.eta, tau)
    return theta - shift


def _best_response(direction, regularizer, reference: Array, tau: float) -> Array:
    """(..., n): log of argmax ⟨G, π⟩ − τR(π, μ); without R the first of the best actions."""
    if regularizer is not None:
        return regularizer.best_response(direction, reference, tau)
    xp = array_namespace(direction)
    first = xp.expand_dims(xp.argmax(direction, axis=-1), axis=-1)
    chosen = xp.arange(direction.shape[-1]) == first
    return xp.where(chosen, xp.zeros_like(direction), xp.full_like(direction, -math.inf))
