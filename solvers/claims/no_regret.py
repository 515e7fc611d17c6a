"""Multiplicative weights and fictitious play: which iterate converges.

Freund & Schapire (1999), Brown (1951) and Robinson (1951), as cited by RSPO (§2.2) and α-SPIN
(§3.2).
"""

from __future__ import annotations

import math

import numpy as np

from games import SymmetricGame, zoo

from ..arrays import against, normalize
from ..divergences import reverse_kl
from ..equilibrium import equilibrium
from ..gap import duality_gap
from ..loop import kl_divergence, solve
from .instances import apart
from .ledger import (
    ROUNDING,
    Chart,
    Curve,
    Finding,
    Setting,
    claim,
    finding,
    order,
    random_policies,
    size,
    trajectory,
    vector,
    within,
)

KINDS = ("preference",)


# Smallest margin of a pure equilibrium for convergence to be visible within the steps taken.
CLEARLY = 0.02


def kinds(games: SymmetricGame) -> tuple[np.ndarray, np.ndarray]:
    """(...,), (...,): whether a game has a pure equilibrium, or none, by a clear margin."""
    beats = games.payoff - games.value + np.where(np.eye(games.n) > 0, np.inf, 0.0)
    margin = np.atleast_1d(beats.min(axis=-1).max(axis=-1))
    return margin >= CLEARLY, margin <= -5 * CLEARLY


def count(what: np.ndarray) -> str:
    """(N,) -> "k of N", k the number of true entries."""
    return f"{int(what.sum())} of {what.size}"


# Multiplicative weights.


@claim("MWU", "average", on=KINDS)
def average(setting: Setting) -> Finding:
    """From the uniform policy, with η = √(8 log n/T), the average of T iterates has a duality gap
    of at most 2√(log n/(2T))."""
    games = setting.games(setting.rng, 200, 5)
    start = np.full((*games.batch_shape, games.n), -math.log(games.n))
    horizons = 2 ** np.arange(2, 11)
    worst = []
    for T in horizons:
        rule = setting.rule("mwu", eta=math.sqrt(8 * math.log(games.n) / T))
        p = np.exp(trajectory(rule, games, start, start, int(T) - 1))
        worst.append(duality_gap(games, np.log(p.mean(axis=0))).max())
    bounds = 2 * np.sqrt(math.log(games.n) / (2 * horizons))
    fine, share = within(worst, bounds)
    power = order(horizons, np.maximum(worst, ROUNDING))
    return finding(
        printed=fine,
        evidence=f"On {setting.about(games)}, T from {horizons[0]} to {horizons[-1]}: largest "
        f"ratio to the bound {share:.2f}; the largest gap falls as T^{power:.2f}.",
        chart=Chart(
            "Duality gap of MWU's average",
            "T",
            "gap",
            (
                Curve("largest measured", horizons, np.array(worst)),
                Curve("2√(log n/(2T))", horizons, bounds, bound=True),
            ),
        ),
    )


@claim("MWU", "last iterate", on=KINDS)
def last_iterate(setting: Setting) -> Finding:
    """The last iterate converges to the equilibrium."""
    rng, eta, steps = setting.rng, 0.5, 2000
    games = setting.games(rng, 200, 3)
    start = random_policies(rng, (*games.batch_shape, games.n))
    rule = setting.rule("mwu", eta=eta)
    points = trajectory(rule, games, start, start, steps)
    rests = np.atleast_1d(duality_gap(games, points[-1])) <= 1e-6
    pure, mixed = kinds(games)
    star = equilibrium(games).logp
    inside = np.atleast_1d(np.isfinite(star).all(axis=-1))
    kl = kl_divergence(star, points[: steps // 10]).reshape(steps // 10, -1)
    rises = np.diff(kl[:, inside], axis=0)
    return finding(
        printed=bool(rests.all()),
        corrected=bool(rests[pure].all() and np.all(rises >= -ROUNDING)),
        evidence=f"On {setting.about(games)}, η = {eta:g}, {steps} steps from random starts: a "
        f"gap ≤ 1e-6 on {count(rests[pure])} with a pure equilibrium (that wins by {CLEARLY} or "
        f"more) and on {count(rests[mixed])} without (every action loses to some other by "
        f"{5 * CLEARLY:g} or more). Where π* mixes all actions, KL(π*‖π_t) rises in "
        f"{count(rises > 0)} steps.",
        correction="It converges where a pure equilibrium is strict. Where π* mixes all actions "
        "it moves away at every step: KL(π*‖π_(t+1)) − KL(π*‖π_t) = log E_πt exp(η(P(y≻π_t) − "
        "½)) ≥ 0 (Jensen), and > 0 off π*. The average converges.",
        counterexample=spiral(setting),
    )


def spiral(setting: Setting) -> str:
    """Rock, paper, scissors, step by step."""
    game, eta = zoo.rock_paper_scissors(), 1.0
    start = np.log([0.5, 0.25, 0.25])
    points = trajectory(setting.rule("mwu", eta=eta), game, start, start, 20)
    uniform = np.full(3, -math.log(3))
    kl = kl_divergence(uniform, points)
    wins = against(game.payoff, np.exp(start))
    return (
        f"Rock–paper–scissors, π_0 = (½, ¼, ¼), η = 1: P(y≻π_0) = {vector(wins)}, π_1 ∝ π_0 exp "
        f"of it = {vector(np.exp(points[1]))}, π_2 = {vector(np.exp(points[2]))}, π_20 = "
        f"{vector(np.exp(points[20]))}; KL((⅓, ⅓, ⅓)‖π_t) = {kl[0]:.3f}, {kl[1]:.3f}, "
        f"{kl[2]:.3f}, …, {kl[20]:.3f}."
    )


# Fictitious play.


@claim("Fictitious play", "Robinson", on=KINDS)
def robinson(setting: Setting) -> Finding:
    """The average of the best responses converges to an equilibrium in every zero-sum game."""
    games = setting.games(setting.rng, 200, 5)
    steps = 2048
    run = solve(games, setting.rule("fictitious_play"), steps=steps, tol=0)
    t = run.history.steps
    gaps = run.history.average_gap.reshape(len(t), -1).max(axis=-1)
    chosen = (t >= 64) & (np.bitwise_and(t, t - 1) == 0)
    power = order(t[chosen], gaps[chosen])
    proven = 1 / (2 * games.n - 2)
    return finding(
        printed=bool(power <= -proven and gaps[-1] <= 0.1),
        evidence=f"On {setting.about(games)}: the largest gap of the average falls from "
        f"{gaps[t == 64][0]:.3f} at t = 64 to {gaps[-1]:.4f} at t = {steps}, as t^{power:.2f}; "
        f"the proven rate is t^−{proven:.3g}.",
        chart=Chart(
            "Fictitious play's average",
            "t",
            "duality gap",
            (
                Curve("largest measured", t[1:], gaps[1:]),
                Curve("∝ 1/√t", t[1:], gaps[t == 64] * np.sqrt(64 / t[1:]), bound=True),
            ),
        ),
    )


@claim("Fictitious play", "last best response", on=KINDS)
def last_response(setting: Setting) -> Finding:
    """The last best response converges to an equilibrium."""
    games = setting.games(setting.rng, 200, 4)
    run = solve(games, setting.rule("fictitious_play"), steps=2000, tol=0, keep_policies=True)
    assert run.history.logp is not None
    late = run.history.logp[run.history.steps > 100].argmax(axis=-1)
    rests = np.atleast_1d((late == late[0]).all(axis=0))
    pure, mixed = kinds(games)
    responses = first_responses(setting)
    return finding(
        printed=bool(rests.all()),
        corrected=bool(rests[pure].all() and not rests[mixed].any()),
        evidence=f"On {setting.about(games)}: from t = 100 to 2000 one action is played "
        f"throughout on {count(rests[pure])} with a pure equilibrium (that wins by {CLEARLY} or "
        f"more) and on {count(rests[mixed])} without (every action loses to some other by "
        f"{5 * CLEARLY:g} or more).",
        correction="It does if there is a strict pure equilibrium; if there is no pure "
        "equilibrium, it never stops switching.",
        counterexample="Rock–paper–scissors: a best response is pure, and the equilibrium is "
        f"not. From the uniform policy, ties to the first: {responses} …",
    )


def first_responses(setting: Setting) -> str:
    """The actions of fictitious play at rock, paper, scissors."""
    rule = setting.rule("fictitious_play")
    run = solve(zoo.rock_paper_scissors(), rule, steps=36, tol=0, keep_policies=True)
    assert run.history.logp is not None
    return "".join("RPS"[y] for y in run.history.logp[1:].argmax(axis=-1))


@claim("Fictitious play", "smooth")
def smooth(setting: Setting) -> Finding:
    """Smooth fictitious play, the best response to the average under −τR, is
    follow-the-regularized-leader with the step 1/(τt), and its last iterate converges to the
    regularized equilibrium."""
    worst = smooth_play_against_ftrl(setting)
    rng, tau = setting.rng, 0.2
    games = setting.games(rng, 100, 4)
    ref = setting.references(rng, games)
    rule = setting.rule("smooth_fictitious_play", tau=tau, regularizer="reverse_kl")
    star = equilibrium(games, reverse_kl, tau, ref).logp
    run = solve(games, rule, steps=1024, tol=0, reference=ref, equilibrium=star)
    assert run.history.kl is not None
    t = run.history.steps
    kl = run.history.kl.reshape(len(t), -1).max(axis=-1)
    late = (t >= 64) & (np.bitwise_and(t, t - 1) == 0)
    return finding(
        printed=worst <= ROUNDING and kl[-1] <= 1e-3 * kl[0],
        evidence=f"On {setting.about(games)}: largest difference to softmax(Σ_(s≤t) "
        f"P(y≻π_s)/(τt)) and, with reverse KL, μ softmax(…), in log π: {size(worst)}. At τ = "
        f"{tau:g} the largest KL(π*‖π_t) falls from {kl[0]:.2f} to {size(kl[-1])} at t = {t[-1]}, "
        f"as t^{order(t[late], kl[late]):.1f}.",
    )


def smooth_play_against_ftrl(setting: Setting, steps: int = 60) -> float:
    """The largest difference in log π between smooth fictitious play and FTRL's closed form."""
    rng, tau = setting.rng, 0.3
    games = setting.games(rng, 50, 4)
    ref = setting.references(rng, games)
    worst = 0.0
    for spec, base in (("entropy", np.zeros_like(ref)), ("reverse_kl", ref)):
        rule = setting.rule("smooth_fictitious_play", tau=tau, regularizer=spec)
        run = solve(games, rule, steps=steps, tol=0, reference=ref, keep_policies=True)
        points = run.history.logp
        assert points is not None
        for t in range(1, steps + 1):
            total = against(games.payoff, np.exp(points[:t])).sum(axis=0)
            worst = max(worst, apart(points[t], normalize(base + total / (tau * t))))
    return worst
