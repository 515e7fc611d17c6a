"""Nash-MD — Nash Learning from Human Feedback (arXiv 2312.00886), in the form of RSPO Eq. 5."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from games import zoo

from ..arrays import against, normalize
from ..loop import kl_divergence
from ..steps import step
from ..theory import harmonic
from .instances import TAUS, Instances
from .ledger import (
    ROUNDING,
    Chart,
    Curve,
    Finding,
    Setting,
    claim,
    finding,
    largest,
    order,
    size,
    trajectory,
    vector,
    within,
)

KINDS = ("preference",)


@claim("Nash-MD", "Theorem 1, one step", on=KINDS)
def one_step(setting: Setting) -> Finding:
    """At every iteration t, KL(π*‖π_{t+1}) ≤ (1 − ητ)KL(π*‖π_t) + 2η²."""
    at = Instances.of(setting, spread=3.0)
    fine, needed = [], []
    for tau in TAUS:
        star = replace(at, tau=tau).star
        before = kl_divergence(star, at.current)
        for share in (0.01, 0.1, 0.3, 1.0):
            eta = share / tau
            rule = setting.rule("nash_md", tau=tau, eta=eta)
            after = kl_divergence(star, step(rule(at.plays), at.plays))
            fine.append(within(after, (1 - share) * before + 2 * eta**2))
            needed.append(((after - (1 - share) * before) / eta**2).max())
    return finding(
        printed=all(ok for ok, _ in fine),
        evidence=f"On {at.about} and policies, τ from {TAUS[0]:g} to {TAUS[-1]:g}, ητ from 0.01 "
        f"to 1: largest ratio to the bound {max(worst for _, worst in fine):.2f}. The smallest "
        f"constant that would suffice in place of 2 is {max(needed):.3f}.",
    )


@claim("Nash-MD", "Theorem 1", on=KINDS)
def last_iterate(setting: Setting) -> Finding:
    """With η_t = 2/(τ(t + 2)), KL(π*‖π_T) ≤ 8/(τ²(T + 1))."""
    at, steps = Instances.of(setting, count=60, n=5), 512
    T, kept = np.arange(steps + 1), np.zeros(steps + 1)
    fine, shares, power = [], [], 0.0
    for tau in TAUS:
        rule = setting.rule("nash_md", tau=tau, eta=harmonic(tau))
        points = trajectory(rule, at.games, at.ref, at.ref, steps)
        kl = kl_divergence(replace(at, tau=tau).star, points).reshape(steps + 1, -1).max(axis=-1)
        ok, share = within(kl, 8 / (tau**2 * (T + 1)))
        fine.append(ok)
        shares.append(share)
        kept = np.maximum(kept, kl * tau**2)
        if tau == 1:
            power = order(T[16:], np.maximum(kl[16:], ROUNDING))
    return finding(
        printed=all(fine),
        evidence=f"On {at.about} over {steps} steps from π_0 = μ, τ from {TAUS[0]:g} to "
        f"{TAUS[-1]:g}: largest ratio to the bound {size(max(shares))}. μ itself has KL(π*‖μ) ≤ "
        "1/(8τ²), so that the bound is vacuous before T = 63. At τ = 1 KL falls as "
        f"T^{power:.1f}.",
        chart=Chart(
            "Nash-MD's last iterate (Theorem 1)",
            "T",
            "KL(π*‖π_T)·τ²",
            (
                Curve("largest measured", T[1:], kept[1:]),
                Curve("8/(T + 1)", T[1:], 8 / (T[1:] + 1), bound=True),
            ),
        ),
    )


@claim("Nash-MD", "RSPO §2.3, constant η", on=KINDS)
def constant_step(setting: Setting) -> Finding:
    """[With a constant η, as RSPO Eq. 5 prints it, Nash-MD finds] a regularized NE in Eq. 4
    with the last-iterate policy."""
    at = replace(Instances.of(setting, count=50), tau=0.5)
    etas = 0.4 / 2.0 ** np.arange(5)
    rests, drifts = [], []
    for eta in etas:
        rule = setting.rule("nash_md", tau=at.tau, eta=float(eta))
        points = trajectory(rule, at.games, at.ref, at.ref, round(30 / (eta * at.tau)))
        rests.append(points[-1])
        drifts.append(largest(points[-1] - points[-2]))
    star = at.star
    far = np.array([np.abs(np.exp(logp) - np.exp(star)).sum(axis=-1).max() for logp in rests])
    kls = np.array([kl_divergence(star, logp).max() for logp in rests])
    falls = "is 0"
    if far[0] > 1e-9:
        falls = f"falls as η^{order(etas, far):.2f}, KL(π*‖π) as η^{order(etas, kls):.2f}"
    return finding(
        printed=far[0] <= 1e-9,
        corrected=max(drifts) <= 1e-9 and far[-1] <= 2 * etas[-1] / etas[0] * far[0],
        evidence=f"On {at.about} at τ = {at.tau:g}: the last iterate converges (the last step is "
        f"{size(max(drifts))}), but its distance from π* {falls} (at η = {etas[0]:g} the largest "
        f"Σ|π − π*| is {size(far[0])}).",
        correction="With a constant step the fixed point is the π with τ log π/μ = P(y≻π^μ) + "
        "const, π^μ ∝ π^(1−ητ)μ^(ητ), at a distance O(η) from π*, for which it is P(y≻π*). With a "
        "decreasing step Theorem 1 applies.",
        counterexample=by_hand(setting),
        chart=Chart(
            "Fixed point of Nash-MD with a constant step",
            "η",
            "distance from π*",
            (
                Curve("largest Σ|π − π*|", etas, far),
                Curve("∝ η", etas, far[-1] * etas / etas[-1], bound=True),
                Curve("largest KL(π*‖π)", etas, kls),
            ),
        ),
    )


def by_hand(setting: Setting) -> str:
    """Rock, paper, scissors at ητ = 1, where every step gives the same policy."""
    game, ref = zoo.rock_paper_scissors(), np.log([0.5, 0.25, 0.25])
    at = Instances(game, ref, ref, ref, "", tau=1.0)
    rule = setting.rule("nash_md", tau=1.0, eta=1.0)
    moved, star = step(rule(at.plays), at.plays), at.star
    wins = at.wins(ref)
    answer = normalize(ref + against(game.payoff, np.exp(moved)))
    return (
        "Rock–paper–scissors, μ = (½, ¼, ¼), η = τ = 1: then π^μ = μ for every π, and the fixed "
        "point "
        f"is ∝ μ exp(P(y≻μ)), P(y≻μ) = {vector(wins)}: π = {vector(np.exp(moved))}. An "
        f"equilibrium is ∝ μ exp(P(y≻π)), which at this π is {vector(np.exp(answer))}; the "
        f"equilibrium is {vector(np.exp(star))}."
    )
