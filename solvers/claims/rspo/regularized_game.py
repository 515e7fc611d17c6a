"""RSPO, §2.3, Eq. 13 and Appendix A.1: the regularized game and its equilibrium."""

from __future__ import annotations

import numpy as np

from games import SymmetricGame

from ...arrays import against, dot
from ...divergences import Divergence, parse, reverse_kl
from ...equilibrium import equilibrium
from ...gap import duality_gap
from ...loop import kl_divergence
from ...plays import Plays
from ...rates import lipschitz
from ...rules import UpdateRule
from ...steps import step
from ..ledger import (
    Finding,
    Setting,
    claim,
    finding,
    largest,
    random_policies,
    size,
    trajectory,
    within,
)

KINDS = ("preference", "skew")
TABLE_6 = ("reverse_kl", "forward_kl", "chi2", "0.1*forward_kl+0.5*reverse_kl")
RATED = (*TABLE_6, "entropy", "js", "hellinger", "alpha:0.5")
ALL = (*RATED, "alpha:-1", "alpha:3")


# The modulus relative to entropy, m(μ), of each; μ₁ ≤ μ₂ are the two smallest entries of μ.
PAIR = "the least of q φ′(p/μ₁) + p φ′(q/μ₂) over p + q = 1"
MODULI = {
    "reverse_kl": "1",
    "entropy": "1",
    "forward_kl": "2√(μ₁μ₂)",
    "chi2": "0",
    "alpha:3": "0",
    "0.1*forward_kl+0.5*reverse_kl": "0.5 + 0.2√(μ₁μ₂)",
    "js": f"{PAIR}, φ′(u) = 1/(2(1 + u))",
    "hellinger": f"{PAIR}, φ′(u) = 1/(4√u)",
    "alpha:-1": f"{PAIR}, φ′(u) = u⁻²",
    "alpha:0.5": f"{PAIR}, φ′(u) = 1/√u",
}


def span(values: np.ndarray) -> str:
    """The range of the values, as text."""
    low, high = float(np.min(values)), float(np.max(values))
    return f"= {low:g}" if high - low < 1e-12 else f"from {low:.2g} to {high:.2g}"


def unit(games: SymmetricGame) -> float:
    """Scale of temperatures in units of the payoff; 1 for preference games."""
    return 2 * lipschitz(games) if games.kind == "skew" else 1.0


# §2.3 and Appendix A.1: the regularized game.


@claim("RSPO", "Prop. A.2", on=KINDS)
def one_equilibrium(setting: Setting) -> Finding:
    """The Nash equilibrium of the regularized game (Eq. 4), R convex, exists and is unique."""
    rng = setting.rng
    games = setting.games(rng, 30, 3)
    ref = setting.references(rng, games)
    tau, exists, elsewhere = 0.1 * unit(games), [], []
    others = random_policies(rng, (20, *ref.shape), spread=2.0)
    for regularizer in map(parse, ALL):
        star = equilibrium(games, regularizer, tau, ref).logp
        exists.append(largest(duality_gap(games, star, None, regularizer, tau, ref)))
        away = np.abs(np.exp(others) - np.exp(star)).max(axis=-1) > 1e-3
        gaps = duality_gap(
            games, others, None, regularizer, tau, np.broadcast_to(ref, others.shape)
        )
        elsewhere.append(gaps[away].min())

    def gap_of_total_variation(p: float) -> float:
        """P(y¹ ≻ y²) = 0.6, τ = 0.1, R = ½Σ|π − μ| = |π(y¹) − ½|: best responses at the kinks."""
        gain = [0.1 * q - 0.1 * abs(q - 0.5) for q in (0, 0.5, 1, p)]
        return 2 * (max(gain) - gain[-1])

    several = [gap_of_total_variation(p) for p in (0.5, 0.7, 0.9, 1.0)]
    return finding(
        printed=max(several) > 1e-12,
        corrected=max(exists) <= 1e-10 and min(elsewhere) > 0,
        evidence=f"{len(ALL)} strictly convex R on {setting.about(games)}, τ = {tau:g}: the "
        f"equilibrium found has a duality gap {size(max(exists))}, 20 other policies each have a "
        "positive one. The total variation is also convex, but has several equilibria.",
        correction="R must be strictly convex in π, as every divergence here is; convexity "
        "alone gives existence. (Unregularized games, R = 0, are convex and can have many.)",
        counterexample="Two actions, P(y¹≻y²) = 0.6, μ = (½, ½), R = ½Σ|π − μ| = |π(y¹) − ½|, τ = "
        "0.1. Against any opponent y¹ wins 0.1 more than y², so that π(y¹) = q earns 0.1q − "
        "0.1|q − ½|, which is 0.05 for every q ≥ ½: every policy with π(y¹) ≥ ½ is an "
        "equilibrium.",
    )


@claim("RSPO", "Eq. 39", on=KINDS)
def variational_inequality(setting: Setting) -> Finding:
    """π* solves ⟨∂(−U(π; π*) + τR(π, μ)) at π*, π − π*⟩ ≥ 0 for all π iff it is the equilibrium of
    the regularized game."""
    rng = setting.rng
    games = setting.games(rng, 50, 3)
    ref = setting.references(rng, games)
    tau = 0.2 * unit(games)
    lowest, highest = [], []
    for regularizer in map(parse, TABLE_6):
        star = equilibrium(games, regularizer, tau, ref).logp

        def slope(logp: np.ndarray, regularizer: Divergence = regularizer) -> np.ndarray:
            wins = against(games.payoff, np.exp(logp))
            return tau * regularizer.gradient(logp, ref) - wins

        others = random_policies(rng, (20, *ref.shape), spread=2.0)
        lowest.append((slope(star) * (np.exp(others) - np.exp(star))).sum(axis=-1).min())
        not_star = others[0]
        vertex = slope(not_star).min(axis=-1) - dot(np.exp(not_star), slope(not_star))
        highest.append(vertex.max())
    return finding(
        printed=min(lowest) >= -1e-9 and max(highest) < 0,
        evidence=f"{len(TABLE_6)} R on {setting.about(games)}: at the equilibrium the product is ≥ "
        "0 for 20 random π each, at a random other policy it is negative for some π.",
    )


# §3.2: the temperature, the condition and the rate of GMMD.


@claim("RSPO", "Eq. 13", on=KINDS)
def printed_temperature(setting: Setting) -> Finding:
    """π_{t+1} = argmin −ηE_π[G] + B_ψ(π; π_t) + τR(π, μ), without η before τR, has as its
    fixed point the equilibrium of the game regularized at τ (Eq. 4)."""
    rng = setting.rng
    games = setting.games(rng, 50, 3)
    ref = setting.references(rng, games)
    tau, eta = 0.2 * unit(games), 0.5 / unit(games)

    def moved(regularizer: Divergence, of_the_game: float, in_the_step: float) -> float:
        """How far the step at temperature `in_the_step` moves the equilibrium of another."""
        star = equilibrium(games, regularizer, of_the_game, ref).logp
        rule = setting.rule("gmmd", eta=eta, tau=in_the_step, regularizer=regularizer)
        plays = Plays.exact(games.payoff, star, ref)
        with np.errstate(invalid="ignore"):  # exact zeros of χ² in the anchor
            return largest(np.exp(step(rule(plays), plays)) - np.exp(star))

    regularizers = [parse(spec) for spec in TABLE_6]
    printed = [moved(r, tau, tau / eta) for r in regularizers]
    scaled = [moved(r, tau / eta, tau / eta) for r in regularizers]
    corrected = [moved(r, tau, tau) for r in regularizers]
    return finding(
        printed=max(printed) <= 1e-9,
        corrected=max(corrected + scaled) <= 1e-9,
        evidence=f"{len(TABLE_6)} R on {setting.about(games)}, τ = {tau:.2g}, η = {eta:.2g}: one "
        f"step of Eq. 13 moves the equilibrium of τ by {size(max(printed))} and that of τ/η by "
        f"{size(max(scaled))}; with ητR it moves that of τ by {size(max(corrected))}.",
        correction="ητR(π, μ), as in Eq. 38. As printed its fixed point is the equilibrium at "
        "temperature τ/η.",
        counterexample="Two actions, P(y¹≻y²) = 0.9, μ = (½, ½), reverse KL, τ = 0.2, η = 0.5; x "
        "= log π(y¹)/π(y²). y¹ wins 0.4 more than y² against anyone, so that the equilibrium has "
        "x = 0.4/0.2 = 2. Eq. 13 gives x ← (x + 0.5·0.4)/(1 + 0.2), whose fixed point is x "
        "= 1 = 0.4/0.4; with ητ, x ← (x + 0.2)/(1 + 0.1) has the fixed point 2.",
    )


def power(base: float, kl: np.ndarray) -> np.ndarray:
    """base^t for t = 0, 1, …, with the shape (T, ...) of kl."""
    return base ** np.arange(float(len(kl)))[(..., *(None,) * (kl.ndim - 1))]


def gmmd(setting: Setting, regularizer: Divergence, eta: float, tau: float) -> UpdateRule:
    """The rule GMMD, or MMD if R = B_ψ."""
    name = "mmd" if regularizer == reverse_kl else "gmmd"
    return setting.rule(name, eta=eta, tau=tau, regularizer=regularizer)


def kls(setting, games, ref, regularizer, tau, eta, steps, start) -> np.ndarray:
    """(steps + 1, ...): KL(π*‖π_t) of GMMD."""
    star = equilibrium(games, regularizer, tau, ref).logp
    points = trajectory(gmmd(setting, regularizer, eta, tau), games, start, ref, steps)
    return kl_divergence(star, points)


@claim("RSPO", "App. A.3")
def operator_is_not_constant(setting: Setting) -> Finding:
    """F(z) − F(z′) = −∂U(π; π_t) + ∂U(π′; π_t) = 0 since U is linear; therefore F is monotone and
    L-smooth."""
    rng = setting.rng
    games = setting.games(rng, 100, 4)
    first, second = (np.exp(random_policies(rng, (*games.batch_shape, 4))) for _ in range(2))
    change = against(games.payoff, first - second)
    product = dot(first - second, change)
    lip = 0.5 * (games.payoff.max(axis=-1) - games.payoff.min(axis=-1)).max(axis=-1)
    held, worst = within(np.abs(change).max(axis=-1), lip * np.abs(first - second).sum(axis=-1))
    return finding(
        printed=largest(change) <= 1e-12,
        corrected=held and largest(product) <= 1e-12,
        evidence=f"{setting.about(games)}: F(z) − F(z′) is up to {largest(change):.2f}; ⟨F(z) − "
        f"F(z′), z − z′⟩ {size(largest(product))}; ‖F(z) − F(z′)‖_∞/(L‖z − z′‖₁) at most "
        f"{worst:.2f}.",
        correction="F(π) = −P(· ≻ π) depends on the opponent. ⟨F(z) − F(z′), z − z′⟩ = 0 by skew "
        "symmetry, so that F is monotone, and L = ½ maxᵢ(maxⱼ Pᵢⱼ − minⱼ Pᵢⱼ), not 0: hence "
        "the bound on η.",
        counterexample="Rock–paper–scissors, z = rock, z′ = paper: F(z) = −(½, 1, 0), F(z′) = "
        "−(0, ½, 1), F(z) − F(z′) = (−½, −½, 1), ⟨F(z) − F(z′), z − z′⟩ = −½ + ½ = 0.",
    )
