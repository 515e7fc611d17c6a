"""α-SPIN — Investigating Regularization of Self-Play Language Models (arXiv 2404.04291).

Exact minimization is assumed: each θ_t is the minimizer of the expected DPO loss. The paper's β is
1/eta here, and its π_{−1}, the base policy, is the start.
"""

from __future__ import annotations

import math

import numpy as np

from ..arrays import logsumexp, normalize
from ..fits import get_fit
from ..loop import kl_divergence, spin_target
from ..plays import Measure, Plays
from ..rules import UpdateRule
from ..steps import step
from .instances import apart, dependence
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
    random_policies,
    size,
)
from .no_regret import smooth_play_against_ftrl

COUNT = 200
BETA, ALPHA = 0.1, 0.95  # as published


def plays(logp: np.ndarray, base: np.ndarray, data: np.ndarray, opponent: np.ndarray) -> Plays:
    """(..., n) each -> `Plays` of data responses against responses of the opponent."""
    measure = Measure(logp, base, logp_average=opponent, logp_data=data)
    return Plays(None, measure, measure)


def iterates(
    rule: UpdateRule,
    base: np.ndarray,
    data: np.ndarray,
    steps: int,
    start: np.ndarray | None = None,
) -> np.ndarray:
    """(..., n), (..., n) -> (steps + 1, ..., n): log π_{−1} and the iterates of Algorithm 2.

    π_{−1} and all earlier policies are the base unless `start` is given. The same as `solve`, but
    entirely in logs, so that diverging runs stay finite longer.
    """
    points = [base if start is None else start]
    total, count = points[0], 1  # log of the sum of the policies in an infinite memory
    for t in range(steps):
        if rule.memory == math.inf:
            opponent = total - math.log(count)
        else:
            h = int(rule.memory)
            remembered = np.stack(([points[0]] * h + points)[-h:], axis=-1)
            opponent = logsumexp(remembered) - math.log(h)
        here = plays(points[-1], base, data, opponent)
        points.append(step(rule(here, t), here))
        first = t == 0  # π_{−1} is in the average only at t = 0
        total, count = (points[-1], 1) if first else (np.logaddexp(total, points[-1]), count + 1)
    return np.stack(points)


def pair(setting: Setting, n: int = 5, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Random log data and log base, (COUNT, n) each."""
    rng = setting.rng
    return random_policies(rng, (COUNT, n), spread), random_policies(rng, (COUNT, n), spread)


def spin_rule(setting: Setting, beta: float, alpha: float = ALPHA, memory: float = 1) -> UpdateRule:
    """The rule α-SPIN at that β."""
    return setting.rule("alpha_spin", eta=1 / beta, alpha=alpha, memory=memory)


# §2, §3.1: one iteration.


@claim("α-SPIN", "§3.1, KL")
def mixture_identity(setting: Setting) -> Finding:
    """For π_ref ∝ π_(t−1)^α π_base^(1−α), KL(π‖π_ref) = αKL(π‖π_(t−1)) + (1 − α)KL(π‖π_base) + c,
    where c is independent of π."""
    rng = setting.rng
    first, second = random_policies(rng, (2, COUNT, 5), 2.0)
    policies = random_policies(rng, (8, COUNT, 5), 2.0)
    worst, constants = 0.0, []
    for alpha in (0.05, 0.5, ALPHA):
        mixed = Measure(first, second).mixture(1 - alpha)
        left = np.asarray(kl_divergence(policies, mixed))
        right = alpha * kl_divergence(policies, first)
        right = right + (1 - alpha) * kl_divergence(policies, second)
        worst = max(worst, dependence(left - right, left))
        constants.append(apart(left - right, logsumexp(alpha * first + (1 - alpha) * second)))
    return finding(
        printed=worst <= ROUNDING,
        evidence=f"On {COUNT} random pairs, α = 0.05, 0.5, {ALPHA}: c varies over 8 policies by "
        f"{size(worst)}; it is log Σ π_(t−1)^α π_base^(1−α) ≤ 0, to {size(max(constants))}.",
    )


@claim("α-SPIN", "Eq. 6")
def dpo_minimizer(setting: Setting) -> Finding:
    """[Algorithm 2:] θ_t = argmin L_DPO(θ; π_ref), y_w from the data, y_l from the opponent [which,
    by Eq. 4 for the reward log π_data/opponent, is ∝ π_ref (π_data/opponent)^(1/β)]."""
    rng, fit = setting.rng, get_fit("logistic")
    data, base, current, opponent, other = random_policies(rng, (5, COUNT, 4))
    misses, smallest = [], []
    for beta in (BETA, 0.5, 2.0):
        rule = spin_rule(setting, beta)
        here = plays(current, base, data, opponent)
        formula = normalize(ALPHA * current + (1 - ALPHA) * base + (data - opponent) / beta)
        update = rule(here)
        excess = fit(here, update, other) - fit(here, update, formula)
        misses += [
            apart(step(update, here), formula),
            apart(excess, excess_loss(beta, other - formula, data, opponent)),
        ]
        smallest.append(excess.min())
    return finding(
        printed=max(misses) <= ROUNDING and min(smallest) > 0,
        evidence=f"On {COUNT} random (data, opponent, base) of 4 answers, β = {BETA}, 0.5, 2: the "
        "expected DPO loss of any π exceeds that of the closed form by a sum over pairs of "
        f"binary KLs > 0 (to {size(max(misses))}), so that it is the unique minimizer.",
    )


def excess_loss(
    beta: float, away: np.ndarray, data: np.ndarray, opponent: np.ndarray
) -> np.ndarray:
    """(...,): excess of the expected DPO loss at log-ratio error `away` over its minimum.

    A sum over pairs of weight · KL(true label distribution ‖ label distribution predicted by π).
    """
    odds = data - opponent
    true = odds[..., :, None] - odds[..., None, :]
    predicted = true + beta * (away[..., :, None] - away[..., None, :])
    weight = np.exp(data[..., :, None] + opponent[..., None, :])  # i is the data response
    return (weight * (np.logaddexp(0, -predicted) - np.logaddexp(0, -true))).sum(axis=(-2, -1))


# Limits.


@claim("α-SPIN", "§1, SPIN")
def spin_reaches_data(setting: Setting) -> Finding:
    """[SPIN, h = 1, at the published β = 0.1,] drives the LLM towards convergence with π_data."""
    data, base = pair(setting)
    betas = (BETA, 0.4, 0.6, 1.0, 2.0)
    start = kl_divergence(data, base).max()
    ends = {
        beta: kl_divergence(
            data, iterates(spin_rule(setting, beta, 1.0), base, data, 100)[-1]
        ).max()
        for beta in betas
    }
    published = iterates(spin_rule(setting, BETA, 1.0), base, data, 4)
    after = ", ".join(f"{np.median(kl_divergence(data, logp)):.3g}" for logp in published)
    return finding(
        printed=bool(ends[BETA] < 1e-6),
        corrected=all((ends[beta] < 1e-6) == (beta > 0.5) for beta in betas),
        evidence=f"On {COUNT} random (data, base) of 5 answers, KL(data‖base) up to {start:.2f}: "
        "after 100 exact iterations KL(data‖π) is at most "
        + ", ".join(f"{size(end)} (β = {beta:g})" for beta, end in ends.items())
        + f". At β = {BETA}, before and after the first four iterations, in the median: {after}.",
        correction="With exact minimization it converges to π_data where β > ½, at β = 1 in one "
        "iteration. At β = 0.1 a run stays near the data only if it stops far from the "
        "minimizer of its loss.",
        counterexample="log π_(t+1)/data = (1 − 1/β) log π_t/data + const. Two answers, data (½, "
        "½), log odds of the base 1, β = 0.1: the log odds are 1, −9, 81, −729.",
    )


@claim("α-SPIN", "§3.3, 0 < α < 1")
def interpolates(setting: Setting) -> Finding:
    """For general α ∈ (0, 1), α-SPIN can be seen as an interpolation between these two limit cases,
    [α = 0 and α = 1,] still staying in the vicinity of the base policy."""
    data, base = pair(setting)
    misses, shares, kept = [], [], []
    beta = 1.2
    for alpha in (0.0, 0.2, 0.5, 0.8, ALPHA, 1.0):
        rule = spin_rule(setting, beta, alpha)
        target = spin_target(rule, data, base)
        misses.append(apart(iterates(rule, base, data, 300)[-1], target))
        shares.append((1 - alpha) / (1 - alpha + 1 / beta))
        published = spin_target(spin_rule(setting, BETA, alpha), data, base)
        kept.append(np.median(kl_divergence(published, base) / kl_divergence(data, base)))
    return finding(
        printed=max(misses) <= 1e-9 and bool(np.all(np.diff(shares) < 0)),
        evidence=f"On {COUNT} random (data, base) at β = {beta} it converges to ∝ base^w "
        f"data^(1−w), w = β(1 − α)/(1 + β(1 − α)), for six α (to {size(max(misses))}): from data "
        f"at α = 1 to w = β/(1 + β) at α = 0. At the published β = {BETA} w is only "
        f"{share(ALPHA):.1%} for α = {ALPHA}, {share(0.8):.1%} for 0.8, and {share(0.0):.0%} for "
        f"0, where KL(·‖base) is still {kept[0]:.0%} of the data's in the median: the fixed "
        "point is not in the vicinity of the base.",
    )


def share(alpha: float) -> float:
    """w, the exponent of the base at the fixed point, at the published β."""
    return BETA * (1 - alpha) / (1 + BETA * (1 - alpha))


@claim("α-SPIN", "§3.3, α = 1")
def alpha_one(setting: Setting) -> Finding:
    """In the limit case α = 1, α-SPIN boils down to the original SPIN [Algorithm 1]."""
    data, base = pair(setting)
    worst = 0.0
    for beta in (0.6, 1.0, 2.0):
        mine = iterates(spin_rule(setting, beta, 1.0), base, data, 10)
        logp = base
        for t in range(10):
            worst = max(worst, apart(mine[t], logp))
            logp = normalize(logp + (data - logp) / beta)  # DPO with π_ref = opponent = π_(t−1)
    return finding(
        printed=worst <= ROUNDING,
        evidence=f"{COUNT} random (data, base), h = 1, three β, ten iterations: largest "
        f"difference to Algorithm 1 {size(worst)}.",
    )


@claim("α-SPIN", "§3.3, α = 0")
def alpha_zero(setting: Setting) -> Finding:
    """The other limit case α = 0 is similar to DPO with winning responses chosen in the SFT
    dataset."""
    data, base = pair(setting)
    beta = 2.0
    points = iterates(spin_rule(setting, beta, 0.0), base, data, 100)
    dpo = normalize(base + (data - base) / beta)
    misses = [float(np.abs(np.exp(logp) - np.exp(dpo)).sum(axis=-1).max()) for logp in points]
    rests = normalize(beta / (1 + beta) * base + 1 / (1 + beta) * data)
    end = apart(points[-1], rests)
    return finding(
        printed={
            "its first iteration": misses[1] <= ROUNDING,
            "its later ones": misses[-1] <= 1e-9,
        },
        evidence=f"{COUNT} random (data, base), β = {beta:g}, losers of DPO from the base: Σ|π − "
        f"DPO| is {size(misses[1])} after the first iteration, up to {misses[2]:.2f} after the "
        f"second and {misses[-1]:.2f} at the end.",
        correction="Only the first iteration is DPO, base^(1−1/β) data^(1/β). Later ones keep "
        "the base as π_ref but draw the losers from π_(t−1): π_t ∝ base (data/π_(t−1))^(1/β), "
        "which "
        f"converges for β > 1 to base^(β/(1+β)) data^(1/(1+β)) (to {size(end)}) and diverges for "
        "β < 1.",
        counterexample="Two answers, base (½, ½), log odds of the data 1, β = 2: the log odds of "
        "π are 0, 1/2, 1/4, 3/8, … to 1/3. Those of DPO are 1/2.",
    )


# §3.2: the memory h.


def radius(beta: float, alpha: float, memory: int) -> float:
    """Spectral radius at the fixed point of x_t = αx_(t−1) − (1/(βh)) Σ_(s ≤ h) x_(t−s)."""
    companion = np.diag(np.ones(memory - 1), -1)
    companion[0] -= 1 / (beta * memory)
    companion[0, 0] += alpha
    return float(np.abs(np.linalg.eigvals(companion)).max())


def threshold(alpha: float, memory: int) -> float:
    """The β below which the fixed point is unstable, by bisection."""
    low, high = 1e-3, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if radius(middle, alpha, memory) < 1 else (middle, high)
    return high


def returns(setting: Setting, beta: float, memory: int) -> bool:
    """Whether iterates that start near the fixed point approach it, for some (data, base)."""
    data, base = (logp[:20] for logp in pair(setting))
    rule = spin_rule(setting, beta, memory=memory)
    target = spin_target(rule, data, base)
    near = normalize(target + 1e-4 * (base - data))
    far = [largest(logp - target) for logp in iterates(rule, base, data, 400, near)[[0, -1]]]
    return far[1] < far[0]


@claim("α-SPIN", "Remark 1, h = 2")
def two_remembered(setting: Setting) -> Finding:
    """The mixture of the previous two policies [h = 2] introduces some form of stability, as it
    ensures that performance doesn't significantly deviate from the previous iterates."""
    alphas = (0.0, 0.5, ALPHA, 1.0)
    limits = {h: [threshold(alpha, h) for alpha in alphas] for h in (1, 2)}
    confirmed = [
        returns(setting, limits[h][2] * factor, h) == (factor > 1)
        for h in (1, 2)
        for factor in (1.05, 0.95)
    ]
    data, base = pair(setting)
    target = spin_target(spin_rule(setting, BETA), data, base)
    far = [float(np.median(np.abs(target - base).max(axis=-1)))]
    for h in (1, 2):
        logp = iterates(spin_rule(setting, BETA, memory=h), base, data, 4)[-1]
        far.append(float(np.median(np.abs(logp - target).max(axis=-1))))
    growth = {h: radius(BETA, ALPHA, h) for h in (1, 2)}
    radii = ", ".join(
        f"{radius(beta, ALPHA, 1):.2f} and {radius(beta, ALPHA, 2):.2f} at β = {beta:g}"
        for beta in (BETA, 1.0, 2.0)
    )
    return finding(
        printed={
            "it diverges more slowly": all(confirmed) and far[2] < far[1],
            "it is stable at the published β": returns(setting, BETA, 2),
        },
        evidence=f"Exact iterations, α = {ALPHA}: near the fixed point deviations are multiplied "
        f"by, for h = 1 and h = 2, {radii}. For α = 0, ½, {ALPHA}, 1 it is stable above β = "
        f"{', '.join(f'{b:.3f}' for b in limits[1])} (h = 1) and "
        f"{', '.join(f'{b:.3f}' for b in limits[2])} (h = 2); {sum(confirmed)} of "
        f"{len(confirmed)} runs 5 % above or below these agree. At β = {BETA} from the base the "
        f"median of max |log π/π*| is {far[0]:.1f}, after four iterations {far[1]:.0f} (h = 1) and "
        f"{far[2]:.0f} (h = 2).",
        correction="h = 2 needs β > ½ for any α, h = 1 needs β > 1/(1 + α): the same at α = 1. "
        f"Below, h = 2 diverges more slowly, at β = {BETA} by {growth[2]:.2f} instead of "
        f"{growth[1]:.2f} per iteration; near β = 1 it also converges more slowly.",
        counterexample="Near π*, x = log π/π*: x_t = αx_(t−1) − x_(t−1)/β for h = 1, x_t = "
        "αx_(t−1) − (x_(t−1) + x_(t−2))/(2β) for h = 2. At α = 1, β = 0.1, from 1: "
        f"{recursion(1)} and {recursion(2)}.",
    )


def recursion(h: int) -> str:
    """The first x_t at α = 1, β = 0.1."""
    x = [1.0] * h
    for _ in range(4):
        x.append(x[-1] - sum(x[-h:]) / (BETA * h))
    return ", ".join(f"{value:.0f}" for value in x[h:]).replace("-", "−")


@claim("α-SPIN", "§3.2, h = ∞")
def all_remembered(setting: Setting) -> Finding:
    """[Playing against the average of all previous policies, h = ∞,] can be interpreted as a
    regularization/smoothing acting on the opponent's strategy [: it converges at β = 0.1]."""
    data, base = (logp[:40] for logp in pair(setting))

    def distances(
        beta: float, alpha: float, memory: float, steps: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """(steps, 40): Σ|π_t − π*|, and the same of the mean of π_0, …, π_t."""
        rule = spin_rule(setting, beta, alpha, memory)
        p = np.exp(iterates(rule, base, data, steps)[1:])
        means = np.cumsum(p, axis=0) / np.arange(1, steps + 1)[:, None, None]
        target = np.exp(spin_target(rule, data, base))
        return np.abs(p - target).sum(axis=-1), np.abs(means - target).sum(axis=-1)

    steps, near = 1024, 4096
    mixed, _ = distances(BETA, ALPHA, math.inf, steps)
    pure, of_mean = distances(BETA, 1.0, math.inf, steps)
    ends = 2 ** np.arange(8, 13)  # of the intervals (t/2, t]
    powers = [
        order(ends, [np.median(far[t // 2 : t].max(axis=0)) for t in ends])
        for far in distances(1.5, 1.0, math.inf, near)
    ]
    t = np.arange(1, steps + 1)
    medians = ", ".join(f"{size(np.median(mixed[k - 1]))} (t = {k})" for k in (4, 64, 256, 1024))
    return finding(
        printed={"0 < α < 1": mixed[-1].max() < 1e-3, "α = 1": pure[-1].max() < 1e-3},
        evidence=f"40 random (data, base), β = {BETA}, exact iterations from the base, median "
        f"Σ|π_t − π*|: with α = {ALPHA} {medians}, where h = 1 and h = 2 diverge; with α = 1 "
        f"still {np.median(pure[-1]):.1f} at t = {steps}, {np.median(of_mean[-1]):.2f} that of "
        f"the mean of the π_t. At β = 1.5, α = 1 it falls as t^{powers[0]:.2f}, that of the mean "
        f"as t^{powers[1]:.2f}.",
        correction="With α < 1 the last iterate converges at β = 0.1, after about 1/(β(1 − α)) = "
        "200 iterations of oscillations as large as those of h = 1. With α = 1 (SPIN) the mean of "
        "the policies converges as t^(−3/4); the last iterate oscillates, with an amplitude that "
        "falls as t^(−1/4) once it is near.",
        counterexample="Near π*, x_t = αx_(t−1) − m_t/β, m_(t+1) = m_t + (x_t − m_t)/(t + 1). "
        "For large t and α < 1, x = −m/(β(1 − α)) and m ∝ t^(−1−1/(β(1−α))): a power for any β. "
        "For α = 1 it is t m″ + 2m′ + m/β = 0, m = t^(−1/2) J₁(2√(t/β)): m ∝ t^(−3/4), x = m + t "
        "m′ ∝ t^(−1/4).",
        chart=Chart(
            f"α-SPIN at β = {BETA} with exact minimization",
            "iteration",
            "median Σ|π − π*|",
            (
                Curve("h = 1", t[:64], median(distances(BETA, ALPHA, 1, 64)[0])),
                Curve("h = 2", t[:64], median(distances(BETA, ALPHA, 2, 64)[0])),
                Curve("h = ∞", t, median(mixed)),
                Curve("h = ∞, α = 1", t, median(pure)),
            ),
        ),
    )


def median(values: np.ndarray) -> np.ndarray:
    """(T, count) -> (T,)."""
    return np.median(values, axis=-1)


@claim("α-SPIN", "§3.2, FTRL")
def follows_the_leader(setting: Setting) -> Finding:
    """[Of h = ∞:] a smooth version of the fictitious play is shown to be equivalent to an instance
    of the follow-the-regularized-leader algorithm."""
    data, base = pair(setting)
    beta, steps = 1.0, 30

    def gaps(alpha: float, memory: float) -> tuple[float, float]:
        """Distances to smooth fictitious play and to discounted FTRL on r_s = log "
        "data/opponent_s."""
        points = iterates(spin_rule(setting, beta, alpha, memory), base, data, steps)
        smooth, leader = 0.0, 0.0
        rewards = np.zeros_like(base)
        for t in range(steps):
            known = points[1 : t + 1] if t and memory == math.inf else points[: t + 1][-1:]
            opponent = logsumexp(np.stack(list(known), axis=-1)) - math.log(len(known))
            rewards = alpha * rewards + data - opponent
            response = normalize(base + (data - opponent) / beta)
            smooth = max(smooth, apart(np.exp(points[t + 1]), np.exp(response)))
            leader = max(leader, apart(points[t + 1], normalize(base + rewards / beta)))
        return smooth, leader

    smooth, leader = gaps(ALPHA, math.inf)
    at_zero, _ = gaps(0.0, math.inf)
    _, of_one = gaps(ALPHA, 1)
    tabular = smooth_play_against_ftrl(setting)
    return finding(
        printed={
            "smooth fictitious play": tabular <= ROUNDING,
            "α-SPIN with h = ∞": smooth <= ROUNDING,
        },
        evidence="Smooth fictitious play is FTRL with the step 1/(τt), largest difference in log "
        f"π {size(tabular)}. α-SPIN with h = ∞, α = {ALPHA}, β = {beta:g} is up to {smooth:.2f} "
        "away from the smooth best response to the average, base (data/average)^(1/β); at α = 0 "
        f"{size(at_zero)}.",
        correction="α-SPIN is another FTRL, for every h: π_t ∝ base exp(Σ_(s≤t) α^(t−s) r_s/β), "
        f"r_s = log data/opponent_s (largest difference {size(max(leader, of_one))} for h = 1 and "
        "∞): a constant step 1/β and a discount α, where smooth fictitious play has the step "
        "1/(τt) and no discount.",
        counterexample="Two iterations: log π_0 = log base + r_0/β and log π_1 = α log π_0 + (1 "
        "− α) log base + r_1/β = log base + (αr_0 + r_1)/β, up to constants.",
    )


# App. A: sequences.


@claim("α-SPIN", "Eq. 9")
def tokens(setting: Setting) -> Finding:
    """The geometric mixture of two auto-regressive sequence generators does not decompose at the
    level of the tokens: its normalization constant is in general not equal to the product of the
    auto-regressive ones."""
    rng, symbols = setting.rng, 3
    gaps = {}
    for length in (1, 2, 3, 4, 5):
        tables = [random_policies(rng, (2, COUNT, *[symbols] * k, symbols)) for k in range(length)]
        for alpha in (0.5, ALPHA):
            gaps[length, alpha] = total_variation(tables, alpha)
    half, published = gaps[3, 0.5], gaps[3, ALPHA]
    growth = ", ".join(f"{np.median(gaps[length, 0.5]):.3f}" for length in (1, 2, 3, 4, 5))
    return finding(
        printed=bool(min(half.min(), published.min()) > 1e-9) and gaps[1, 0.5].max() <= ROUNDING,
        evidence=f"{COUNT} pairs of random models, {symbols} symbols, length 3: total variation "
        "between mixing token by token and the mixture of the sequences, α = ½: median "
        f"{np.median(half):.3f}, largest {half.max():.3f}; α = {ALPHA}: "
        f"{np.median(published):.4f}, {published.max():.3f}; median at lengths 1 to 5, α = ½: "
        f"{growth}. By hand: two symbols, length 2, both models uniform except that one follows A "
        "by (0.9, 0.1). Token by token P(A first) = ½; in the mixture it is ∝ √0.45 + √0.05 = "
        "0.894 against 1 for B, 0.472.",
    )


def total_variation(tables: list[np.ndarray], alpha: float) -> np.ndarray:
    """Conditionals (2, ..., s, …, s) of two models for each position -> (...,)."""
    joint, tokenwise, count = 0.0, 0.0, tables[0].shape[1]
    for logp in tables:
        mixed = alpha * logp[0] + (1 - alpha) * logp[1]
        joint = np.expand_dims(joint, -1) + mixed
        tokenwise = np.expand_dims(tokenwise, -1) + normalize(mixed)
    true = normalize(np.reshape(joint, (count, -1)))
    return 0.5 * np.abs(np.exp(true) - np.exp(np.reshape(tokenwise, (count, -1)))).sum(axis=-1)
