"""RSPO, Assumption A.1: strong convexity relative to entropy."""

from __future__ import annotations

import numpy as np

from ...arrays import Array, normalize
from ...divergences import Divergence, parse
from ..ledger import (
    Finding,
    Setting,
    claim,
    finding,
    random_policies,
    size,
    vector,
)
from .regularized_game import ALL, MODULI, TABLE_6, span

# Assumption A.1: strong convexity relative to entropy.


def least_ratio(regularizer: Divergence, mu: Array, rng: np.random.Generator) -> np.ndarray:
    """(B, n) -> (B,): the smallest ratio of the two sides of Eq. 16 found, for nearby π and π′.

    At π the worst direction v, Σv = 0, has the ratio λ with Σ π/(φ′ − λ) = 0 between the two least
    φ′. The search descends over π from random starts, many of them near the boundary.
    """
    logmu = np.log(mu)[:, None]

    def lowest(logp: Array) -> Array:
        bends = regularizer.slope_derivative(logp - logmu)
        low, high = np.moveaxis(np.sort(bends, axis=-1)[..., :2], -1, 0)
        for _ in range(60):
            middle = 0.5 * (low + high)
            with np.errstate(divide="ignore", invalid="ignore"):
                left = (np.exp(logp) / (bends - middle[..., None])).sum(axis=-1) < 0
            low, high = np.where(left, middle, low), np.where(left, high, middle)
        return low

    logp = random_policies(rng, (len(mu), 200, mu.shape[-1]), spread=4.0)
    best = lowest(logp)
    for scale in 2.0 * 0.7 ** np.arange(25):
        keep = np.argsort(best, axis=-1)[:, :20, None]
        kept = np.take_along_axis(logp, keep, axis=1)
        moved = np.repeat(kept, 4, axis=1)
        moved = normalize(moved + scale * rng.normal(size=moved.shape))
        logp = np.concatenate([kept, moved], axis=1)
        best = lowest(logp)
    return best.min(axis=-1)


def two_actions(regularizer: Divergence) -> tuple[Array, Array, Array, float, float]:
    """μ, π, π′ of two actions with the smallest ratio on a grid, and both sides of Eq. 16."""
    found = []
    for mu in (np.array([0.5, 0.5]), np.array([0.1, 0.9])):
        for p in np.arange(0.01, 0.995, 0.01):
            width = min(p, 1 - p) / 10
            first, second = (
                np.array([p + width, 1 - p - width]),
                np.array([p - width, 1 - p + width]),
            )
            slopes = [regularizer.gradient(np.log(x), np.log(mu)) for x in (first, second)]
            left = float((slopes[0] - slopes[1]) @ (first - second))
            right = float((np.log(first) - np.log(second)) @ (first - second))
            found.append((left / right, mu, first, second, left, right))
    return min(found, key=lambda row: row[0])[1:]


# φ = f′.
SLOPES = {
    "reverse_kl": "log u",
    "entropy": "log u",
    "forward_kl": "−1/u",
    "chi2": "u − 1",
    "alpha:3": "(u² − 1)/2",
    "0.1*forward_kl+0.5*reverse_kl": "½ log u − 0.1/u",
    "js": "½ log(2u/(1 + u))",
    "hellinger": "½(1 − 1/√u)",
    "alpha:-1": "(1 − u⁻²)/2",
    "alpha:0.5": "2(1 − 1/√u)",
}


@claim("RSPO", "Assumption A.1", each=ALL)
def strong_convexity(setting: Setting, each: str) -> Finding:
    """R = {each} is 1-strongly convex relative to entropy (Eq. 16)."""
    rng, regularizer = setting.rng, parse(each)
    references = np.exp(random_policies(rng, (12, 3)))
    found = least_ratio(regularizer, references, rng)
    m = np.array([regularizer.modulus(np.log(mu)) for mu in references])
    never_below = bool(np.all(found >= m - 1e-9))
    closest = float(np.max(found - m))
    mu, first, second, left, right = two_actions(regularizer)
    return finding(
        printed=bool(found.min() >= 1 - 1e-9),
        corrected=never_below and m.min() > 0,
        instead=never_below and m.max() == 0,
        evidence=f"12 random μ of 3 actions: m {span(m)}; a search over 2700 π for each, with the "
        f"worst direction at each, found {'no ratio' if never_below else 'ratios'} below m; the "
        f"smallest is within {size(max(closest, 0.0), 1e-3)} of it.",
        correction=f"m-strongly convex with m = {MODULI[each]}."
        if m.min() > 0
        else "Convex, but not m-strongly convex relative to entropy for any m > 0: φ′(u) = u f″(u) "
        "vanishes as u → 0.",
        counterexample=f"μ = {vector(mu)}, π = {vector(first)}, π′ = {vector(second)}: Eq. 16 has "
        f"Σ(φ(π/μ) − φ(π′/μ))(π − π′) = {left:.3g} on the left, φ(u) = {SLOPES[each]}, and "
        f"Σ(log π/π′)(π − π′) = {right:.3g} on the right.",
    )


def _moduli(setting: Setting, specs: tuple[str, ...]) -> dict[str, float]:
    """The smallest modulus over random μ of 3 actions."""
    references = random_policies(setting.rng, (50, 3))
    return {spec: min(parse(spec).modulus(mu) for mu in references) for spec in specs}


@claim("RSPO", "Assumption A.1, discussion")
def who_violates(setting: Setting) -> Finding:
    """Among the divergences used in our experiments, including linear combinations, only the
    forward KL divergence violates this assumption."""
    m = _moduli(setting, TABLE_6)
    table = ", ".join(f"{spec} {value:.2g}" for spec, value in m.items())
    return finding(
        printed={spec for spec, value in m.items() if value < 1} == {"forward_kl"},
        instead={spec for spec, value in m.items() if value == 0} == {"chi2"},
        evidence=f"Smallest modulus over 50 random μ of 3 actions: {table}.",
        correction="Only χ² has no positive modulus. Forward KL has 2√(μ₁μ₂) > 0, and convergence "
        "is guaranteed at that rate, which is small if μ has small entries. The modulus of a sum "
        "is at least the sum of the moduli of its terms.",
        counterexample="μ = (½, ½), π = (0.002, 0.998), π′ = (0.001, 0.999). χ²: Σ(π − π′)²/μ = "
        "4e-6. Entropy: Σ(π − π′) log π/π′ = 0.001·log 2 + 0.001·log(0.999/0.998) = 6.9e-4. "
        "Forward KL: Σ μ(π − π′)²/(ππ′) = 0.25 + 5e-7, more than entropy's.",
    )


@claim("RSPO", "App. E.3")
def limitation(setting: Setting) -> Finding:
    """Both reverse KL divergence and χ² divergence satisfy this property [Assumption A.1], whereas
    forward KL divergence does not."""
    m = _moduli(setting, ("reverse_kl", "chi2", "forward_kl"))
    return finding(
        printed=min(m["reverse_kl"], m["chi2"]) >= 1 > m["forward_kl"],
        instead=m["reverse_kl"] == 1 and m["forward_kl"] > m["chi2"] == 0,
        evidence=f"Smallest modulus over 50 random μ of 3 actions: reverse KL {m['reverse_kl']:g}, "
        f"χ² {m['chi2']:g}, forward KL {m['forward_kl']:.2g}.",
        correction="The reverse for the last two: forward KL is strongly convex relative "
        "to entropy on the simplex, with a modulus below 1, and χ² is not.",
        counterexample="Eq. 16 for small π(y) = 2ε against ε, μ(y) = ½: χ² has 2ε² from y on the "
        "left, forward KL ½·(1/ε − 1/(2ε))·ε = ¼, entropy ε log 2 on the right.",
    )
