"""RSPO, Appendices A.2 and A.4: the derivations for OMD and GMMD (see `derivation_nash_md`)."""

from __future__ import annotations

import numpy as np

from ...divergences import parse
from ..ledger import (
    Finding,
    Setting,
    claim,
    equal,
    finding,
    largest,
    size,
)
from .cases import HAND, KINDS, Case, by_hand, cases
from .derivation_nash_md import compare_lines, log_ratios

# OMD: Eqs. 32–36.


def _omd_target(case: Case) -> np.ndarray:
    return case.wins(case.current) - case.tau * log_ratios(case)[2]


def _eq32(case: Case) -> np.ndarray:
    goal = _omd_target(case)

    def loss(logp: np.ndarray) -> np.ndarray:
        p = np.exp(logp)
        return (-case.eta * p * goal + p * (logp - case.current)).sum(axis=-1)

    return case.gradient(loss)


def _eq33(case: Case, inside: float = 1.0) -> np.ndarray:
    goal = _omd_target(case)

    def gain(logp: np.ndarray) -> np.ndarray:
        return (np.exp(logp) * (goal - inside * (logp - case.current))).sum(axis=-1)

    return -case.eta * case.gradient(gain)


def _eq34(case: Case) -> np.ndarray:
    return -case.eta * case.mean(_omd_target(case) - log_ratios(case)[0])


def _eq35(case: Case) -> np.ndarray:
    return case.eta / 2 * case.fit(_omd_target(case), np.exp(case.theta))


def _eq36(case: Case) -> np.ndarray:
    return case.eta / 2 * case.fit(_omd_target(case))


@claim("RSPO", "Eq. 33", on=KINDS)
def line_33(setting: Setting) -> Finding:
    """Eq. 32 = Eq. 33: −∇ηE_πθ[P(y≻π_t) − τ log π_t/μ] + ∇KL(π_θ‖π_t)
    = −∇ηE_πθ[P(y≻π_t) − τ log π_t/μ − log π_θ/π_t]."""
    return compare_lines(
        setting,
        _eq32,
        _eq33,
        lambda case: _eq33(case, 1 / case.eta),
        correction="(1/η) log π_θ/π_t in the brackets, since η multiplies all of them. (∇ is "
        "missing before the KL of Eq. 32; read as above.)",
        worked="G = P(y≻π_t) − τ log π_t/μ = (0.3450, 0.6381). −½·0.24·(−0.2931) + 0.24·(−0.9808) "
        "against −½·0.24·(−0.2931 + 0.9808). ",
    )


@claim(
    "RSPO",
    "Eq. {each}",
    each={"34": "E_πθ[∇log π_θ] = 0", "35": "the bracket times its gradient is half of ∇(…)²"},
    on=KINDS,
)
def lines_34_35(setting: Setting, each: str) -> Finding:
    """Eq. {each} = the line above it: {text}."""
    above, below = {"34": (_eq33, _eq34), "35": (_eq34, _eq35)}[each]
    return compare_lines(setting, above, below)


@claim("RSPO", "Eq. 36", on=KINDS)
def line_36(setting: Setting) -> Finding:
    """Eq. 35 = Eq. 36: OMD's gradient is (η/2)∇E_{y∼π_t}[(log π_θ/π_t − (P(y≻π_t) −
    τ log π_t/μ))²], so that OMD is RSPO with that G and R = 0."""
    return compare_lines(
        setting,
        _eq35,
        _eq36,
        correction="At θ = θ_t only. RSPO's square has η(G − B) where this one has G: the same "
        "gradient at θ = θ_t, but the minimizer is OMD's step only with η.",
        at_current=True,
        worked="G − log πθ/π_t = (0.6327, −0.0550): −½·0.24·0.6877 against −½(0.32·0.6327 + "
        "0.12·0.0550). ",
    )


# RSPO and GMMD: Eqs. 15 and 41–46. R is χ²; λ = 2τ, τ as in Eq. 13 (without η).

CHI2 = parse("chi2")


def _pull(case: Case) -> np.ndarray:
    return case.mean(CHI2.gradient(case.theta, case.ref))


def _gmmd_loss(case: Case) -> np.ndarray:
    """∇ of Eq. 14."""
    g = case.wins(case.current)

    def loss(logp: np.ndarray) -> np.ndarray:
        return (np.exp(logp) * (-case.eta * g + logp - case.current)).sum(axis=-1)

    return case.gradient(loss) + case.tau * _pull(case)


def _rspo_loss(case: Case, lam: float | None = None) -> np.ndarray:
    """∇ of Eq. 43."""
    square = case.fit(case.eta * (case.wins(case.current) - 0.5))
    return square + (2 * case.tau if lam is None else lam) * _pull(case)


def _eq44(case: Case) -> np.ndarray:
    """B without its η."""
    return case.fit(case.eta * case.wins(case.current) - 0.5) + 2 * case.tau * _pull(case)


@claim("RSPO", "Eq. 15", on=KINDS)
def line_15(setting: Setting) -> Finding:
    """∇L_GMMD(θ) = E_{y∼π_θ}[∇log π_θ(y)(−ηG + log π_θ/π_t + B)] + τ∇R, for any B without θ."""

    def eq15(case: Case, baseline: float = 0.37) -> np.ndarray:
        g = case.wins(case.current)
        values = -case.eta * g + log_ratios(case)[0] + baseline
        return case.mean(values) + case.tau * _pull(case)

    return compare_lines(setting, _gmmd_loss, eq15)


@claim("RSPO", "Eq. 41", on=KINDS)
def line_41(setting: Setting) -> Finding:
    """∇L_GMMD(θ) = ½∇L_RSPO(θ): the losses are equivalent up to a constant factor."""
    return compare_lines(
        setting,
        _gmmd_loss,
        lambda case: _rspo_loss(case) / 2,
        at_current=True,
        correction="At θ = θ_t only, and there with λ = 2τ, τ as in Eq. 13: in terms of the game's "
        "temperature (Eq. 38: ητR) λ = 2ητ. At other θ samples need the weights π_θ/π_t.",
        worked="∇χ² = 0.24·0.4 = 0.096, G = P(y≻π_t): −½·0.24·0.4 + 0.24·(−0.9808) + ½·0.096 "
        "against −(0.32·(0.04 + 0.2877) + 0.12·(0.16 + 0.6931)) + ½·0.096. ",
    )


@claim("RSPO", "Eq. 44", on=KINDS)
def line_44(setting: Setting) -> Finding:
    """Eq. 43 = Eq. 44: −η(P(y≻π_t) − ½) may be written −ηP(y≻π_t) + B."""
    return compare_lines(
        setting,
        _rspo_loss,
        _eq44,
        at_current=True,
        correction="ηB, as in Eq. 41. At θ = θ_t any constant works, since E_πt[∇log π_t] = 0.",
        worked="The bracket changes by ½ − η·½ = ¼, the gradient by 2·¼·(0.32 − 0.12). ",
    )


@claim("RSPO", "Eq. 45", on=KINDS)
def line_45(setting: Setting) -> Finding:
    """Eq. 44 = Eq. 45: λ∇R = 2τ∇R [λ and τ both being "the regularization temperature"]."""
    case, hand = cases(setting), by_hand()
    off = largest(_rspo_loss(case, case.tau) - _rspo_loss(case)) / largest(_rspo_loss(case))
    first, second = _rspo_loss(hand, hand.tau)[0], _rspo_loss(hand)[0]
    return finding(
        printed=equal(_rspo_loss(case, case.tau), _rspo_loss(case)),
        corrected=equal(_rspo_loss(case, 2 * case.tau), _rspo_loss(case)),
        evidence=f"{case.count} random cases: with λ = τ they differ by up to {size(off)}, "
        "relative to the first; with λ = 2τ they are equal.",
        correction="λ = 2τ with the τ of Eq. 13, λ = 2ητ with the temperature of the game.",
        counterexample=f"{HAND} With λ = τ, R = χ²: first {first:.4f}, second {second:.4f}; they "
        "differ by τ∇χ² = ½·0.24·(1.2 − 0.8).",
    )


@claim("RSPO", "Eq. 46", on=KINDS)
def line_46(setting: Setting) -> Finding:
    """∇L_RSPO(θ) = 2∇L_GMMD(θ) (Eqs. 42–46), so that RSPO inherits the convergence of GMMD."""
    return compare_lines(
        setting,
        _rspo_loss,
        lambda case: 2 * _gmmd_loss(case),
        at_current=True,
        correction="At θ = θ_t only, with λ = 2τ. The fixed point is inherited; the minimizer that "
        "Algorithm 1 asks for differs from GMMD's step by O(η²) in log π (Cor. 3.2).",
        worked="Twice the two numbers of Eq. 41. ",
    )
