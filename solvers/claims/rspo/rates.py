"""RSPO, §3.2: the condition and the rate of GMMD."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from games import PreferenceGame, SkewGame, zoo

from ...arrays import normalize
from ...divergences import Divergence, parse
from ...equilibrium import equilibrium
from ...loop import kl_divergence
from ...rates import lipschitz
from ..ledger import (
    Chart,
    Curve,
    Finding,
    Setting,
    claim,
    finding,
    random_policies,
    size,
    trajectory,
    vector,
    within,
)
from .cases import KINDS
from .regularized_game import MODULI, RATED, gmmd, kls, power, span, unit


@claim("RSPO", "Prop. 3.1", on=KINDS)
def condition(setting: Setting) -> Finding:
    """If R is 1-strongly convex relative to ψ, η ≤ τ, and U is linear, then GMMD has last-iterate
    convergence to the equilibrium at temperature τ [R = reverse KL, the step of Eq. 38]."""
    rng = setting.rng
    regularizer = parse("reverse_kl")
    games = setting.games(rng, 100, 3)
    ref = setting.references(rng, games)
    start = random_policies(rng, ref.shape, spread=2.0)
    rows = [(games, ref, start)]
    if setting.game is None:  # U is linear in any units
        tenfold = SkewGame(10 * (2 * games.payoff - 1))
        cycle = SkewGame(10 * (2 * zoo.rock_paper_scissors().payoff - 1))
        rows += [(tenfold, ref, start), (cycle, np.full(3, -np.log(3)), np.log([0.5, 0.3, 0.2]))]
    ends, ratios = [], []
    for played, mu, first in rows:
        tau, lip = (0.2 if setting.game is None else 0.2 * unit(played)), lipschitz(played)
        kl = kls(setting, played, mu, regularizer, tau, tau, 600, first)
        ends.append(float(np.mean(kl[-1] <= 1e-6)))
        eta = tau / lip**2
        kl = kls(setting, played, mu, regularizer, tau, eta, 200, first)
        ratios.append(within(kl, kl[0] / power(1 + eta * tau, kl)))
    shares = ", ".join(f"{share:.0%}" for share in ends)
    return finding(
        printed=min(ends) == 1,
        corrected=all(held for held, _ in ratios),
        evidence=f"Share of runs with η = τ that reach KL ≤ 1e-6 in 600 steps: {shares} "
        "(preferences; the same ×10 as a skew game; rock–paper–scissors ×10). With η = τ/L² the "
        "bound KL₀/(1 + ητ)^t holds on all, largest ratio "
        f"{max(worst for _, worst in ratios):.2f}.",
        correction="η ≤ τm/L², L = ½ maxᵢ(maxⱼ Uᵢⱼ − minⱼ Uᵢⱼ), m the modulus of R. Preferences "
        "in [0, 1] have L ≤ ½: for them η ≤ 4τm is enough, and η ≤ τ too where m ≥ ¼.",
        counterexample="U = 10·(rock–paper–scissors with ±1), μ uniform, η = τ = 1. Near the "
        "uniform equilibrium a step rotates deviations and multiplies them by |1 + "
        "iη·10/√3|/(1 + ητ) = 5.86/2 = 2.93 and they grow. L = 10: at η = τ/L² = 0.01 it is "
        "1.0017/1.01 < 1.",
    )


@claim("RSPO", "Prop. 3.1", each=RATED, on=KINDS)
def rate(setting: Setting, each: str) -> Finding:
    """With R = {each}, η ≤ τ, GMMD has the rate of Sokota et al., Thm 3.4, for 1-strongly convex R:
    KL(π*‖π_t) ≤ KL(π*‖π_0)/(1 + ητ)^t."""
    rng, regularizer = setting.rng, parse(each)
    games = setting.games(rng, 20, 3)
    ref = setting.references(rng, games)
    start = random_policies(rng, ref.shape, spread=2.0)
    m = np.array([regularizer.modulus(mu) for mu in ref.reshape(-1, ref.shape[-1])])
    m = m.reshape(games.batch_shape)
    lip, tau, steps = lipschitz(games), 0.4 * unit(games), 60
    eta = min(tau, tau / lip**2)
    kl = kls(setting, games, ref, regularizer, tau, eta, steps, start)
    bound, label = kl[0] / power(1 + eta * tau, kl), "predicted for m = 1"
    printed, worst = within(kl[1:], bound[1:])
    fell = bool(np.all(kl[-1] < np.maximum(0.5 * kl[0], 1e-12)))
    examples = [Pair.slowest(regularizer), Cycle(regularizer)] if setting.game is None else []
    worked, excess = "", 1.0
    for example in examples:
        run = example.kls(setting)
        held, ratio = within(run[1:], example.bound[1:])
        printed, worst = printed and held, max(worst, ratio)
        if example.excess > excess:
            worked, excess = example.worked(run), example.excess
    kept, found = False, "m = 0, no theorem gives a rate"
    if m.min() > 0:
        safe = tau * m.min() / lip**2
        kl = kls(setting, games, ref, regularizer, tau, safe, steps, start)
        bound, label = kl[0] / power(1 + safe * tau * m, kl), "predicted"
        kept, tight = within(kl[1:], bound[1:])
        found = f"with m {span(m)} and η = τ·min m/L² it holds, largest KL/bound {tight:.2f}"
    times = np.arange(steps + 1)
    measured, predicted = (y.reshape(steps + 1, -1).max(axis=1) for y in (kl, bound))
    return finding(
        printed=printed,
        corrected=kept,
        instead=fell,
        evidence=f"{setting.about(games)}, τ = {tau:.2g}, η = {eta:.2g}, {steps} steps"
        f"{', and two games like the one below' if examples else ''}: largest KL/bound "
        f"{size(worst)}; {found}.",
        correction=f"1/(1 + ητm)^t for η ≤ τm/L², with m = {MODULI[each]}."
        if kept
        else "No rate relative to entropy: m = 0. KL(π*‖π_t) fell in every run measured here.",
        counterexample=worked,
        chart=Chart(
            f"GMMD, {each} (Prop. 3.1)",
            "iteration t",
            "KL(π*‖π_t), largest of the games",
            (Curve("measured", times, measured), Curve(label, times, predicted, bound=True)),
            log_x=False,
        ),
    )


@dataclass(frozen=True)
class Pair:
    """Two actions with the equilibrium at which the curvature of R relative to entropy is least.

    The win rate of y¹ exceeds that of y² by `lead` against every opponent, so that GMMD is a map of
    x = log π(y¹)/π(y²).
    """

    regularizer: Divergence
    mu: np.ndarray
    star: np.ndarray
    curvature: float  # c = q φ′(p/μ₁) + p φ′(q/μ₂) at the equilibrium (p, q)
    step: float = 0.1  # τ = η

    @classmethod
    def slowest(cls, regularizer: Divergence) -> Pair:
        """Of μ = (0.02, 0.98) and (½, ½), at the p = 0.01 … 0.99 of the least curvature."""
        p = np.arange(0.01, 1, 0.01)
        policies = np.stack([p, 1 - p], axis=-1)
        pairs = []
        for mu in (np.array([0.02, 0.98]), np.array([0.5, 0.5])):
            bends = regularizer.slope_derivative(np.log(policies) - np.log(mu))
            curvature = (policies[:, ::-1] * bends).sum(axis=-1)
            i = int(np.argmin(curvature))
            pairs.append(cls(regularizer, mu, policies[i], round(float(curvature[i]), 9)))
        return min(pairs, key=lambda pair: pair.curvature)

    @property
    def lead(self) -> float:
        """P(y¹ ≻ y²) − ½, for which (p, q) is the equilibrium."""
        slope = self.regularizer.gradient(np.log(self.star), np.log(self.mu))
        return float(self.step * (slope[0] - slope[1]))

    @property
    def excess(self) -> float:
        """Factor of KL per step near the equilibrium, over 1/(1 + ητ); the bound fails above 1."""
        return (1 + self.step**2) / (1 + self.step**2 * self.curvature) ** 2

    def kls(self, setting: Setting) -> np.ndarray:
        """(T,): KL(π*‖π_t) from a start 0.1 away in x."""
        game = SkewGame(np.array([[0, self.lead], [-self.lead, 0]]))
        start = normalize(np.log(self.star) + np.array([0.1, 0.0]))
        rule = gmmd(setting, self.regularizer, self.step, self.step)
        return kl_divergence(np.log(self.star), trajectory(rule, game, start, np.log(self.mu), 40))

    @property
    def bound(self) -> np.ndarray:
        """(T,): the bound with m = 1."""
        start = normalize(np.log(self.star) + np.array([0.1, 0.0]))
        return kl_divergence(np.log(self.star), start) / (1 + self.step**2) ** np.arange(41.0)

    def worked(self, kl: np.ndarray) -> str:
        """The example by hand, with the measured KL(π*‖π_t)."""
        fall = (1 + self.step**2 * self.curvature) ** -2
        return (
            f"Two actions, μ = {vector(self.mu)}, y¹ ahead by {self.lead:.3f}, τ = η = "
            f"{self.step:g}: equilibrium {vector(self.star)}. With x = log π(y¹)/π(y²) a step "
            "solves x + ητ(φ(π(y¹)/μ₁) − φ(π(y²)/μ₂)) = x_t + η·lead, φ = f′. Near the "
            "equilibrium it divides x − x* by 1 + ητc, c = qφ′(p/μ₁) + pφ′(q/μ₂) = "
            f"{self.curvature:.3f}, and KL by its square: a step multiplies it by {fall:.4f} "
            f"(measured {kl[-1] / kl[-2]:.4f}), where 1/(1 + ητ) = {1 / (1 + self.step**2):.4f}."
        )


@dataclass(frozen=True)
class Cycle:
    """Rock–paper–scissors and a fourth action that loses to all three but has 0.97 of μ."""

    regularizer: Divergence
    step: float = 0.1  # τ = η
    steps: int = 120

    @property
    def game(self) -> PreferenceGame:
        """Four actions; L = ½."""
        payoff = np.zeros((4, 4))
        payoff[:3, :3], payoff[:3, 3], payoff[3, 3] = zoo.rock_paper_scissors().payoff, 1, 0.5
        return PreferenceGame(payoff)

    @property
    def mu(self) -> np.ndarray:
        """log μ."""
        return np.log([0.01, 0.01, 0.01, 0.97])

    @cached_property
    def star(self) -> np.ndarray:
        """log π*."""
        return equilibrium(self.game, self.regularizer, self.step, self.mu).logp

    @property
    def start(self) -> np.ndarray:
        """π* perturbed within the cycle."""
        return normalize(self.star + np.array([0.1, -0.1, 0.0, 0.0]))

    @property
    def curvature(self) -> float:
        """φ′ on the cycle."""
        return float(self.regularizer.slope_derivative(self.star - self.mu)[0])

    @property
    def rotation(self) -> float:
        """ω: a step rotates deviations on the cycle by ηω."""
        return float(np.exp(self.star[0]) * np.sqrt(3) / 2)

    @property
    def excess(self) -> float:
        """As for `Pair`."""
        left = (1 + (self.step * self.rotation) ** 2) / (1 + self.step**2 * self.curvature) ** 2
        return left * (1 + self.step**2)

    def kls(self, setting: Setting) -> np.ndarray:
        """(T,): KL(π*‖π_t)."""
        rule = gmmd(setting, self.regularizer, self.step, self.step)
        return kl_divergence(
            self.star, trajectory(rule, self.game, self.start, self.mu, self.steps)
        )

    @property
    def bound(self) -> np.ndarray:
        """(T,): the bound with m = 1."""
        first = kl_divergence(self.star, self.start)
        return first / (1 + self.step**2) ** np.arange(self.steps + 1.0)

    def worked(self, kl: np.ndarray) -> str:
        """The example by hand, with the measured KL(π*‖π_t)."""
        fall = self.excess / (1 + self.step**2)
        return (
            "Rock–paper–scissors and a fourth action that loses to all three (P = 0), μ = (0.01, "
            f"0.01, 0.01, 0.97), τ = η = {self.step:g}: π* plays each of the three with "
            f"{np.exp(self.star[0]):.3f}. A step rotates deviations by ηω, ω = "
            f"{np.exp(self.star[0]):.3f}·½√3, and divides them by 1 + ητφ′, φ′(π*/μ) = "
            f"{self.curvature:.3f}: a step multiplies KL by (1 + (ηω)²)/(1 + ητφ′)² = {fall:.5f} "
            f"(measured {kl[-1] / kl[-2]:.5f}), where 1/(1 + ητ) = {1 / (1 + self.step**2):.5f}."
        )
