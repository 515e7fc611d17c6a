"""RSPO, §3 and §3.1: the loss of Eq. 6, its direction, baseline and λ."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...arrays import Array, dot, normalize
from ...divergences import reverse_kl
from ...equilibrium import equilibrium
from ..ledger import (
    ROUNDING,
    Chart,
    Curve,
    Finding,
    Setting,
    claim,
    equal,
    finding,
    largest,
    logit_gradient,
    order,
    size,
    vector,
)
from .cases import KINDS, Case, by_hand, cases, mean_of, minimizer

# §3: the loss, its direction and its baseline.


@claim("RSPO", "Eq. 7", on=KINDS)
def direction(setting: Setting) -> Finding:
    """The update direction G is the gradient of the preference against π_t:
    ∂_π(y) P(π ≻ π_t) = P(y ≻ π_t)."""
    case = cases(setting)
    wins = case.wins(case.current)
    by_theta = case.gradient(lambda logp: mean_of(np.exp(logp), wins))
    return finding(
        printed=equal(by_theta, case.mean(wins)),
        evidence=f"∇_θ P(π_θ ≻ π_t) = E_πθ[∇log πθ·P(y ≻ π_t)] on {case.count} random cases, "
        f"largest difference {size(largest(by_theta - case.mean(wins)))}.",
    )


@claim("RSPO", "§3, B = ½", on=("preference",))
def half_is_the_mean(setting: Setting) -> Finding:
    """B = ½ is the mean value of G when the algorithm converged."""
    case = cases(setting)
    means = dot(np.exp(case.current), case.wins(case.current))
    return finding(
        printed=equal(means, 0.5),
        evidence="E_{y∼π_t} P(y ≻ π_t) = ½ at every π_t, converged or not, since P + Pᵀ = 1: "
        f"largest difference on {len(np.atleast_1d(means))} random π_t "
        f"{size(largest(means - 0.5))}.",
    )


@claim("RSPO", "§3, B = E[G]", on=KINDS)
def variance_optimal_baseline(setting: Setting) -> Finding:
    """In theory, B helps minimize the variance of G the most when B = E_{y∼π_t}[G]."""

    def spreads(logp: Array, g: Array, baseline: Array) -> Array:
        """Total variance of (G − B)∇log π."""
        p, norms = np.exp(logp), 1 - 2 * np.exp(logp) + dot(np.exp(logp), np.exp(logp))[..., None]
        mean = logit_gradient(logp, p * g)
        return dot(p, norms * (g - baseline) ** 2) - dot(mean, mean)

    def weighted(logp: Array, g: Array) -> Array:
        p, norms = np.exp(logp), 1 - 2 * np.exp(logp) + dot(np.exp(logp), np.exp(logp))[..., None]
        return (dot(p, norms * g) / dot(p, norms))[..., None]

    case = cases(setting)
    logp, g = case.current, case.wins(case.current)
    mean, best = dot(np.exp(logp), g)[..., None], weighted(logp, g)
    ours, least = spreads(logp, g, mean), spreads(logp, g, best)
    with np.errstate(divide="ignore"):  # with two actions the least variance is 0
        excess = ours / np.where(least > ROUNDING * ours, least, 0.0)
    no_worse = [np.all(least <= spreads(logp, g, b) + ROUNDING) for b in (mean, best - 0.1, 0.5)]
    return finding(
        printed=bool(np.all(excess <= 1 + 1e-9)),
        corrected=bool(np.all(no_worse)),
        evidence=f"Variance of the gradient estimate (G − B)∇log π, exactly, on {excess.size} "
        f"random policies of {logp.shape[-1]} actions: with B = E[G] it is up to "
        f"{excess.max():.1f} times, in the median {np.median(excess):.2f} times, that with the "
        "best constant.",
        correction="B = E[G] minimizes E(G − B)²; the variance of the gradient estimate is "
        "smallest at B = E[|∇log π|² G]/E[|∇log π|²].",
        counterexample="Two actions, π = (0.9, 0.1), G = (1, 0), ∇log π(y¹) = (0.1, −0.1), "
        "∇log π(y²) = (−0.9, 0.9). With B = E[G] = 0.9 a sample is 0.1·(0.1, −0.1) = (0.01, −0.01) "
        "or −0.9·(−0.9, 0.9) = (0.81, −0.81). With B = 0.1, the mean of G under the weights "
        "π|∇log π|², it is 0.9·(0.1, −0.1) or −0.1·(−0.9, 0.9): (0.09, −0.09) both times, zero "
        "variance.",
    )


@claim("RSPO", "Eq. 6", on=("preference",))
def lam_is_the_temperature(setting: Setting) -> Finding:
    """The coefficient λ of R in the loss is the regularization temperature [the τ of Eq. 4]."""
    rng = setting.rng
    games = setting.games(rng, 50, 3)
    ref = setting.references(rng, games)
    eta, lam = 2.0, 0.6

    def pull(tau: float, estimator: Callable[[Case], Array]) -> float:
        """|gradient| of the loss at θ = θ_t = the equilibrium of temperature τ."""
        star = equilibrium(games, reverse_kl, tau, ref).logp
        case = Case(games.payoff, star, star, ref)
        return largest(case.fit(eta * (case.wins(star) - 0.5)) + lam * estimator(case))

    def square(case: Case) -> Array:
        p = np.exp(case.theta)
        return case.gradient(lambda logp: mean_of(p, (logp - case.ref) ** 2))

    printed = pull(lam, Case.kl_gradient)
    corrected = pull(lam / (2 * eta), Case.kl_gradient), pull(lam / eta, square)
    return finding(
        printed=printed <= 1e-9,
        corrected=max(corrected) <= 1e-9,
        evidence=f"Gradient of the loss of Eq. 6 (R = reverse KL, η = {eta:g}, λ = {lam:g}) at the "
        f"exact equilibrium, on {setting.about(games)}: at temperature λ {size(printed)}; at "
        f"λ/(2η) {size(corrected[0])}; with the square of Eq. 52 for R, at λ/η "
        f"{size(corrected[1])}.",
        correction="τ = λ/(2η) where the term has the gradient of R (Eqs. 53, 54), τ = λ/η where "
        "Eq. 52's square is used for R. With the published η = 1000, λ = 0.5 is τ = 0.0005 for "
        "reverse KL.",
        counterexample="At θ = θ_t the gradient of E_πt[(log πθ/πt − η(G − ½))²] is −2η E_πt[∇log "
        "π·G]: the gradient is zero where 2η E[∇log π·G] = λ∇R. Two actions, P(y¹≻y²) = 0.9, μ = "
        "(½, ½), reverse KL: 2η·0.4 = λ log π₁/π₂, whereas the equilibrium at temperature τ has "
        "0.4 = τ log π₁/π₂.",
    )


# §3.1: SPPO, Nash-MD and OMD as instances.


@claim("RSPO", "Eq. 9", on=("preference",))
def half_for_the_partition(setting: Setting) -> Finding:
    """L_SPPO (Eq. 3, with log Z(π_t) in the target) = L_RSPO(θ; G = P(y≻π_t), B = ½, R = 0)."""
    case = cases(setting).at_current
    wins = case.wins(case.current)
    etas = 2.0 ** -np.arange(1.0, 7.0)
    constants, errors = [], []
    for eta in etas:
        step = normalize(case.current + eta * wins)
        log_z = np.log(mean_of(np.exp(case.current), np.exp(eta * wins)))
        constants.append(np.median(np.abs(log_z - eta / 2)))
        fitted = minimizer(case.current, case.current + eta * (wins - 0.5))
        errors.append(np.median(np.abs(fitted - step).max(axis=-1)))
    of_target, of_step = order(etas, constants), order(etas, errors)
    log_z = np.log(mean_of(np.exp(case.current), np.exp(wins)))[..., None]
    same = equal(case.fit(wins - log_z), case.fit(wins - 0.5))
    hand = by_hand()
    g = hand.wins(hand.current)
    log_z_hand = float(np.log(mean_of(np.exp(hand.current), np.exp(g))))
    return finding(
        printed=largest(constants) <= 1e-12,
        corrected=same and abs(of_target - 2) < 0.2 and of_step > 2.8,
        evidence=f"On {case.count} random cases log Z − η/2 falls as η^{of_target:.1f}, the "
        f"distance in log π of the two losses' minimizers as η^{of_step:.1f} (η from 1/2 to 1/64; "
        f"median {size(errors[0])} at η = ½); gradients at θ = θ_t are "
        f"{'equal' if same else 'unequal'}.",
        correction="log Z = η/2 + O(η²): the losses differ. Their gradients at θ = θ_t are equal, "
        "and the minimizer with B = ½ is the MWU step up to O(η³) in log π.",
        counterexample="P(y¹≻y²) = 0.9, π_t = (0.8, 0.2), η = 1: G = "
        f"{vector(g)}, log Z = log(0.8 e^{g[0]:.2f} + 0.2 e^{g[1]:.2f}) = {log_z_hand:.4f}, not "
        "0.5: the excess is half the variance of ηG, ½·0.16·0.4² = 0.0128, plus higher orders.",
        chart=Chart(
            "B = ½ instead of the log-partition (Eq. 9)",
            "η",
            "median error",
            (
                Curve("log Z − η/2", etas, np.array(constants)),
                Curve("minimizer, in log π", etas, np.array(errors)),
                Curve("∝ η³", etas, errors[0] * (etas / etas[0]) ** 3, bound=True),
            ),
        ),
    )
