"""Losses written out twice: by hand from the papers, and one by one in plain loops.

Nothing of `solvers` is in the formulas here: they are checks of it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
import torch
from scipy.optimize import brentq, root

from solvers import Plays, get_rule
from solvers.fits import FITS, get_fit
from solvers.rules import RULES
from solvers.tournament import round_robin

# Three responses whose probabilities are powers of ½, so that every logarithm is one of log 2.
L = log(2)
PI = L * np.array([-1.0, -2.0, -2.0])  # π_t = ½, ¼, ¼
MU = L * np.array([-2.0, -1.0, -2.0])  # μ = ¼, ½, ¼
THETA = L * np.array([-2.0, -2.0, -1.0])  # π_θ = ¼, ¼, ½
P = np.array([[0.5, 0.75, 0.25], [0.25, 0.5, 1.0], [0.75, 0.0, 0.5]])  # 1 beats 2 beats 3 beats 1
THREE = Plays.sampled(P, PI, MU, "include", length=np.array([1.0, 2.0, 1.0]))


def published(rule: str, fit: str, plays: Plays = THREE, options=None, **settings) -> float:
    """The loss of the mean over the rows of the three responses or pairs."""
    rule = get_rule(rule, **settings)
    return float(get_fit(fit, **options or {})(plays, rule(plays), THETA))


WINNER = {"signal": "winner"}
BEST_WORST = {"responses": "best_worst", "estimator": "published"}


def test_sppo():
    """Wu et al. 2024: (log π_θ/π_t − η(P̂ − ½))²; P̂ = 6/12, 7/12, 5/12, log-ratios −L, 0, L."""
    assert published("sppo", "regression", eta=12) == pytest.approx((L**2 + 1 + (L + 1) ** 2) / 3)
    # As its code: ½ of each of best and worst, which are 2 and 3.
    found = published("sppo", "regression", eta=12, options=BEST_WORST)
    assert found == pytest.approx((1 + (L + 1) ** 2) / 2)


@pytest.mark.parametrize(
    ("regularizer", "of_best_and_worst", "factor"),
    [
        ("reverse_kl", L**2 + L**2, 1),  # D² of D = log π_θ/μ = −L and L
        ("forward_kl", 2 + 1 / 2, 2),  # exp(−D)
        ("chi2", 1 / 2 + 2, 2),  # exp(D)
    ],
)
def test_rspo(regularizer, of_best_and_worst, factor):
    """RSPO Eq. 8 with R̂ of Eqs. 52-54 as its code adds them up: λ′ΣR̂ with λ′ = λ/2, λ = 2ητ, ητ."""
    found = published(
        "rspo", "regression", eta=12, tau=0.25, regularizer=regularizer, options=BEST_WORST
    )
    lam = factor * 12 * 0.25
    assert found == pytest.approx((1 + (L + 1) ** 2) / 2 + lam / 2 * of_best_and_worst)


def test_inpo():
    """INPO Eq. 8: (h_t(winner, loser) − 1/(2η))², its η = ½ and τ/η = ⅓; here η = 2, τ = ⅙.

    h = Δlog π_θ − ⅓Δlog μ − ⅔Δlog π_t of the pairs 1 ≻ 2, 3 ≻ 1, 2 ≻ 3.
    """
    found = published("inpo", "pairwise", options=WINNER, eta=2, tau=1 / 6)
    terms = [0 + L / 3 - 2 * L / 3 - 1, L - 0 + 2 * L / 3 - 1, -L - L / 3 - 0 - 1]
    assert found == pytest.approx(sum(term**2 for term in terms) / 3)


def test_online_ipo():
    """Calandriello et al. 2024: (Δlog π_θ/μ − 1/(2τ))², of pairs of π_t: INPO at η = 1/τ."""
    found = published("inpo", "pairwise", options=WINNER, eta=2, tau=0.5)
    assert found == pytest.approx(((L - 1) ** 2 + (L - 1) ** 2 + (-2 * L - 1) ** 2) / 3)


def test_dpo():
    """−log σ(β(Δlog π_θ/μ)) with gaps L, L, −2L at β = 2: σ = 4/5, 4/5, 1/17."""
    found = published("dpo", "logistic", options=WINNER, tau=2)
    assert found == pytest.approx((2 * log(5 / 4) + log(17)) / 3)


def test_dpo_with_a_moving_reference():
    """−log σ(β(Δlog π_θ/π_t)) with gaps −L, 2L, −L at β = 1: σ = 1/3, 4/5, 1/3."""
    found = published("moving_dpo", "logistic", options=WINNER, eta=1)
    assert found == pytest.approx((2 * log(3) + log(5 / 4)) / 3)


def test_dno_prct():
    """Rosset et al. 2024: that loss, its η = 1, of the best and the worst: 2 ≻ 3."""
    ends = round_robin(P)
    assert (ends.best, ends.worst, ends.passed) == (1, 2, True)
    pair = np.array([ends.best, ends.worst])
    plays, rule = Plays.sampled(P[np.ix_(pair, pair)], PI[pair], MU[pair]), get_rule("mwu", eta=1)
    assert get_fit("logistic", **WINNER)(plays, rule(plays), THETA[pair]) == pytest.approx(log(3))


def test_dpo_of_soft_labels():
    """Cross-entropy with P = 3/4, 1/4, 1 of the pairs 12, 13, 23, whose σ(h) = 2/3, 1/3, 1/5."""
    found = published("dpo", "logistic", options={"signal": "preference"}, tau=1)
    terms = [
        3 / 4 * log(3 / 2) + 1 / 4 * log(3),
        1 / 4 * log(3) + 3 / 4 * log(3 / 2),
        log(5),
    ]
    assert found == pytest.approx(sum(terms) / 3)


def test_rebel():
    """Gao et al. 2024: ((1/η)Δlog π_θ/π_t − Δr)² for r the win rate, here times η²; η = 12."""
    found = published("mwu", "pairwise", eta=12)
    assert found == pytest.approx(((-L + 1) ** 2 + (-2 * L - 1) ** 2 + (-L - 2) ** 2) / 3)


def test_ipo():
    """Azar et al. 2023, Eq. 17: (Δlog π_θ/μ − 1/(2τ))² with gaps L, L, −2L at τ = ½."""
    found = published("dpo", "pairwise", options=WINNER, tau=0.5)
    assert found == pytest.approx((2 * (L - 1) ** 2 + (-2 * L - 1) ** 2) / 3)


def test_slic():
    """SLiC-HF (Zhao et al. 2023): max(0, δ − Δlog π_θ), gaps 0, L, −L, at δ = ½ = 1/τ."""
    options = {"signal": "winner", "error": "hinge"}
    found = published("dpo", "pairwise", options=options, tau=2, regularizer="entropy")
    assert found == pytest.approx((1 / 2 + 0 + (1 / 2 + L)) / 3)


def test_simpo():
    """Meng et al. 2024: −log σ(β/|y|·log π_θ gaps − γ); −2L, −L, −L a token, β = 1, γ = L."""
    options = {"signal": "winner", "length_normalized": True, "margin": L}
    found = published("dpo", "logistic", options=options, tau=1, regularizer="entropy")
    assert found == pytest.approx((log(1 + 4) + log(1 + 1) + log(1 + 2)) / 3)


def test_chi_po():
    """Huang et al. 2024: DPO with φ(z) = z + log z of z = 1, ½, 2 (without its clip); β = 1."""
    found = published("dpo", "logistic", options=WINNER, tau=1, regularizer="reverse_kl+chi2")
    gaps = [1 - (1 / 2 - L), (2 + L) - 1, (1 / 2 - L) - (2 + L)]
    assert found == pytest.approx(sum(log(1 + exp(-gap)) for gap in gaps) / 3)


@pytest.mark.parametrize(
    ("regularizer", "losses"),
    [
        # f′ = log 2u/(1 + u) of u = 1, ½, 2 is 0, log 2/3, log 4/3; twice the js of this package.
        ("2*js", [log(5 / 3), log(7 / 4), log(3)]),
        # f′ = −1/u is −1, −2, −½.
        ("forward_kl", [log(1 + exp(-1)), log(1 + exp(-0.5)), log(1 + exp(1.5))]),
        # f′ = (1 − u^−α)/α at α = ½, the a = ½ here: 0, 2 − 2√2, 2 − √2.
        (
            "alpha:0.5",
            [
                log(1 + exp(2 - 2 * math.sqrt(2))),
                log(1 + exp(math.sqrt(2) - 2)),
                log(1 + exp(math.sqrt(2))),
            ],
        ),
    ],
)
def test_f_dpo(regularizer, losses):
    """Wang et al. 2024: −log σ(β(f′(π_θ/μ)(winner) − f′(π_θ/μ)(loser))), Table 1; β = 1."""
    found = published("dpo", "logistic", options=WINNER, tau=1, regularizer=regularizer)
    assert found == pytest.approx(sum(losses) / 3)


@pytest.mark.parametrize(
    ("rule", "settings", "losses"),
    [
        # −log σ(λΔlog π_θ/π_t), gaps −L and −2L at λ = 1.
        ("spin", {"eta": 1}, [log(3), log(5)]),
        # The reference ∝ √(π_t μ): gaps 0 and −L − L/2 at β = 2.
        ("alpha_spin", {"eta": 0.5, "alpha": 0.5}, [log(2), log(9)]),
    ],
)
def test_spin(rule, settings, losses):
    """SPIN's and α-SPIN's (Eq. 6) losses of answer 1, the data's, over the opponent's 2 and 3."""
    plays = Plays.with_data(PI, MU, data=1)
    assert published(rule, "logistic", plays, **settings) == pytest.approx(sum(losses) / 2)


def policy_gradient(plays: Plays, rule) -> np.ndarray:
    """(n,): of the loss at π_θ = π_t, in the logits where Plays are exact, else in log π_θ."""
    exact = plays.own.log_weight is None
    at = torch.tensor(PI, requires_grad=True)
    update, fit = rule(plays), get_fit("policy_gradient")
    items = fit.items(plays, update)
    rows = (torch.log_softmax(at, -1) if exact else at)[torch.tensor(items.index)]
    columns = {name: torch.tensor(column) for name, column in items.columns.items()}
    loss = (torch.tensor(items.weight) * fit.loss(rows, columns, items.regularizer)).sum()
    return torch.autograd.grad(loss, at)[0].numpy()


def test_nash_md_policy_gradient():
    """Munos et al. 2024, §7: E ∇log π(y)[P(y ≻ π^μ) − ½ − τ log π_t/μ(y)]; the loss's is −η of it.

    At ητ = 1 the mixture is μ, and what is in brackets 1/16 − L/2, 1/16 + L/2, −3/16.
    """
    rule = get_rule("nash_md", eta=2, tau=0.5)
    found = policy_gradient(Plays.exact(P, PI, MU), rule)
    ascent = [1 / 32 - 3 * L / 16, 1 / 64 + 5 * L / 32, -3 / 64 + L / 32]
    assert found == pytest.approx(-2 * np.array(ascent))


def test_spo():
    """Swamy et al. 2024: the win rate against the other draws as reward; 0, 1/12, −1/12 over ½."""
    rule = get_rule("mwu", eta=12)
    assert policy_gradient(THREE, rule) == pytest.approx(np.array([0, -1 / 3, 1 / 3]))
    # Off policy Σ (π_θ/π_t)(log π_θ/π_t − η(G − ½) − 1)/K, π_θ/π_t = ½, 1, 2.
    expected = ((-L - 1) / 2 + (-1 - 1) + 2 * (L + 1 - 1)) / 3
    assert published("mwu", "policy_gradient", eta=12) == pytest.approx(expected)


# What is another method for some value of a setting.


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize(
    ("rule", "same"),
    [
        (get_rule("rspo", eta=2, tau=0), get_rule("sppo", eta=2)),
        (get_rule("rspo", eta=2, tau=0, regularizer="js"), get_rule("sppo", eta=2)),
        (get_rule("inpo", eta=2, tau=0), get_rule("sppo", eta=2)),
        (get_rule("nash_md", eta=2, tau=0), get_rule("sppo", eta=2)),
        (get_rule("mpo", eta=2, tau=0.3), get_rule("mmd", eta=2, tau=0.3)),
        (get_rule("comal", eta=2, tau=0.3), get_rule("inpo", eta=2, tau=0.3)),
        (get_rule("mnpo", eta=2, tau=0.3, memory=1), get_rule("inpo", eta=2, tau=0.3)),
    ],
    ids=lambda rule: rule.name,
)
def test_the_same_loss(rule, same, fit):
    plays = Plays.sampled(P, PI, MU, logp_average=PI, logp_geometric=PI)
    fit = get_fit(fit)
    found, expected = (fit(plays, each(plays), THETA) for each in (rule, same))
    assert found == pytest.approx(expected, abs=1e-14)


def test_spin_is_alpha_spin_at_one():
    plays = Plays.with_data(PI, MU, data=1)
    found = published("alpha_spin", "logistic", plays, alpha=1)
    assert found == published("spin", "logistic", plays)


def test_inpo_without_tau_has_no_reference():
    """(Δlog π_θ/π_t − 1/(2η))², whatever μ."""
    for mu in (MU, THETA):
        plays = replace(THREE, own=replace(THREE.own, logp_ref=mu))
        plays = replace(plays, other=plays.own)
        found = published("inpo", "pairwise", plays, WINNER, eta=2, tau=0)
        assert found == pytest.approx(((-L - 1) ** 2 + (2 * L - 1) ** 2 + (-L - 1) ** 2) / 3)


# A stored batch: two prompts, and every rule × fit in plain loops.

BATCH = {
    "payoff": [
        [
            [0.5, 0.9, 0.3, 0.6],
            [0.1, 0.5, 0.8, 0.55],
            [0.7, 0.2, 0.5, 0.35],
            [0.4, 0.45, 0.65, 0.5],
        ],
        [
            [0.5, 0.25, 0.6, 1.0],
            [0.75, 0.5, 0.4, 0.5],
            [0.4, 0.6, 0.5, 0.15],
            [0.0, 0.5, 0.85, 0.5],
        ],
    ],
    "current": [[0.4, 0.3, 0.2, 0.1], [0.15, 0.25, 0.05, 0.55]],
    "ref": [[0.1, 0.35, 0.25, 0.3], [0.3, 0.2, 0.4, 0.1]],
    "theta": [[0.25, 0.25, 0.35, 0.15], [0.2, 0.3, 0.1, 0.4]],
    "average": [[0.3, 0.3, 0.3, 0.1], [0.25, 0.35, 0.15, 0.25]],
    "geometric": [[0.28, 0.27, 0.28, 0.17], [0.22, 0.32, 0.12, 0.34]],
    "previous": [[0.2, 0.3, 0.4, 0.1], [0.4, 0.1, 0.2, 0.3]],
    "data": [[0.1, 0.2, 0.3, 0.4], [0.3, 0.3, 0.3, 0.1]],
    "length": [[3.0, 7.0, 2.0, 5.0], [4.0, 1.0, 6.0, 2.0]],
}
K, ETA, TAU = 4, 0.8, 0.25
SLOPES = {  # f′ of u = π/μ, and of π for the entropy
    "reverse_kl": lambda u, p: log(u) + 1,
    "forward_kl": lambda u, p: -1 / u,
    "chi2": lambda u, p: u - 1,
    "js": lambda u, p: 0.5 * log(2 * u / (1 + u)),
    "hellinger": lambda u, p: 0.5 * (1 - 1 / math.sqrt(u)),
    "alpha:3": lambda u, p: (u**2 - 1) / 2,
    "entropy": lambda u, p: log(p) + 1,
}
GENERATORS = {  # f(u)
    "reverse_kl": lambda u: u * log(u),
    "forward_kl": lambda u: -log(u),
    "chi2": lambda u: 0.5 * (u - 1) ** 2,
    "js": lambda u: 0.5 * u * log(u) - 0.5 * (1 + u) * log((1 + u) / 2),
    "hellinger": lambda u: 0.5 * (math.sqrt(u) - 1) ** 2,
    "alpha:3": lambda u: (u**3 - 3 * u + 2) / 6,
}


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


class Prompt:
    """One prompt of the batch: all actions, or samples that meet themselves or do not."""

    def __init__(self, b: int, mode: str) -> None:
        self.mode = mode
        for name, values in BATCH.items():
            setattr(self, name, values[b])
        self.factor = K / (K - 1) if mode == "exclude" else 1.0  # of what is centered on the batch
        self.drawn = self.current if mode == "exact" else [1 / K] * K

    def weights(self, density: list[float]) -> list[float]:
        """What stands for a policy: itself, or self-normalized importance weights."""
        if self.mode != "exact":
            density = [d / q for d, q in zip(density, self.current, strict=True)]
        return [d / sum(density) for d in density]

    def win_rates(self, weights: list[float]) -> list[float]:
        if self.mode == "exclude":
            return [
                sum(weights[j] * self.payoff[i][j] for j in range(K) if j != i) / (1 - weights[i])
                for i in range(K)
            ]
        return [sum(weights[j] * self.payoff[i][j] for j in range(K)) for i in range(K)]

    def mixture(self, share: float, of: list[float]) -> list[float]:
        """∝ of^(1−share) μ^share; normalized where all actions are there."""
        mixed = [p ** (1 - share) * q**share for p, q in zip(of, self.ref, strict=True)]
        return [m / sum(mixed) for m in mixed] if self.mode == "exact" else mixed

    def scores(self) -> list[float]:
        """Bradley–Terry: Σ_j w_j(P_ij − σ(s_i − s_j)) = 0, mean 0."""

        def missing(s):
            total = [
                sum(self.drawn[j] * (self.payoff[i][j] - sigmoid(s[i] - s[j])) for j in range(K))
                for i in range(K)
            ]
            total[0] = sum(w * x for w, x in zip(self.drawn, s, strict=True))  # the others imply it
            return total

        found = root(missing, np.zeros(K), tol=1e-14)
        assert max(map(abs, missing(found.x))) < 1e-13
        return [self.factor * x for x in found.x]

    def step(self, to: dict) -> list[float]:
        """log π_{t+1}: (1/η)(log π − anchor) + τf′(π/μ) = G − ν with Σ π = 1, or over the K draws.

        On samples what pulls towards μ takes `factor`.
        """
        c, eta = self.factor, to["eta"]
        base = [d / q for d, q in zip(self.drawn, self.current, strict=True)]
        goal = [g + (c - 1) * d for g, d in zip(to["G"], to["drift"], strict=True)]

        def log_density(i: int, nu: float) -> float:
            current = log(self.current[i])
            anchor = current + c * (to["anchor"][i] - current)

            def lacking(x: float) -> float:
                return (
                    (0.0 if eta == math.inf else (x - anchor) / eta)
                    + c * to["tau"] * self.slope(to["R"], i, exp(x))
                    - (goal[i] - nu)
                )

            for end in (-60.0, 60.0):  # f′ may be bounded, or may reach G − ν beyond
                if lacking(end) * end < 0:
                    return end
            return brentq(lacking, -60.0, 60.0, xtol=1e-15, rtol=1e-15)

        def excess(nu: float) -> float:
            return sum(w * exp(log_density(i, nu)) for i, w in enumerate(base)) - 1

        nu = brentq(excess, -6.0, 6.0, xtol=1e-15, rtol=1e-15)
        return [log_density(i, nu) for i in range(K)]

    def slope(self, regularizer: dict[str, float], i: int, p: float) -> float:
        return sum(c * SLOPES[name](p / self.ref[i], p) for name, c in regularizer.items())

    def pull(self, regularizer: dict[str, float], i: int, p: float) -> float:
        """f′(π/μ), or log π for the entropy, with the constants that make it 0 at 1."""
        at_one = sum(c * SLOPES[name](1.0, 1.0) for name, c in regularizer.items())
        return self.slope(regularizer, i, p) - at_one


def where_to(name: str, prompt: Prompt, R: dict[str, float]) -> dict:
    """G, its drift, the anchor, η and the implicit R of a rule, from the papers."""
    p, share = prompt, ETA * TAU
    to = {
        "anchor": [log(x) for x in p.current],
        "drift": [0.0] * K,
        "eta": ETA,
        "R": {},
        "tau": 0.0,
    }
    opponent = p.drawn
    if name in ("gmmd", "mmd", "mpo", "optimistic_gmmd", "egpo"):
        to |= {"R": R, "tau": TAU}
    if name in ("smooth_fictitious_play", "ipo_md", "dpo"):
        to |= {"R": R, "tau": TAU, "eta": math.inf}
    if name in ("omd", "inpo", "comal"):
        to["drift"] = [-TAU * p.pull(R, i, p.current[i]) for i in range(K)]
    if name in ("nash_md", "ipo_md"):
        share = share if name == "nash_md" else 1 - 0.875
        opponent = p.weights(p.mixture(share, p.current))
    if name in ("mnpo", "smooth_fictitious_play"):
        opponent = p.weights(p.average)
    if name.startswith("optimistic"):
        previous = p.weights(p.previous)
        opponent = [2 * w - v for w, v in zip(p.drawn, previous, strict=True)]
    if name == "nash_md":
        to["anchor"] = [log(x) for x in p.mixture(share, p.current)]
    if name == "mnpo":
        to["anchor"] = [log(x) for x in p.mixture(share, p.geometric)]
    if name == "egpo":
        half = p.step(to | {"G": p.win_rates(p.drawn)})
        opponent = p.weights([exp(x) for x in half])
    win_rates = p.scores() if name.endswith("dpo") else p.win_rates(opponent)
    return to | {"G": [g + d for g, d in zip(win_rates, to["drift"], strict=True)]}


def pair_loss(prompt: Prompt, to: dict, fit: str, options: dict) -> float:
    """Pairs: r_θ against who is better."""
    p, beta = prompt, 0.0 if to["eta"] == math.inf else 1 / to["eta"]
    signal, reward = options.get("signal", "win_rate"), []
    for i in range(K):
        implied = to["tau"] * p.pull(to["R"], i, p.theta[i])
        implied += beta * (log(p.theta[i]) - to["anchor"][i]) - to["drift"][i]
        reward.append(implied / p.length[i] if options.get("length_normalized") else implied)
    total = 0.0
    for i in range(K):
        for j in range(K):
            if i == j or (p.mode != "exact" and i > j):
                continue
            weight = p.drawn[i] * p.drawn[j] if p.mode == "exact" else 2 / (K * (K - 1))
            h = reward[i] - reward[j]
            gap = (to["G"][i] - to["drift"][i] - to["G"][j] + to["drift"][j]) / p.factor
            wins = p.payoff[i][j]
            if signal == "winner":
                wins = 1.0 if wins > 0.5 else 0.5 if wins == 0.5 else 0.0
            if fit == "pairwise" and "error" in options:
                scale = 1 / (beta + to["tau"] * sum(to["R"].values()))
                loss = scale * (wins * max(0, 1 - h) + (1 - wins) * max(0, 1 + h))
            elif fit == "pairwise":
                scale = 1 / (beta + to["tau"] * sum(to["R"].values()))
                loss = scale**2 * (h - (gap if signal == "win_rate" else wins - 0.5)) ** 2
            else:
                label = sigmoid(gap) if signal == "win_rate" else wins
                margin = options.get("margin", 0.0)
                loss = -label * log(sigmoid(h - margin)) - (1 - label) * log(sigmoid(-h - margin))
            total += weight * loss
    return total


def response_loss(prompt: Prompt, to: dict, fit: str, options: dict) -> float:
    """One response at a time: regression, policy gradient and proximal."""
    p, total = prompt, 0.0
    target = p.step(to) if fit == "proximal" else None
    for i in range(K):
        theta, current, ref = p.theta[i], p.current[i], p.ref[i]
        if fit == "proximal":
            total += p.drawn[i] * (log(theta) - target[i]) ** 2
            continue
        off = log(theta) - to["anchor"][i] - to["eta"] * (to["G"][i] - 0.5)
        loss = off**2 if fit == "regression" else theta / current * (off - 1)
        lam = to["eta"] * to["tau"] * (2 if fit == "regression" else 1)
        for name, c in to["R"].items():
            if options.get("estimator") == "published":
                estimate = {
                    "reverse_kl": log(theta / ref) ** 2 / 2,  # its gradient is twice that of R
                    "forward_kl": ref / theta,
                    "chi2": theta / ref,
                    "hellinger": 0.5 * (math.sqrt(ref / theta) * 2 + log(theta / ref)),
                    "alpha:3": 0.5 * ((theta / ref) ** 2 / 2 - log(theta / ref)),
                }[name]
            else:
                at_one = SLOPES[name](1.0, 1.0)
                if name == "entropy":
                    value, ref = theta * log(theta), 1.0
                    estimate = value / current - at_one * (theta / current - 1)
                else:
                    estimate = ref / current * GENERATORS[name](theta / ref)
                    estimate -= at_one * (theta / current - 1)
            loss += lam * c * estimate
        total += p.drawn[i] * loss
    return total


ANY = [
    {"chi2": 1.0, "js": 0.5},
    {"forward_kl": 0.3, "reverse_kl": 0.7},
    {"hellinger": 2.0},
    {"entropy": 1.0},
]
PUBLISHED = [
    {"chi2": 0.2, "reverse_kl": 1.0},
    {"forward_kl": 1.0},
    {"hellinger": 1.0, "alpha:3": 0.1},
]
PAIR_OPTIONS = {
    "pairwise": [{}, WINNER, WINNER | {"error": "hinge"}, {"length_normalized": True}],
    "logistic": [{}, WINNER, {"margin": 0.4}, WINNER | {"length_normalized": True, "margin": 0.2}],
}
PREFERRED = {
    "pairwise": ("mwu", "gmmd", "mmd", "mpo", "omd", "inpo", "comal"),
    "logistic": ("dpo", "moving_dpo"),
}
DATA_RULES = ("spin", "alpha_spin")


def cases():
    for name, rule in RULES.items():
        if name in (*DATA_RULES, "fictitious_play"):
            continue
        only = not rule.regularized or rule.only_reverse_kl
        for fit in FITS:
            if fit in PAIR_OPTIONS:
                options = PAIR_OPTIONS[fit] + [{"signal": "preference"}] * (name in PREFERRED[fit])
            elif rule.eta == math.inf and fit != "proximal":
                continue
            else:
                options = [{}]
            for option in options:
                for regularizer in [{"reverse_kl": 1.0}] if only else ANY:
                    yield name, fit, option, regularizer
        if "gmmd" in name:
            for regularizer in PUBLISHED:
                for fit in ("regression", "policy_gradient"):
                    yield name, fit, {"estimator": "published"}, regularizer


def batch(mode: str) -> tuple[Plays, np.ndarray]:
    """The stored batch as Plays, and log π_θ."""
    logs = {
        name: np.log(values) for name, values in BATCH.items() if name not in ("payoff", "length")
    }
    known = {f"logp_{name}": logs[name] for name in ("average", "geometric", "previous")}
    known["length"] = np.array(BATCH["length"])
    payoff, current, ref = np.array(BATCH["payoff"]), logs["current"], logs["ref"]
    if mode == "exact":
        return Plays.exact(payoff, current, ref, **known), logs["theta"]
    return Plays.sampled(payoff, current, ref, mode, **known), logs["theta"]


@pytest.mark.parametrize(
    ("name", "fit", "options", "regularizer"),
    [pytest.param(*case, id="-".join(map(str, case))) for case in cases()],
)
def test_a_stored_batch_in_plain_loops(name, fit, options, regularizer):
    rule = get_rule(name, eta=None if RULES[name].eta == math.inf else ETA)
    if rule.regularized:
        spec = "+".join(f"{c}*{term}" for term, c in regularizer.items())
        rule = get_rule(rule, tau=TAU, regularizer=None if rule.only_reverse_kl else spec)
    by_hand = pair_loss if fit in PAIR_OPTIONS else response_loss
    for mode in ("exact", "exclude", "include"):
        plays, theta = batch(mode)
        found = get_fit(fit, **options)(plays, rule(plays), theta)
        prompts = [Prompt(b, mode) for b in range(2)]
        expected = [by_hand(p, where_to(name, p, regularizer), fit, options) for p in prompts]
        assert found == pytest.approx(expected, abs=1e-10), mode


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize("name", DATA_RULES)
def test_a_stored_batch_of_answers_in_plain_loops(name, sampled):
    """α-SPIN Eq. 6: every dataset response over every one of the opponent's."""
    plays, theta = batch("exact")
    alpha, rule = 1.0 if name == "spin" else 0.95, get_rule(name, eta=ETA)
    own = replace(plays.own, logp_data=np.log(BATCH["data"]))
    plays = Plays(None, own, own)
    if sampled:
        plays = Plays.with_data(plays.own.logp, plays.own.logp_ref, data=1)
    found = get_fit("logistic")(plays, rule(plays), theta)
    for b in range(2):
        p, expected = Prompt(b, "exact"), 0.0
        for i in range(K):
            for j in range(K):
                weight = p.data[i] * p.average[j]
                if sampled:
                    weight = 1 / (K - 1) if i == 0 and j > 0 else 0.0
                gap = log(p.theta[i] / p.theta[j])
                gap -= alpha * log(p.current[i] / p.current[j])
                gap -= (1 - alpha) * log(p.ref[i] / p.ref[j])
                expected -= weight * log(sigmoid(gap / ETA))
        assert found[b] == pytest.approx(expected, abs=1e-10)
