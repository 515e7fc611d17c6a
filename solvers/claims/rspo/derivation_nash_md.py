"""RSPO, Appendix A: the derivation for Nash-MD, each line compared with the line above it.

Two lines can be equal for every θ, only at θ = θ_t, up to another factor, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..ledger import (
    ROUNDING,
    Finding,
    Setting,
    claim,
    equal,
    finding,
    largest,
    logit_gradient,
    size,
)
from .cases import HAND, KINDS, Case, by_hand, cases

Line = Callable[[Case], np.ndarray]


def compare_lines(
    setting: Setting,
    above: Line,
    below: Line,
    corrected: Line | None = None,
    correction: str = "",
    at_current: bool = False,
    worked: str = "",
) -> Finding:
    """Compares two lines of a derivation, then the first with the `corrected` second line.

    `at_current` restricts the second comparison to θ = θ_t. `worked` is the arithmetic of the
    example by hand; the values of both lines are appended to it.
    """
    case, hand = cases(setting), by_hand()
    other = corrected or below
    where = case.at_current if at_current else case
    off = largest(above(case) - below(case)) / largest(above(case))
    left, right = above(hand)[0], below(hand)[0]
    is_corrected = (at_current or corrected is not None) and equal(above(where), other(where))
    place = "θ = θ_t" if at_current else "every θ"
    if off < ROUNDING:
        return finding(printed=True, evidence=f"{case.count} random cases: equal to rounding.")
    repaired = f" As corrected they are equal at {place}." if is_corrected else ""
    return finding(
        printed=False,
        corrected=is_corrected,
        evidence=f"{case.count} random cases: they differ by up to {size(off)}, relative to the "
        f"first.{repaired}",
        correction=correction,
        counterexample=f"{HAND} {worked}First {left:.4f}, second {right:.4f}.",
    )


# Nash-MD as RSPO with external regularization: Eqs. 17–25. A = P(y ≻ π_t^μ) − ½ throughout.


def _advantage(case: Case) -> np.ndarray:
    return case.wins(case.mixture) - 0.5


def log_ratios(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log π_θ/π_t, log π_θ/μ and log π_t/μ."""
    return case.theta - case.current, case.theta - case.ref, case.current - case.ref


def _nash_md(case: Case) -> np.ndarray:
    """Eqs. 19 and 26, the definition (an ascent direction)."""
    return case.mean(_advantage(case) - case.tau * log_ratios(case)[1])


def _eq20(case: Case) -> np.ndarray:
    _, to_ref, current_to_ref = log_ratios(case)
    return case.mean(_advantage(case) - case.tau * to_ref + 2 * case.tau * current_to_ref)


def _eq21(case: Case) -> np.ndarray:
    to_current, to_ref, _ = log_ratios(case)
    return case.mean(_advantage(case) - 2 * case.tau * to_current + case.tau * to_ref)


def _first_part(case: Case) -> np.ndarray:
    return case.mean(_advantage(case) - 2 * case.tau * log_ratios(case)[0])


def _eq22(case: Case) -> np.ndarray:
    def expected(logp: np.ndarray) -> np.ndarray:
        return (np.exp(logp) * (logp - case.ref)).sum(axis=-1)

    return _first_part(case) + case.tau * case.gradient(expected)


def _eq23(case: Case) -> np.ndarray:
    return _first_part(case) + case.tau * case.kl_gradient()


def _eq24(case: Case, factor: float = 2.0, power: int = 2) -> np.ndarray:
    fit = case.fit(_advantage(case) / (2 * case.tau), np.exp(case.theta))
    return factor * case.tau**power * fit + case.tau * case.kl_gradient()


def _eq25(case: Case) -> np.ndarray:
    fit = case.fit(_advantage(case) / (2 * case.tau))
    return 2 * case.tau**2 * fit + case.tau * case.kl_gradient()


@claim("RSPO", "Eq. 10", on=KINDS)
def nash_md_as_rspo(setting: Setting) -> Finding:
    """∇L_Nash-MD(θ) = ∇L_RSPO(θ; G = P(y ≻ π_t^μ), B = ½, R = KL(π_θ‖μ)) (also Eq. 17)."""
    case = cases(setting)

    def misfit(case: Case) -> np.ndarray:
        """Distance of Eq. 19 from all a·∇(squares) + b·∇KL, relative: 0 if some λ does."""
        parts = case.fit(case.eta * _advantage(case)), case.kl_gradient()
        basis = np.stack(parts, axis=-1)
        goal = _nash_md(case)[..., None]
        left = goal - basis @ (np.linalg.pinv(basis) @ goal)
        return np.linalg.norm(left, axis=(-2, -1)) / np.linalg.norm(goal, axis=(-2, -1))

    here = case.at_current
    loss = here.fit(here.eta * _advantage(here)) + 2 * here.eta * here.tau * here.kl_gradient()
    exact = equal(-2 * here.eta * _nash_md(here), loss)
    return finding(
        printed=bool(np.all(misfit(case) < 1e-9)),
        corrected=exact,
        evidence=f"{case.count} random cases: at θ ≠ θ_t the gradients differ for every λ and "
        f"every common factor (median distance {np.median(misfit(case)):.2f} of the length, with "
        "the best choice of both); at θ = θ_t they are equal with λ = 2ητ and the factor −2η.",
        correction="∇L_RSPO = −2η × Eq. 19 at θ = θ_t with λ = 2ητ. For θ ≠ θ_t the gradients "
        "differ. Eq. 19 is an ascent direction, hence the sign.",
        counterexample="At θ = θ_t the square gives −2η E[∇log π·A] and λ∇KL = λE[∇log π·log π/μ]: "
        "together −2η times Eq. 19 where λ = 2ητ. Eq. 25 as printed has 1/(2τ) for both η and λ, "
        "which is temperature λ/(2η) = ½ whatever τ.",
    )


@claim("RSPO", "Eq. 20", on=KINDS)
def line_20(setting: Setting) -> Finding:
    """Eq. 19 = Eq. 20: adding 2τ log π_t(y)/μ(y) in the brackets changes nothing, for
    E_{y∼π_θ}[∇log π_θ(y) log π_t(y)/μ(y)] = ∇ log π_t(y)/μ(y) = 0."""
    case, hand = cases(setting), by_hand()
    started = Case(case.payoff, case.theta, case.ref, case.ref)
    added = (_eq20(hand) - _nash_md(hand))[0]
    off = largest(_eq20(case) - _nash_md(case)) / largest(_nash_md(case))
    return finding(
        printed=equal(_nash_md(case), _eq20(case)),
        instead=equal(_nash_md(started), _eq20(started)),
        evidence=f"{case.count} random cases: the added term is up to {off:.1f} times as large.",
        correction="Zero only where log π_t/μ is the same for all y, that is at π_t = μ "
        "(measured): its expectation under π_θ depends on θ.",
        counterexample=f"{HAND} E_πθ[∇log πθ·log π_t/μ] = 0.6·0.4·(log 1.6 − log 0.4) = "
        f"{0.24 * np.log(4):.4f}, and the added term is 2τ times that, {added:.4f}; the gradient "
        f"itself is {_nash_md(hand)[0]:.4f}.",
    )


@claim(
    "RSPO",
    "Eq. {each}",
    each={
        "21": "−τ log π_θ/μ + 2τ log π_t/μ = −2τ log π_θ/π_t + τ log π_θ/μ in the brackets",
        "22": "E[∇log π_θ·τ log π_θ/μ] = τ∇E_{y∼π_θ}[log π_θ/μ]",
        "23": "that last term is τ∇KL(π_θ‖μ)",
    },
    on=KINDS,
)
def lines_21_to_23(setting: Setting, each: str) -> Finding:
    """Eq. {each} = the line above it: {text}."""
    lines = {"20": _eq20, "21": _eq21, "22": _eq22, "23": _eq23}
    return compare_lines(setting, lines[str(int(each) - 1)], lines[each])


@claim("RSPO", "Eq. 24", on=KINDS)
def line_24(setting: Setting) -> Finding:
    """Eq. 23 = Eq. 24: E_πθ[∇log πθ (A − 2τ log πθ/π_t)] = 2τ² E_πθ[∇(log πθ/π_t − A/(2τ))²],
    A = P(y ≻ π_t^μ) − ½."""
    return compare_lines(
        setting,
        _eq23,
        _eq24,
        lambda case: _eq24(case, -1, 1),
        correction="The factor is −τ, not 2τ²: ∇(log πθ/π_t − A/(2τ))² = −(1/τ)(A − 2τ log "
        "πθ/π_t)∇log πθ. The sign matters because +τ∇KL is added to it.",
        worked="∇KL = 0.24·0.4055 = 0.0973 and E_πθ[∇log πθ(A − log πθ/π_t)] = 0.24(0.4 + 0.9808) "
        "= 0.3314: 0.3314 + ½·0.0973 against −2τ·0.3314 + ½·0.0973. ",
    )


@claim("RSPO", "Eq. 25", on=KINDS)
def line_25(setting: Setting) -> Finding:
    """Eq. 24 = Eq. 25: E_{y∼π_θ}[∇(…)²] = ∇E_{y∼π_t}[(…)²]."""
    return compare_lines(
        setting,
        _eq24,
        _eq25,
        correction="At θ = θ_t only, where π_θ = π_t.",
        at_current=True,
        worked="The squares: −2τ·0.3314 against −2τ(0.32·0.3922 + 0.12·0.9886) = −0.2442; ½∇KL = "
        "0.0487. ",
    )


# Nash-MD as RSPO without: Eqs. 11 and 26–31.


def _inner(case: Case) -> np.ndarray:
    """P(y ≻ π_t^μ) − ½ − τ log π_θ/π_t − τ log π_t/μ."""
    to_current, _, current_to_ref = log_ratios(case)
    return _advantage(case) - case.tau * to_current - case.tau * current_to_ref


def _target(case: Case) -> np.ndarray:
    return _advantage(case) - case.tau * log_ratios(case)[2]


def _eq28(case: Case) -> np.ndarray:
    return case.mean(_inner(case))


def _eq29(case: Case) -> np.ndarray:
    return logit_gradient(case.theta, np.exp(case.current) * _inner(case))


def _eq30(case: Case) -> np.ndarray:
    p, goal = np.exp(case.current), _target(case)

    def loss(logp: np.ndarray) -> np.ndarray:
        return (p * (case.tau * (logp - case.current) - goal) ** 2).sum(axis=-1) / 2

    return case.gradient(loss)


def _eq31(case: Case) -> np.ndarray:
    return case.tau**2 * case.fit(_target(case) / case.tau) / 2


@claim("RSPO", "Eq. 11", on=KINDS)
def nash_md_without_regularizer(setting: Setting) -> Finding:
    """∇L_Nash-MD(θ) = ∇L_RSPO(θ; G = P(y ≻ π_t^μ) − τ log π_t/μ, B = ½, R = 0)."""
    return compare_lines(
        setting,
        _nash_md,
        lambda case: case.fit(case.eta * _target(case)),
        lambda case: case.fit(case.eta * _target(case)) / (-2 * case.eta),
        at_current=True,
        correction="∇L_RSPO = −2η∇L_Nash-MD, at θ = θ_t only. The tabular steps are equal for any "
        "η (Table 5).",
        worked="A − τ log πθ/μ = (0.0133, −0.1839), 0.24 times their difference; against "
        "−2(0.32·(η(A − τ log π_t/μ) − log πθ/π_t)₁ − 0.12·(…)₂), (…) = (0.2224, −0.6118). ",
    )


@claim(
    "RSPO",
    "Eq. {each}",
    each={
        "27": "log π_t is added and subtracted",
        "28": "E_{y′∼π_t^μ}[P(y ≻ y′)] = P(y ≻ π_t^μ)",
        "31": "τ is taken out of the square",
    },
    on=KINDS,
)
def lines_that_hold(setting: Setting, each: str) -> Finding:
    """Eq. {each} = the line above it: {text}."""

    def pairs(case: Case) -> np.ndarray:
        """Eq. 27: over pairs y ∼ π_θ, y′ ∼ π_t^μ."""
        weights = np.exp(case.theta)[..., :, None] * np.exp(case.mixture)[..., None, :]
        values = case.payoff - 0.5 + (_inner(case) - _advantage(case))[..., :, None]
        summed = (weights * values).sum(axis=-1)
        return summed - np.exp(case.theta) * summed.sum(axis=-1, keepdims=True)

    above, below = {"27": (_nash_md, pairs), "28": (pairs, _eq28), "31": (_eq30, _eq31)}[each]
    return compare_lines(setting, above, below)


@claim("RSPO", "Eq. 29", on=KINDS)
def line_29(setting: Setting) -> Finding:
    """Eq. 28 = Eq. 29: E_{y∼π_θ} may be written E_{y∼π_t}."""
    return compare_lines(
        setting,
        _eq28,
        _eq29,
        correction="At θ = θ_t only.",
        at_current=True,
        worked="The bracket is (0.0133, −0.1839) both times: 0.24·0.1972 against 0.32·0.0133 + "
        "0.12·0.1839. ",
    )


@claim("RSPO", "Eq. 30", on=KINDS)
def line_30(setting: Setting) -> Finding:
    """Eq. 29 = Eq. 30: E_πt[∇log πθ (A′ − τ log πθ/π_t)] = ½∇E_πt[(τ log πθ/π_t − A′)²]."""
    return compare_lines(
        setting,
        _eq29,
        _eq30,
        lambda case: -_eq30(case) / case.tau,
        correction="The factor −1/τ is missing: ½∇(τ log πθ/π_t − A′)² = −τ(A′ − τ log πθ/π_t)∇log "
        "πθ.",
        worked="The second is −τ = −½ times the first. ",
    )
