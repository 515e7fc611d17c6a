"""RSPO on other methods: SPPO, OMD, Nash-MD, MPO, and the strength of χ²."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from games import zoo

from ...arrays import dot, normalize
from ...divergences import parse
from ...equilibrium import equilibrium
from ...gap import duality_gap
from ...loop import kl_divergence
from ...plays import Plays
from ...steps import step
from ..ledger import (
    Chart,
    Curve,
    Finding,
    Setting,
    claim,
    equal,
    finding,
    largest,
    order,
    random_policies,
    size,
    trajectory,
    vector,
    within,
)
from .cases import KINDS, Case, cases, minimizer
from .regularized_game import TABLE_6, unit

# §2.2 and §3.1: unregularized self-play.


@claim("RSPO", "§2.2", on=("preference",))
def sppo_converges(setting: Setting) -> Finding:
    """SPPO [MWU; Algorithm 1 returns the last iterate π_T] converges to the NE of the preference
    optimization game."""
    rng = setting.rng
    games = setting.games(rng, 50, 3)
    ref = setting.references(rng, games)
    eta, steps = 0.1, 4000
    points = trajectory(setting.rule("mwu", eta=eta), games, ref, ref, steps)
    averages = (
        np.cumsum(np.exp(points), axis=0) / np.arange(1, steps + 2)[(..., *(None,) * ref.ndim)]
    )
    gaps = duality_gap(games, points, None)
    average_gaps = duality_gap(games, np.log(averages), None)
    # Freund and Schapire: regret ≤ log(1/min μ)/η + ηT/8, and the gap is twice the mean regret.
    t = np.arange(1.0, steps + 2)[(..., *(None,) * (gaps.ndim - 1))]
    held, worst = within(average_gaps, 2 * (-ref.min(axis=-1) / (eta * t) + eta / 8))
    came = float(np.mean(gaps[-1] <= 0.01))
    beats_all = (games.payoff + np.eye(games.n) > 0.5).all(axis=-1)
    pure = float(np.mean(beats_all.any(axis=-1)))
    rps, start = zoo.rock_paper_scissors(), np.log([0.5, 0.3, 0.2])
    orbit = trajectory(setting.rule("mwu", eta=eta), rps, start, start, 300)
    kl = kl_divergence(np.full(3, -np.log(3)), orbit)
    away = bool(np.all(np.diff(kl) > 0))
    largest_gap = gaps.reshape(steps + 1, -1).max(axis=1)
    return finding(
        printed=came == 1 and (setting.game is not None or not away),
        instead=held,
        evidence=f"{setting.about(games)}, η = {eta:g}: after {steps} steps the last iterate has a "
        f"gap ≤ 0.01 on {came:.0%} ({pure:.0%} have a pure equilibrium), the average a gap ≤ 0.04 "
        f"on {np.mean(average_gaps[-1] <= 0.04):.0%}; the average's bound 2(log(1/min μ)/(ηT) + "
        f"η/8) {'holds' if held else 'does not hold'}, largest ratio {worst:.2f}. On "
        "rock–paper–scissors from (0.5, 0.3, 0.2) KL(π*‖π_t) "
        f"{'rises at every' if away else 'falls at a'} step, from {kl[0]:.3f} to {kl[-1]:.3f} in "
        "300.",
        correction="The average of the iterates does, up to O(η). The last iterate moves away "
        "from a mixed equilibrium.",
        counterexample=_one_mwu_step(),
        chart=Chart(
            "SPPO, largest gap (§2.2)",
            "iteration t",
            "duality gap",
            (
                Curve("last iterate", np.arange(1, steps + 1), largest_gap[1:]),
                Curve(
                    "average",
                    np.arange(1, steps + 1),
                    average_gaps.reshape(steps + 1, -1).max(axis=1)[1:],
                ),
            ),
        ),
    )


def _one_mwu_step() -> str:
    wins = zoo.rock_paper_scissors().payoff @ np.array([0.5, 0.3, 0.2])
    new = normalize(np.log([0.5, 0.3, 0.2]) + wins)
    before = kl_divergence(np.full(3, -np.log(3)), np.log([0.5, 0.3, 0.2]))
    after = kl_divergence(np.full(3, -np.log(3)), new)
    return (
        "Rock–paper–scissors, P(row beats column) 0 or 1, π = (0.5, 0.3, 0.2), η = 1: wins P(·≻π) "
        f"= {vector(wins)}, so that π' ∝ π·e^wins = {vector(np.exp(new))}; KL(uniform‖π) = "
        f"{before:.4f} becomes {after:.4f}. In general KL(π*‖π') − KL(π*‖π) = log E_π e^(ηG) − "
        "η/2 > 0, as E_π* G = E_π G = ½, by Jensen."
    )


@claim("RSPO", "§3.1", on=("preference",))
def sppo_limit(setting: Setting) -> Finding:
    """Unregularized self-play (SPPO) is RSPO without external regularization: λ → 0."""
    rng = setting.rng
    games = setting.games(rng, 50, 3)
    ref = setting.references(rng, games)
    current, eta = random_policies(rng, ref.shape), 0.5
    plays = Plays.exact(games.payoff, current, ref)
    mwu = setting.rule("mwu", eta=eta)
    plain = step(mwu(plays), plays)
    taus = 10.0 ** -np.arange(3, 8)
    orders, gaps = [], []
    for spec in TABLE_6:
        rules = [setting.rule("gmmd", eta=eta, tau=tau, regularizer=spec) for tau in taus]
        off = [largest(np.exp(step(rule(plays), plays)) - np.exp(plain)) for rule in rules]
        orders.append(order(taus, off))
        star = equilibrium(games, parse(spec), 1e-4, ref).logp
        gaps.append(float(duality_gap(games, star, None).max()))
    return finding(
        printed=min(orders) > 0.9 and max(gaps) < 0.02,
        evidence=f"{len(TABLE_6)} R on {setting.about(games)}: the GMMD step approaches the MWU "
        f"step as τ^{min(orders):.1f} or faster, and the regularized equilibrium at τ = 1e-4 has a "
        f"gap of at most {size(max(gaps))} in the unregularized game.",
    )


@claim("RSPO", "§2.3", on=KINDS)
def only_reverse_kl(setting: Setting) -> Finding:
    """These mirror-descent methods are only compatible with the reverse KL regularizer."""
    rng = setting.rng
    games = setting.games(rng, 30, 3)
    ref = setting.references(rng, games)
    tau, eta = 0.3 * unit(games), 0.1 / unit(games)
    worst = {}
    for spec in ("forward_kl", "chi2", "js", "0.1*forward_kl+0.5*reverse_kl"):
        star = equilibrium(games, parse(spec), tau, ref).logp
        rule = setting.rule("omd", eta=eta, tau=tau, regularizer=spec)
        logp = trajectory(rule, games, ref, ref, 3000)[-1]
        worst[spec] = largest(np.exp(logp) - np.exp(star))
    off = ", ".join(f"{spec} {size(value, 1e-6)}" for spec, value in worst.items())
    return finding(
        printed=min(worst.values()) > 0.05,
        instead=max(worst.values()) <= 0.01,
        evidence=f"OMD with −τ∂R(π_t, μ) in its direction on {setting.about(games)}, τ = "
        f"{tau:.2g}, η = {eta:.2g}, 3000 steps from μ: largest distance of a probability from the "
        f"equilibrium with that R: {off}.",
        correction="OMD takes any differentiable R: G = P(y≻π_t) − τ∂R(π_t, μ), with a small "
        "enough η. Only Nash-MD's geometric mixture is tied to reverse KL.",
        counterexample="Two actions, P(y¹≻y²) = 0.9, μ = (½, ½), R = χ², τ = 0.5. At π = (0.9, "
        "0.1) OMD has G₁ − G₂ = 0.4 − 0.5·(1.8 − 0.2) = −0.4, at (0.5, 0.5) it is 0.4, at (0.7, "
        "0.3) 0.4 − 0.5·(1.4 − 0.6) = 0: it moves to (0.7, 0.3), the χ² equilibrium, from both "
        "sides.",
    )


# Table 5.


@claim("RSPO", "Table 5", each=("SPPO", "OMD", "Nash-MD"), on=("preference",))
def table_5(setting: Setting, each: str) -> Finding:
    """{each}: with its G and B, R = 0, the RSPO loss performs the method's own update."""
    case = cases(setting).at_current
    name = {"SPPO": "mwu", "OMD": "omd", "Nash-MD": "nash_md"}[each]
    settings = {} if name == "mwu" else {"tau": case.tau}

    def direction(case: Case) -> np.ndarray:
        opponent = case.mixture if name == "nash_md" else case.current
        drift = 0.0 if name == "mwu" else case.tau * (case.current - case.ref)
        return case.wins(opponent) - drift

    off, errors = [], []
    etas = 2.0 ** -np.arange(1.0, 7.0)
    for eta in etas:
        case = replace(case, eta=float(eta))
        rule = setting.rule(name, eta=float(eta), **settings)
        plays = Plays.exact(case.payoff, case.current, case.ref)
        own, g = step(rule(plays), plays), direction(case)
        off.append(largest(np.exp(normalize(case.current + eta * g)) - np.exp(own)))
        baseline = dot(np.exp(case.current), g)[..., None] if name == "omd" else 0.5
        fitted = minimizer(case.current, case.current + eta * (g - baseline))
        errors.append(np.median(np.abs(fitted - own).max(axis=-1)))
    how = "E_πt[G] for the estimated baseline" if name == "omd" else "½"
    return finding(
        printed=max(off) <= 1e-12 and errors[-1] < errors[0] / 8,
        evidence="The mirror step π_t·exp(ηG) with the G of the table equals the method's own "
        f"step to {size(max(off))} on {case.count} random cases. With B = {how} the "
        f"minimizer of the loss comes to it as η^{order(etas, errors):.1f} in log π.",
    )


# Appendix B and §4.3.


@claim("RSPO", "App. B")
def mpo_follows_mwu(setting: Setting) -> Finding:
    """Magnetic Policy Optimization periodically updates μ = π_t; consequently, it inherently
    follows MWU."""
    rps, start = zoo.rock_paper_scissors(), np.log([0.5, 0.3, 0.2])
    uniform, tau, outer = np.full(3, -np.log(3)), 0.5, 25

    def magnets(every: int, eta: float) -> np.ndarray:
        rule, points = setting.rule("mmd", eta=eta, tau=tau), [start]
        for _ in range(outer if every > 1 else 200):
            points.append(trajectory(rule, rps, points[-1], points[-1], every)[-1])
        return np.stack(points)

    each_step = magnets(1, 0.5)
    mwu = trajectory(setting.rule("mwu", eta=0.5 / (1 + 0.5 * tau)), rps, start, start, 200)
    same = equal(each_step, mwu)
    mpo = magnets(400, 2.0)
    implicit = normalize(mpo[:-1] + np.exp(mpo[1:]) @ rps.payoff.T / tau)
    proximal = largest(implicit - mpo[1:])
    kl_mwu, kl_mpo = kl_divergence(uniform, mwu), kl_divergence(uniform, mpo)
    comes = bool(np.all(np.diff(kl_mpo) < 0) and kl_mpo[-1] < 1e-3)
    return finding(
        printed=not comes,
        instead=comes and same and proximal <= 1e-9,
        evidence=f"Rock–paper–scissors from (0.5, 0.3, 0.2), τ = {tau:g}: with the magnet moved "
        f"after each converged inner game KL(π*‖π) falls {kl_mpo[0]:.3f}, {kl_mpo[1]:.3f}, "
        f"{kl_mpo[2]:.3f}, … {size(kl_mpo[-1])} in {outer} moves; MWU's rises to "
        f"{kl_mwu[-1]:.2f}. With the magnet moved at every step it "
        f"{'equals' if same else 'differs from'} MWU with step η/(1 + ητ).",
        correction="Only if μ is moved at every step. Otherwise it is the proximal point method "
        "π_{k+1} ∝ π_k exp(P(· ≻ π_{k+1})/τ), implicit where MWU is explicit, and its last "
        "iterate converges.",
        counterexample="Near the uniform equilibrium the win rates of rock–paper–scissors rotate a "
        "deviation by 90° and multiply it by ω = √3/6 = 0.289. A step of MWU "
        f"multiplies it by |1 + iηω| > 1, the implicit one by 1/|1 − iω/τ| < 1: at τ = {tau:g} by "
        "1/√(1 + 1/3) = 0.866.",
        chart=Chart(
            "MPO and MWU (App. B)",
            "iteration (MWU) or move of the magnet (MPO)",
            "KL(π*‖π)",
            (
                Curve("MWU", np.arange(1, len(kl_mwu)), kl_mwu[1:]),
                Curve("MPO", np.arange(1, len(kl_mpo)), kl_mpo[1:]),
            ),
        ),
    )


@claim("RSPO", "§4.3", on=("preference",))
def chi2_is_stronger(setting: Setting) -> Finding:
    """Compared to reverse KL, the χ² divergence functions as a stronger regularizer [same τ]."""
    rng = setting.rng
    games = setting.games(rng, 200, 4)
    ref = setting.references(rng, games)
    tau = 0.1
    chi, kl = (equilibrium(games, parse(spec), tau, ref).logp for spec in ("chi2", "reverse_kl"))
    nearer = kl_divergence(chi, ref) <= kl_divergence(kl, ref)
    capped = (chi - ref).max(axis=-1) <= (kl - ref).max(axis=-1)
    kept = (chi - ref).min(axis=-1) >= (kl - ref).min(axis=-1)
    zeros = float(np.mean((chi == -np.inf).any(axis=-1)))
    u = np.exp(np.linspace(0.01, 10, 200))
    pulls = bool(np.all(parse("chi2").slope(np.log(u)) > np.log(u)))
    convex = parse("chi2").modulus(ref) >= parse("reverse_kl").modulus(ref)
    shares = [float(np.mean(x)) for x in (nearer, capped, kept)]
    return finding(
        printed={
            "its slope f′(π/μ) is larger where π > μ": pulls,
            "KL(π*‖μ) is smaller": shares[0] == 1,
            "the largest π*/μ is smaller": shares[1] == 1,
            "the smallest π*/μ is larger": shares[2] == 1,
            "its modulus relative to entropy is larger": bool(convex),
        },
        evidence=f"Equilibria at τ = {tau:g} of {setting.about(games)}, χ² against reverse KL: "
        f"KL(π*‖μ) is smaller on {shares[0]:.0%}, the largest π*/μ on {shares[1]:.0%}, the "
        f"smallest π*/μ larger on {shares[2]:.0%}; {zeros:.0%} give some response probability "
        "exactly 0 with χ² (none with reverse KL). Modulus relative to entropy: 0 against 1.",
        correction="Not precise: it depends on the measure of strength. Its slope f′(u) = u − 1 "
        "exceeds log u at every u ≠ 1: it penalizes π > μ more and π < μ less, and can set the "
        "latter to 0.",
        counterexample="Best responses to an advantage a over the mean, μ uniform: χ² gives π/μ = "
        "max(0, 1 + (a − ν)/τ), reverse KL e^{(a − ν)/τ}. Two actions with P(y¹≻y²) = 0.9, τ = "
        "0.1: χ² π = (1, 0), reverse KL e^4 : 1 = (0.982, 0.018). Here χ² is the "
        "weaker one. With μ = (0.01, 0.99) and τ = 0.4: χ² adds μ₁μ₂·0.4/0.4 = 0.0099 to π(y¹), to "
        "0.0199; reverse KL multiplies the odds by e: 0.0267.",
    )
