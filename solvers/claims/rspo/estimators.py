"""RSPO, Appendix C.3: sample estimators of R and of its gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ...arrays import Array, dot, normalize
from ...divergences import parse
from ...estimators import estimate
from ..ledger import (
    Chart,
    Curve,
    Finding,
    Setting,
    claim,
    equal,
    finding,
    largest,
    random_policies,
    size,
)
from .cases import COUNT, Case, by_hand, cases, mean_of

DEFINITIONS: dict[str, Callable[[Array, Array], Array]] = {
    "reverse_kl": lambda logp, ref: mean_of(np.exp(logp), logp - ref),
    "forward_kl": lambda logp, ref: mean_of(np.exp(ref), ref - logp),
    "chi2": lambda logp, ref: 0.5 * mean_of(np.exp(ref), (np.exp(logp - ref) - 1) ** 2),
}
PUBLISHED: dict[str, Callable[[Array, Array], Array]] = {
    "reverse_kl": lambda logp, ref: (logp - ref) ** 2,
    "forward_kl": lambda logp, ref: np.exp(ref - logp),
    "chi2": lambda logp, ref: np.exp(logp - ref),
}
FACTORS = {"reverse_kl": 2.0, "forward_kl": 1.0, "chi2": 1.0}  # of the gradient, measured below
CLIP = 10.0


def true_gradient(case: Case, name: str) -> Array:
    """∇R(π_θ, μ)."""
    return case.gradient(lambda logp: DEFINITIONS[name](logp, case.ref))


def sampled_gradient(case: Case, name: str, weights: Array | None = None) -> Array:
    """E_{y∼π_θ}[∇ĥ(y)] of Eqs. 52–54, or under other constant weights."""
    p = np.exp(case.theta) if weights is None else weights
    return case.gradient(lambda logp: mean_of(p, PUBLISHED[name](logp, case.ref)))


@claim("RSPO", "Prop. C.1")
def reverse_kl_square(setting: Setting) -> Finding:
    """∇KL(π_θ‖μ) = E_{y∼π_θ}[∇(log π_θ(y) − log μ(y))²] (Eq. 52)."""
    case, hand = cases(setting), by_hand()
    true, printed = true_gradient(case, "reverse_kl"), sampled_gradient(case, "reverse_kl")
    ratio = dot(printed, true) / dot(true, true)
    here = true_gradient(hand, "reverse_kl")[0], sampled_gradient(hand, "reverse_kl")[0]
    return finding(
        printed=equal(printed, true),
        corrected=equal(0.5 * printed, true),
        evidence=f"{case.count} random cases: the right-hand side is {ratio.min():.4f} to "
        f"{ratio.max():.4f} times the left.",
        correction="Half of that: Eq. 48, in the proof, has the ½ that Eq. 52 lacks. A term λ(log "
        "πθ/μ)² in the loss thus pulls with 2λ∇KL: its temperature is τ = λ/η.",
        counterexample="∇(log πθ/μ)² = 2 log πθ/μ·∇log πθ. With πθ = (0.6, 0.4), μ = (½, ½), by "
        f"the first logit: ∇KL = 0.6·0.4·log 1.5 = {here[0]:.4f}, the right-hand side "
        f"{here[1]:.4f}.",
    )


@claim(
    "RSPO",
    "Prop. C.{each}",
    each={
        "2": "∇KL(μ‖π_θ) = E_{y∼π_θ}[∇ μ(y)/π_θ(y)] (Eq. 53)",
        "3": "∇χ²(π_θ‖μ) = E_{y∼π_θ}[∇ π_θ(y)/μ(y)] (Eq. 54)",
    },
)
def forward_kl_and_chi2(setting: Setting, each: str) -> Finding:
    """{text}."""
    name = {"2": "forward_kl", "3": "chi2"}[each]
    case = cases(setting)
    true, printed = true_gradient(case, name), sampled_gradient(case, name)
    return finding(
        printed=equal(printed, true, scale=largest(true)),
        evidence=f"{case.count} random cases, the samples held fixed while differentiating: "
        f"largest difference {size(largest(printed - true) / largest(true))} of the gradient.",
    )


@claim("RSPO", "App. A.6")
def proof_of_c2(setting: Setting) -> Finding:
    """∇KL(μ‖π_θ) = E_{y∼μ}[∇ μ(y)/π_θ(y)] (first line of the proof of Prop. C.2)."""
    case, hand = cases(setting), by_hand()
    true = true_gradient(case, "forward_kl")
    printed = sampled_gradient(case, "forward_kl", np.exp(case.ref))
    here = sampled_gradient(hand, "forward_kl", np.exp(hand.ref))[0]
    return finding(
        printed=equal(printed, true, scale=largest(true)),
        corrected=equal(sampled_gradient(case, "forward_kl"), true, scale=largest(true)),
        evidence=f"{case.count} random cases: off by up to "
        f"{size(largest(printed - true) / largest(true))}, relative to the gradient.",
        correction="E_{y∼π_θ}, as in Eqs. 50 and 53.",
        counterexample="πθ = (0.6, 0.4), μ = (½, ½), by the first logit: ∇KL(μ‖πθ) = 0.6 − 0.5 = "
        f"0.1, and E_μ[∇ μ/πθ] = {here:.4f}: −½·(0.5/0.6)·0.4 + ½·(0.5/0.4)·0.6.",
    )


@claim(
    "RSPO",
    "App. C.3",
    each={"forward_kl": "E_{y∼π_θ}[μ(y)/π_θ(y)]", "chi2": "E_{y∼π_θ}[π_θ(y)/μ(y)]"},
)
def estimate_of_the_value(setting: Setting, each: str) -> Finding:
    """We can estimate R = {each} by {text}."""
    case = cases(setting)
    p, value = np.exp(case.theta), DEFINITIONS[each](case.theta, case.ref)
    printed = mean_of(p, PUBLISHED[each](case.theta, case.ref))
    through = case.gradient(lambda logp: mean_of(np.exp(logp), PUBLISHED[each](logp, case.ref)))
    true = true_gradient(case, each)
    factor = 2.0 if each == "chi2" else 0.0
    known = equal(through, factor * true, scale=largest(true)) and equal(
        printed, 1 + factor * value, scale=largest(printed)
    )
    what = {
        "forward_kl": "It is Σ μ = 1 for every π_θ: constant, with zero gradient unless the "
        "samples are held fixed.",
        "chi2": "It is 1 + 2χ² (Eq. 51), with twice the gradient unless the samples are held "
        "fixed.",
    }[each]
    return finding(
        printed=equal(printed, value, scale=largest(value)),
        instead=known,
        evidence=f"{case.count} random cases: the estimate lies in [{printed.min():.2f}, "
        f"{printed.max():.2f}], R in [{value.min():.2f}, {value.max():.2f}].",
        correction=what + " Only its gradient with fixed samples is that of R.",
        counterexample="π_θ = (0.6, 0.4), μ = (½, ½): "
        + {
            "forward_kl": "0.6·(0.5/0.6) + 0.4·(0.5/0.4) = 1, while KL(μ‖πθ) = 0.0204.",
            "chi2": "0.6·1.2 + 0.4·0.8 = 1.04, while χ² = ½(½·0.2² + ½·0.2²) = 0.02.",
        }[each],
    )


@claim("RSPO", "App. C.3, samples of π_t", each=("reverse_kl", "forward_kl", "chi2"))
def off_policy(setting: Setting, each: str) -> Finding:
    """Each policy update iteration only requires samples from π_t: they estimate ∇R (R = {each})
    [while θ moves away from θ_t in the course of the iteration]."""
    case = cases(setting).at_current
    weights, lam = np.exp(case.current), 2 * case.eta * case.tau / FACTORS[each]
    steps, rate = 30, 0.2

    def importance(case: Case) -> Array:
        def loss(logp: Array) -> Array:
            return mean_of(
                weights,
                estimate("importance", parse(each).summands[0], logp, case.ref, case.current, CLIP),
            )

        return case.gradient(loss)

    biases, unbiased = [], []
    for _ in range(steps + 1):
        true = true_gradient(case, each)
        there = sampled_gradient(case, each, weights) / FACTORS[each]
        length = np.linalg.norm(true, axis=-1)
        biases.append(np.median(np.linalg.norm(there - true, axis=-1) / length))
        unbiased.append(largest(importance(case) - true) / largest(true))
        square = case.fit(case.eta * (case.wins(case.current) - 0.5))
        descent = square + lam * FACTORS[each] * there
        case = replace(case, theta=normalize(case.theta - rate * descent))
    return finding(
        printed=max(biases) <= 1e-12,
        corrected=biases[0] <= 1e-12 and max(unbiased) <= 1e-12,
        evidence=f"Bias of the estimate of Eqs. 52–54, relative to ∇R, median of {case.count} "
        "random cases after 0, 1, 3, 10 and 30 gradient steps on the same samples: "
        f"{size(biases[0])}, {size(biases[1])}, {size(biases[3])}, {size(biases[10])}, "
        f"{size(biases[30])}. Importance-weighted: {size(max(unbiased))} throughout.",
        correction="Unbiased at θ = θ_t only. E_πt[(μ/π_t) f(πθ/μ)] is unbiased at every θ (for "
        "forward KL also the mean of −log πθ over samples of μ).",
        counterexample=_off_policy_by_hand(each),
        chart=Chart(
            f"Estimate of ∇R off policy, {each} (App. C.3)",
            "gradient steps on the same samples",
            "relative bias, median",
            (Curve("samples of π_t", np.arange(1, steps + 1), np.array(biases[1:])),),
        ),
    )


def _off_policy_by_hand(name: str) -> str:
    case = by_hand()
    true = true_gradient(case, name)[0]
    there = sampled_gradient(case, name, np.exp(case.current))[0] / FACTORS[name]
    slope = {"reverse_kl": "log πθ/μ", "forward_kl": "−μ/πθ", "chi2": "πθ/μ"}[name]
    half = " (half of Eq. 52)" if name == "reverse_kl" else ""
    return (
        "Samples of π_t = (0.8, 0.2), π_θ = (0.6, 0.4), μ = (½, ½), by the first logit, a = "
        f"{slope}: ∇R = E_πθ[∇log πθ·a] = 0.24(a₁ − a₂) = {true:.4f}, but E_πt[∇log πθ·a] = "
        f"0.32a₁ − 0.12a₂ = {there:.4f}{half}."
    )


@claim("RSPO", "App. C.3, clip", each=("forward_kl", "chi2"))
def clipped(setting: Setting, each: str) -> Finding:
    """To mitigate the risk of gradient explosion, we apply gradient clipping with a maximum value
    of 10 (R = {each}) [on the log-ratio, as the authors' code does; ∇R is still estimated]."""

    def bias(spread: float) -> tuple[Array, Array]:
        """Relative bias at θ = θ_t, and the largest log-ratio."""
        rng = setting.rng
        near, wide = random_policies(rng, (COUNT, 4)), random_policies(rng, (COUNT, 4), spread)
        ref, theta = (near, wide) if each == "forward_kl" else (wide, near)
        case = Case(np.full((4, 4), 0.5), theta, theta, ref)
        true = true_gradient(case, each)

        def loss(logp: Array) -> Array:
            return mean_of(
                np.exp(theta),
                estimate("published", parse(each).summands[0], logp, ref, theta, CLIP),
            )

        off = np.linalg.norm(case.gradient(loss) - true, axis=-1)
        return off / np.linalg.norm(true, axis=-1), (near - wide).max(axis=-1)

    near, near_ratio = bias(1.0)
    far, far_ratio = bias(8.0)
    reached = far_ratio > CLIP
    if each == "forward_kl":
        by_hand_note = (
            "μ = (½, ½), π = (1 − e⁻¹¹, e⁻¹¹): log μ/π at y² is 10.3. ∇KL(μ‖π) by the second "
            "logit is π₂ − μ₂ = −0.5: increase it. Clipped, only y¹ contributes: E = +0.5·π₂ = "
            "0.000008, decrease it."
        )
    else:
        by_hand_note = (
            "μ = (1 − e⁻¹¹, e⁻¹¹), π = (½, ½): log π/μ at y² is 10.3. ∇χ² by the second logit is "
            "¼(π₂/μ₂ − π₁/μ₁) = ¼(29937 − 0.5) = 7484: decrease it. Clipped, only y¹ speaks: "
            "E = −¼·0.5 = −0.125, increase it."
        )
    return finding(
        printed=bool(np.all(np.concatenate([near, far]) <= 1e-9)),
        corrected=bool(np.all(near[near_ratio <= CLIP] <= 1e-9) and np.all(far[~reached] <= 1e-9)),
        evidence=f"At θ = θ_t, {COUNT} policies near μ and {COUNT} far from it: no bias where no "
        f"log-ratio exceeds 10; where one does ({reached.sum()} policies) the bias is "
        f"{size(np.median(far[reached]))} of ∇R in the median.",
        correction="True while all log-ratios are at most 10. A response beyond it contributes no "
        "gradient, and the others push it further away: responses farthest from μ are not pulled "
        "back.",
        counterexample=by_hand_note,
    )
