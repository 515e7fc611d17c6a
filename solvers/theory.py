"""Theorems on step sizes and rates, as objects that rules carry."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass

from games.errors import InputError

from .arrays import Array

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constants:
    """The constants of a theorem: of a game, of a regularizer, and of a rule.

    lipschitz    L, see `rates.lipschitz`
    modulus      m, see `rates.modulus`
    tau          temperature of the rule
    regularizer  its name, for messages
    """

    lipschitz: float
    modulus: float
    tau: float
    regularizer: str = "the regularizer"


@dataclass(frozen=True)
class Theory:
    """The theorem of a rule.

    step   constants -> the step size that it requires, a number or a schedule t -> η_t. Raises
           InputError, with the reason, where it gives none
    rate   (eta, constants) -> the factor by which a step of constant size shrinks KL(π*‖π_t) at
           least, or None where the theorem does not apply
    bound  (eta, constants, t) -> (T,) a bound on KL(π*‖π_t) that does not depend on the start, or
           None; `eta` is a number or a schedule
    """

    step: Callable[[Constants], float | Schedule]
    rate: Callable[[float, Constants], float | None] | None = None
    bound: Callable[[float | Schedule, Constants, Array], Array | None] | None = None


def largest_step(known: Constants) -> float:
    """τm/L²: the largest constant step for which GMMD and MMD are certain to converge.

    Sokota et al. 2022, Thm 3.4. (RSPO Prop. 3.1 prints η ≤ τ, which is not enough where m < L²;
    preferences have L ≤ ½.) Raises InputError where τ, m or L is 0, or the step underflows.
    """
    if known.tau == 0:
        raise InputError("without a regularizer (tau = 0) theory gives no step size: give eta")
    if known.modulus == 0:
        raise InputError(
            f"regularizer '{known.regularizer}' is not strongly convex relative to entropy "
            "(m = 0), so that no theorem gives a step size: give a number for eta"
        )
    step = known.tau * known.modulus / _positive(known.lipschitz) / known.lipschitz
    if step < sys.float_info.min:  # 1/step would be infinite
        raise InputError(
            f"the step size by theory is too small to compute with at τ = {known.tau:g} and "
            f"payoffs of this size (L = {known.lipschitz:g}): give a number for eta"
        )
    return step


def harmonic(tau: float, first: int = 2) -> Schedule:
    """η_t = 2/(τ(t + first)) at steps t = 0, 1, …: Nash-MD's schedule (Munos et al., Thm 1).

    INPO's (Theorem 4, η there is 1/η here) counts from 1: first = 3.
    """
    return lambda t: 2 / (tau * (t + first))


def _positive(lipschitz: float) -> float:
    if lipschitz == 0:
        raise InputError("all payoffs are equal (L = 0): every step size converges, give a number")
    return lipschitz


def _harmonic_step(first: int) -> Callable[[Constants], Schedule]:
    def step(known: Constants) -> Schedule:
        if known.tau == 0:
            raise InputError("without a regularizer (tau = 0) theory gives no step size: give eta")
        return harmonic(known.tau, first)

    return step


def _contraction(eta: float, known: Constants) -> float | None:
    """1/(1 + ητm), where m > 0."""
    return 1 / (1 + eta * known.tau * known.modulus) if known.modulus > 0 else None


def _gmmd_rate(eta: float, known: Constants) -> float | None:
    small = eta * known.lipschitz * known.lipschitz <= known.tau * known.modulus * (1 + 1e-12)
    return _contraction(eta, known) if small else None


def _egpo_rate(eta: float, known: Constants) -> float | None:
    return _contraction(eta, known) if eta * known.lipschitz <= 1 + 1e-12 else None


def _nash_md_bound(eta: float | Schedule, known: Constants, t: Array) -> Array | None:
    return 8 / known.tau / known.tau / (t + 1) if callable(eta) else None


# Sokota et al. 2022, Thm 3.4.
GMMD = Theory(largest_step, _gmmd_rate)
# PAPERS.md, Derivations.
EGPO = Theory(lambda known: 1 / _positive(known.lipschitz), _egpo_rate)
# Wei et al. 2021, Thm 3, for a unique equilibrium.
OPTIMISTIC = Theory(lambda known: 1 / (8 * _positive(known.lipschitz)))
# Munos et al., Thm 1, for preferences in [0, 1].
NASH_MD = Theory(_harmonic_step(2), bound=_nash_md_bound)
# INPO, Theorem 4.
INPO = Theory(_harmonic_step(3))


def constant(eta: float | Schedule | str | None) -> bool:
    """Whether a step size is a finite number, the same at all steps."""
    return isinstance(eta, int | float) and math.isfinite(eta)
