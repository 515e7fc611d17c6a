"""The bridge: what a fit of a softmax policy promises of the tabular step, exact and on samples."""

from __future__ import annotations

import itertools
from dataclasses import replace

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from games import InputError
from solvers import Measure, Plays, Update, UpdateRule, get_rule, parse, step
from solvers.arrays import normalize
from solvers.fits import FITS, Temperature, get_fit
from solvers.rules import RULES, log_partition
from tests.enumeration import draws, equilibrium, order, sampled_plays, zero
from tests.strategies import SPECS, random_game, random_policy, seeds

N, TAU = 3, 0.3
P, PI, MU, THETA = (
    random_game(3, N).payoff,
    random_policy(4, N),
    random_policy(5, N),
    random_policy(6, N),
)
DATA, AVERAGE = random_policy(7, N), random_policy(8, N)
LENGTH = np.array([3.0, 5.0, 4.0])
KNOWN = {
    "logp_average": AVERAGE,
    "logp_geometric": 0.5 * (PI + AVERAGE),
    "logp_previous": random_policy(9, N),
}


def to_torch(plays: Plays) -> Plays:
    """The same Plays with tensors."""

    def convert(a):
        return None if a is None else torch.tensor(np.array(a))

    known = {name: convert(a) for name, a in vars(plays.own).items() if name != "mirror"}
    measure = Measure(**known)
    return Plays(convert(plays.payoff), measure, measure, plays.diagonal)


def exact(logp=PI, logp_ref=MU, payoff=P) -> Plays:
    return Plays.exact(payoff, logp, logp_ref, **KNOWN, logp_data=DATA)


def rule_of(name: str, eta: float = 0.5, regularizer: str | None = None, tau: float = TAU):
    rule = get_rule(name, eta=None if RULES[name].eta == np.inf else eta)
    if rule.regularized:
        rule = get_rule(rule, tau=tau, regularizer=regularizer)
    return rule


def expected_loss(fit, rule, plays: Plays, y=None, probability=None):
    """logits (n,) -> the loss: of exact Plays, or its expectation over draws y (M, K)."""
    plays = to_torch(plays)
    update = rule(plays)
    items = fit.items(plays, update)
    weight = (
        items.weight if probability is None else torch.tensor(probability)[:, None] * items.weight
    )
    index = items.index if y is None else torch.tensor(y)[:, :, None]
    if y is not None:  # from positions among the draws to actions
        flat = items.index.reshape(len(y), -1)
        index = torch.take_along_dim(torch.tensor(y), flat, -1).reshape(items.index.shape)

    def loss(logits):
        logp = torch.log_softmax(logits, dim=-1)
        return (weight * fit.loss(logp[index], items.columns, items.regularizer)).sum()

    return loss


def gradient(loss, theta) -> np.ndarray:
    """(n,): in the logits, at log π_θ."""
    logits = torch.tensor(theta, requires_grad=True)
    return torch.autograd.grad(loss(logits), logits)[0].numpy()


def minimizer(loss, start) -> np.ndarray:
    """log π (n,) at the minimum, by Newton's method (the logits' common constant is left alone)."""
    logits = start
    for _ in range(30):
        hessian = torch.autograd.functional.hessian(loss, torch.tensor(logits)).numpy()
        move = np.linalg.pinv(hessian, rcond=1e-9) @ gradient(loss, logits)
        while loss(torch.tensor(logits - move)) > loss(torch.tensor(logits)) + 1e-14:
            move = move / 2
        logits = logits - move
        if np.abs(move).max() < 1e-15:
            break
    assert np.abs(gradient(loss, logits)).max() < 1e-13
    return normalize(logits)


def centered(values, logp=PI) -> np.ndarray:
    """π∘(v − E_π v)."""
    return np.exp(logp) * (values - np.exp(logp) @ values)


# What the minimizer is, on exact Plays.

TO_THE_STEP = [
    *(("proximal", rule, spec) for rule, spec in [("mwu", None), ("nash_md", None), ("omd", "js")]),
    *(
        ("proximal", "gmmd", spec)
        for spec in ("reverse_kl", "chi2", "js", "entropy+0.3*forward_kl")
    ),
    *(("pairwise", rule, None) for rule in ("mwu", "omd", "inpo", "nash_md")),
    *(("logistic", rule, None) for rule in ("spin", "alpha_spin")),
    *(("policy_gradient", rule, None) for rule in ("mwu", "omd", "nash_md")),
    *(("policy_gradient", "gmmd", spec) for spec in ("reverse_kl", "chi2", "0.3*entropy+js")),
]


@pytest.mark.parametrize(("fit", "name", "regularizer"), TO_THE_STEP)
def test_the_minimizer_is_the_tabular_step(fit, name, regularizer):
    rule = rule_of(name, regularizer=regularizer)
    found = minimizer(expected_loss(get_fit(fit), rule, exact()), PI)
    # Newton stops where the gradient is rounding; curvatures are above 0.01.
    assert found == pytest.approx(step(rule(exact()), exact()), abs=1e-11)


def test_the_proximal_fit_reaches_smooth_best_responses():
    rule = get_rule("smooth_fictitious_play", tau=TAU)
    found = minimizer(expected_loss(get_fit("proximal"), rule, exact()), PI)
    assert found == pytest.approx(step(rule(exact()), exact()), abs=1e-11)


# Pairs: the least that a loss can be is where all implied rewards differ as G does, and these
# determine the policy.

PAIRED = [name for name in RULES if name not in ("fictitious_play", "spin", "alpha_spin")]


def at_its_least(fit, plays: Plays, update: Update, logp) -> float:
    """The greatest miss of an implied gap, in units of its signal."""
    items = fit.items(plays, update)
    signal, h = (
        items.columns["signal"],
        fit._gap(logp[items.index], items.columns, items.regularizer),
    )
    h = 1 / (1 + np.exp(-h)) if fit.name == "logistic" else h
    return np.abs(h - signal).max()


@given(
    seed=seeds,
    n=st.integers(2, 5),
    name=st.sampled_from(PAIRED),
    spec=st.sampled_from(SPECS),
    eta=st.floats(0.05, 3),
    tau=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_the_step_is_what_pairs_are_fitted_to(seed, n, name, spec, eta, tau):
    """Of every rule and every divergence that it knows; with τ = 0, without."""
    rule = rule_of(name, eta)
    assume(tau > 0 or rule.eta != np.inf)
    if rule.regularized:
        regularizer = None if rule.only_reverse_kl else spec
        rule = get_rule(rule, tau=tau, regularizer=regularizer)
    assume(rule.regularization != "mixture" or rule.share(eta) <= 1)
    payoff = random_game(seed, n).payoff
    logp, ref, average, previous = (random_policy(seed + i, n) for i in range(1, 5))
    known = {"logp_average": average, "logp_geometric": 0.5 * (logp + average)}
    plays = Plays.exact(payoff, logp, ref, logp_previous=previous, **known)
    update = rule(plays)
    target = step(update, plays)
    assume(np.isfinite(target).all())  # what has left the simplex's interior is no minimizer
    # The roots' errors of some 1e-15, steepened by φ′ ≤ e^20 at worst and by ρ below 100.
    steep = (
        1.0
        if update.regularizer is None
        else np.abs(update.tau * update.regularizer.slope_derivative(target - ref)).max()
    )
    for fit in (get_fit("pairwise"), get_fit("logistic")):
        assert at_its_least(fit, plays, update, target) < 1e-11 * (1 + steep + 1 / eta)


@given(
    seed=seeds,
    n=st.integers(2, 5),
    spec=st.sampled_from(SPECS),
    name=st.sampled_from(["dpo", "moving_dpo"]),
)
def test_preferences_lead_logistic_pairs_to_the_step_of_dpo(seed, n, spec, name):
    """There the gradient of the expected loss is zero, by the equations of Bradley–Terry scores."""
    payoff = 0.1 + 0.8 * random_game(seed, n).payoff
    logp, ref = random_policy(seed + 1, n), random_policy(seed + 2, n)
    rule = rule_of(name, 1.0, spec if name == "dpo" else None, tau=1.0)
    plays = Plays.exact(payoff, logp, ref)
    target = step(rule(plays), plays)
    assume(np.isfinite(target).all())
    fit = get_fit("logistic", signal="preference")
    items = fit.items(plays, rule(plays))
    missing = items.columns["signal"] - 1 / (
        1 + np.exp(-fit._gap(target[items.index], items.columns, items.regularizer))
    )
    i, j = items.index.T
    total = np.bincount(i, items.weight * missing, n) - np.bincount(j, items.weight * missing, n)
    assert total == pytest.approx(0, abs=1e-10)


TO_THE_STEP_BY_PAIRS = [
    ("pairwise", {}, "gmmd", "chi2"),
    ("pairwise", {}, "dpo", "2*js"),
    ("pairwise", {"signal": "preference"}, "gmmd", "reverse_kl"),
    ("pairwise", {"signal": "preference"}, "mpo", None),
    ("logistic", {}, "gmmd", "js"),
    ("logistic", {}, "inpo", None),
    ("logistic", {"signal": "preference"}, "dpo", "reverse_kl+chi2"),
    ("logistic", {"signal": "preference"}, "moving_dpo", None),
]


@pytest.mark.parametrize(("fit", "options", "name", "regularizer"), TO_THE_STEP_BY_PAIRS)
def test_training_on_pairs_ends_at_the_step(fit, options, name, regularizer):
    rule = rule_of(name, regularizer=regularizer)
    target = step(rule(exact()), exact())
    start = normalize(0.8 * target + 0.2 * PI)
    found = minimizer(expected_loss(get_fit(fit, **options), rule, exact()), start)
    # Newton stops where the gradient is rounding; curvatures are above 0.01.
    assert found == pytest.approx(target, abs=1e-10)


@pytest.mark.parametrize("name", ["mwu", "omd", "nash_md"])
def test_regression_on_the_log_partition_is_the_tabular_step(name):
    """SPPO's exact target (RSPO Eq. 3)."""
    rule = replace(rule_of(name), baseline=log_partition)
    found = minimizer(expected_loss(get_fit("regression"), rule, exact()), PI)
    assert found == pytest.approx(step(rule(exact()), exact()), abs=1e-11)


def expected_direction(plays, direction, anchor, eta):
    """A baseline: E_{π_t} of all that the regression pulls towards, R included."""
    pull = TAU * (plays.own.logp - plays.own.logp_ref)
    weights = plays.own.weights
    return (weights * (direction - pull)).sum(-1)[..., None]


REGRESSIONS = [
    # Printed with B = ½: E_{π_t} G = ½ for preferences against π_t, and the rest is second order.
    ("mwu", None, "importance", {}, MU, PI, 3),
    # A drift, or a square, that is not centered leaves a constant of first order in the target ...
    ("omd", "reverse_kl", "importance", {}, MU, PI, 2),
    ("gmmd", "reverse_kl", "published", {}, MU, PI, 2),
    # ... unless π_t = μ, or it is in the baseline.
    ("gmmd", "reverse_kl", "published", {}, PI, PI, 3),
    ("gmmd", "reverse_kl", "published", {"baseline": expected_direction}, MU, PI, 3),
    # The true divergence, λ = 2ητ.
    ("gmmd", "reverse_kl", "importance", {}, MU, PI, 2),
    ("gmmd", "chi2", "importance", {}, MU, PI, 2),
    ("gmmd", "0.5*js+forward_kl", "importance", {}, MU, PI, 2),
]


@pytest.mark.parametrize(
    ("name", "regularizer", "estimator", "changes", "mu", "pi", "expected"), REGRESSIONS
)
def test_regression_is_the_step_to_some_order(
    name, regularizer, estimator, changes, mu, pi, expected
):
    plays, etas, error = exact(pi, mu), [0.08, 0.04, 0.02, 0.01], []
    for eta in etas:
        rule = replace(rule_of(name, eta, regularizer), **changes)
        found = minimizer(
            expected_loss(get_fit("regression", estimator=estimator), rule, plays), pi
        )
        error.append(np.abs(found - step(rule(plays), plays)).max())
    # The next order in η is some percent of the first at these steps.
    assert order(etas, error) == pytest.approx(expected, abs=0.1)


# The gradient at π_θ = π_t, on exact Plays.


@pytest.mark.parametrize("estimator", ["importance", "published"])
@pytest.mark.parametrize(
    ("name", "regularizer"),
    [
        ("mwu", None),
        ("omd", "chi2"),
        ("nash_md", None),
        ("gmmd", "reverse_kl"),
        ("gmmd", "chi2"),
        ("gmmd", "entropy+hellinger"),
        ("gmmd", "0.1*forward_kl+0.5*reverse_kl"),
    ],
)
def test_gradients_point_where_the_rule_does(name, regularizer, estimator):
    """−2η π∘(G − τ∂R(π_t, μ)), centered; Nash-MD's anchor pulls besides."""
    rule = rule_of(name, regularizer=regularizer)
    update = rule(exact())
    pull = update.direction + (update.anchor - PI) / update.eta
    if update.regularizer is not None:
        pull = pull - TAU * update.regularizer.gradient(PI, MU)
    expected = -2 * update.eta * centered(pull)
    for name, size in [("regression", 1), ("policy_gradient", 0.5)]:
        loss = expected_loss(get_fit(name, estimator=estimator), rule, exact())
        assert gradient(loss, PI) == pytest.approx(size * expected, abs=1e-12)
    if update.regularizer is None:
        # Both of all pairs: 2E(h_ij − s_ij)(∇log π_i − ∇log π_j) is twice the covariance.
        loss = expected_loss(get_fit("pairwise"), rule, exact())
        assert gradient(loss, PI) == pytest.approx(2 * expected, abs=1e-12)


@pytest.mark.parametrize("regularizer", ["reverse_kl", "chi2", "entropy+js"])
def test_the_proximal_gradient_points_along_the_step(regularizer):
    rule = rule_of("gmmd", regularizer=regularizer)
    moved = step(rule(exact()), exact()) - PI
    loss = expected_loss(get_fit("proximal"), rule, exact())
    assert gradient(loss, PI) == pytest.approx(-2 * centered(moved), abs=1e-12)


RHO = ["reverse_kl", "entropy", "chi2", "2*js", "0.1*forward_kl+hellinger"]


@pytest.mark.parametrize("regularizer", RHO)
@pytest.mark.parametrize("name", ["gmmd", "ipo_md"])
def test_pairs_point_along_the_step_by_the_slope_of_the_reward(name, regularizer):
    rule = rule_of(name, regularizer=regularizer)
    update = rule(exact())
    beta, r = 1 / update.eta, update.regularizer
    rho = beta + TAU * r.slope_derivative(PI - MU)
    v = update.direction - TAU * r.gradient(PI, MU)  # the anchor is π_t, or there is none
    v = v - np.exp(PI) @ v
    scale = 1 / (beta + TAU * sum(r.parts.values()))
    loss = expected_loss(get_fit("pairwise"), rule, exact())
    assert gradient(loss, PI) == pytest.approx(-4 * scale**2 * centered(rho * v), abs=1e-12)

    label = 1 / (1 + np.exp(-(update.direction[:, None] - update.direction)))
    implied = TAU * r.gradient(PI, MU)
    h = implied[:, None] - implied
    missing = (label - 1 / (1 + np.exp(-h))) @ np.exp(PI)
    loss = expected_loss(get_fit("logistic"), rule, exact())
    assert gradient(loss, PI) == pytest.approx(-2 * centered(rho * missing), abs=1e-12)


@pytest.mark.parametrize("regularizer", SPECS)
def test_no_slope_is_lost_at_the_reference(regularizer):
    """All runs start at π_θ = π_t = μ: there log π_θ/μ is exactly 0."""
    rule = rule_of("dpo", regularizer=regularizer)
    plays = exact(MU, MU)
    r, g = rule.regularizer, rule(plays).direction
    scale = 1 / (TAU * sum(r.parts.values()))
    v = g - TAU * r.gradient(MU, MU)
    rho = TAU * r.slope_derivative(np.zeros(N))
    loss = expected_loss(get_fit("pairwise"), rule, plays)
    expected = -4 * scale**2 * centered(rho * (v - np.exp(MU) @ v), MU)
    assert gradient(loss, MU) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["spin", "alpha_spin"])
def test_the_logistic_gradient_is_data_minus_opponent_at_the_anchor(name):
    rule = rule_of(name, eta=0.5)
    loss = expected_loss(get_fit("logistic"), rule, exact())
    at_anchor = gradient(loss, rule(exact()).anchor)
    # Half of β = 1/η: the slope of −log σ at 0.
    assert at_anchor == pytest.approx(-(np.exp(DATA) - np.exp(AVERAGE)), abs=1e-12)


# Samples: by enumeration of all draws.

UNBIASED = [
    ("regression", {}, "mwu", None),
    ("regression", {}, "omd", "chi2"),
    ("regression", {}, "gmmd", "0.1*forward_kl+0.5*reverse_kl"),
    ("regression", {}, "gmmd", "js+0.2*entropy"),
    ("regression", {"estimator": "published"}, "gmmd", "reverse_kl+0.1*chi2"),
    ("policy_gradient", {}, "omd", "reverse_kl"),
    ("policy_gradient", {}, "gmmd", "chi2"),
    ("policy_gradient", {"estimator": "published"}, "gmmd", "forward_kl"),
    ("pairwise", {}, "mwu", None),
    ("pairwise", {}, "omd", "chi2"),
    ("pairwise", {"signal": "preference"}, "inpo", None),
    ("pairwise", {}, "gmmd", "chi2"),
    ("pairwise", {"signal": "preference"}, "gmmd", "2*js"),
    ("logistic", {"signal": "preference"}, "dpo", "reverse_kl+chi2"),
    ("logistic", {"signal": "preference"}, "moving_dpo", None),
]


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("fit", "options", "name", "regularizer"), UNBIASED)
def test_samples_give_the_exact_gradient_in_expectation(fit, options, name, regularizer, k):
    """Anywhere, not at π_θ = π_t only."""
    fit, rule = get_fit(fit, **options), rule_of(name, regularizer=regularizer)
    plays, y, probability = sampled_plays(P, PI, MU, k)
    sampled = gradient(expected_loss(fit, rule, plays, y, probability), THETA)
    assert sampled == pytest.approx(gradient(expected_loss(fit, rule, exact()), THETA), abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_pairs_of_win_rates_with_own_entries_are_unbiased_as_they_are(k):
    fit, rule = get_fit("pairwise"), rule_of("omd")
    plays, y, probability = sampled_plays(P, PI, MU, k, "include")
    sampled = gradient(expected_loss(fit, rule, plays, y, probability), THETA)
    assert sampled == pytest.approx(gradient(expected_loss(fit, rule, exact()), THETA), abs=1e-12)


@pytest.mark.parametrize("diagonal", ["exclude", "include"])
@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("fit", ["pairwise", "logistic"])
def test_a_few_samples_tell_bradley_terry_scores(fit, k, diagonal):
    """Where P is a Bradley–Terry model, whose scores any two responses show."""
    reward = np.array([0.0, 1.0, -0.5])
    payoff = 1 / (1 + np.exp(-(reward[:, None] - reward)))
    rule, fit = rule_of("dpo", regularizer="reverse_kl"), get_fit(fit)
    plays, y, probability = sampled_plays(payoff, PI, MU, k, diagonal)
    sampled = gradient(expected_loss(fit, rule, plays, y, probability), THETA)
    expected = gradient(expected_loss(fit, rule, exact(payoff=payoff)), THETA)
    assert sampled == pytest.approx(expected, abs=1e-12)


# Samples of something else than π_t.


def proposed(proposal=DATA, **known) -> Plays:
    """Every action once, as from a uniform proposal: the importance weights are π_t exactly."""
    known = {"logp_proposal": 0 * proposal, **KNOWN, **known}
    return Plays.sampled(P, PI, MU, "include", **known)


@pytest.mark.parametrize(
    ("fit", "name"),
    [
        ("proximal", "gmmd"),
        ("pairwise", "gmmd"),
        ("pairwise", "nash_md"),
        ("logistic", "dpo"),
        ("regression", "mwu"),
    ],
)
def test_whatever_samples_are_drawn_from_the_minimizer_is_the_step(fit, name):
    rule = rule_of(name)
    if fit == "regression":
        rule = replace(rule, baseline=log_partition)
    plays = proposed()
    assert get_fit(fit).items(plays, rule(plays)).weight.std() == 0
    found = minimizer(expected_loss(get_fit(fit), rule, plays), PI)
    assert found == pytest.approx(step(rule(exact()), exact()), abs=1e-11)


def test_what_weighs_by_the_current_policy_refuses_other_samples():
    plays = proposed()
    for fit, rule in [
        (get_fit("policy_gradient"), rule_of("mwu")),
        (get_fit("regression"), rule_of("gmmd")),
        (get_fit("regression", estimator="published"), rule_of("gmmd")),
    ]:
        fit.check(rule)
        with pytest.raises(InputError, match="responses of the current policy"):
            fit.check(rule, proposal=True)
        with pytest.raises(InputError, match="responses of the current policy"):
            fit.items(plays, rule(plays))
    for fit, name in itertools.product(["proximal", "pairwise", "logistic"], ["gmmd", "ipo_md"]):
        get_fit(fit).check(rule_of(name), proposal=True)
    get_fit("regression").check(rule_of("omd"), proposal=True)
    direct = get_fit("regression", direct_forward_kl=True)
    direct.check(rule_of("gmmd", regularizer="forward_kl"), proposal=True)


def test_preferences_are_those_among_what_is_drawn():
    """IPO-MD: pairs of the mixture, whose mean preference is the win rate against the mixture."""
    pairs, rule = get_fit("pairwise", signal="preference"), rule_of("ipo_md")
    mixture = (1 - rule.share(np.inf)) * PI + rule.share(np.inf) * MU
    drawn = Plays.sampled(P, PI, MU, logp_proposal=mixture + 3.0)  # up to a constant
    pairs.items(drawn, rule(drawn))
    two = Plays.sampled(P[:2, :2], PI[:2], MU[:2], logp_proposal=DATA[:2])
    dpo = rule_of("dpo")  # of two responses the scores' gap is the same for all weights
    get_fit("logistic", signal="preference").items(two, dpo(two))
    for plays, other in [
        (drawn, rule_of("gmmd")),
        (Plays.sampled(P, PI, MU), rule),
        (exact(), rule),
    ]:
        with pytest.raises(InputError, match="signal=win_rate"):
            pairs.items(plays, other(plays))


@pytest.mark.parametrize(("data", "opponents"), [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("name", ["spin", "alpha_spin"])
def test_the_logistic_fit_is_unbiased_on_independent_answers(name, data, opponents):
    rule, fit = rule_of(name), get_fit("logistic")
    y = np.array(list(itertools.product(range(N), repeat=data + opponents)))
    probability = np.exp(DATA[y[:, :data]].sum(-1) + AVERAGE[y[:, data:]].sum(-1))
    plays = Plays.with_data(PI[y], MU[y], data)
    assert fit.items(plays, rule(plays)).index.shape == (len(y), data * opponents, 2)
    sampled = gradient(expected_loss(fit, rule, plays, y, probability), THETA)
    assert sampled == pytest.approx(gradient(expected_loss(fit, rule, exact()), THETA), abs=1e-12)


BIASED = [
    ("regression", replace(rule_of("mwu"), baseline=log_partition)),  # a batch-normalized target
    ("regression", rule_of("nash_md")),  # a self-normalized mixture of opponents
    ("proximal", rule_of("gmmd", regularizer="chi2")),
    ("logistic", rule_of("mwu", 4.0)),  # σ of an uncertain gap
]


@pytest.mark.parametrize(
    ("fit", "rule"), BIASED, ids=["log-partition", "mixture", "proximal", "logistic"]
)
def test_the_biased_ones_are_biased_at_one_over_k(fit, rule):
    fit, sizes, bias = get_fit(fit), [8, 16, 32], []
    expected = gradient(expected_loss(fit, rule, exact()), PI)
    for k in sizes:
        plays, y, probability = sampled_plays(P, PI, MU, k)
        loss = expected_loss(fit, rule, plays, y, probability)
        bias.append(np.abs(gradient(loss, PI) - expected).max())
    # The next order, 1/K², is some percent at these K.
    assert order(sizes, bias) == pytest.approx(-1, abs=0.15)


def test_best_and_worst_stay_biased():
    """The more responses, the farther off: offered as published, and nothing claimed."""
    rule, fit = rule_of("mwu"), get_fit("regression", responses="best_worst")
    expected = gradient(expected_loss(get_fit("regression"), rule, exact()), PI)
    angles = []
    for k in (4, 16, 32):
        plays, y, probability = sampled_plays(P, PI, MU, k)
        found = gradient(expected_loss(fit, rule, plays, y, probability), PI)
        angles.append(found @ expected / np.linalg.norm(found) / np.linalg.norm(expected))
    assert angles[0] > angles[1] > angles[2]
    assert angles[2] < 0.97


def test_best_and_worst_is_the_published_loss():
    """½ Σ (Δ − η(P − ½))² + λ′ Σ D² over the best and the worst, λ′ = λ/2 (the RSPO code)."""
    rule = rule_of("gmmd", regularizer="reverse_kl")
    fit = get_fit("regression", estimator="published", responses="best_worst")
    y = np.array([[0, 2, 2, 1], [1, 1, 2, 0]])
    plays = Plays.sampled(P[y[:, :, None], y[:, None, :]], PI[y], MU[y], "include")
    wins = P[y[:, :, None], y[:, None, :]].mean(-1)
    expected = np.zeros(2)
    for ends in (wins.argmax(-1), wins.argmin(-1)):
        chosen = y[np.arange(2), ends]
        square = (THETA - PI)[chosen] - rule.eta * (wins[np.arange(2), ends] - 0.5)
        lam = fit.coefficients(rule.regularizer, rule.eta, rule.tau).parts["reverse_kl"]
        expected += 0.5 * square**2 + lam / 2 * (THETA - MU)[chosen] ** 2
    assert fit(plays, rule(plays), THETA[y]) == pytest.approx(expected, abs=1e-14)


# Which temperature a fit aims at.

AIMS = [
    ("regression", {}, "gmmd", "reverse_kl"),
    ("regression", {}, "gmmd", "chi2+0.2*js"),
    ("regression", {"estimator": "published"}, "gmmd", "reverse_kl"),
    ("regression", {"estimator": "published"}, "gmmd", "0.5*reverse_kl+0.1*forward_kl"),
    ("regression", {}, "omd", "hellinger"),
    ("policy_gradient", {}, "gmmd", "entropy"),
    ("pairwise", {}, "omd", "reverse_kl"),
    ("pairwise", {"signal": "preference"}, "omd", "reverse_kl"),
    ("pairwise", {}, "gmmd", "chi2+0.2*js"),
    ("pairwise", {"signal": "preference"}, "mmd", "reverse_kl"),
]


@pytest.mark.parametrize("diagonal", ["exclude", "include"])
@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize(("fit", "options", "name", "regularizer"), AIMS)
def test_the_temperature_that_is_printed_is_the_one_aimed_at(
    fit, options, name, regularizer, k, diagonal
):
    """There the gradient vanishes in expectation: τ, or τK/(K − 1) with own entries at B = ½."""
    fit, rule = get_fit(fit, **options), rule_of(name, regularizer=regularizer)
    lines = fit.temperatures(rule, rule.eta, samples=k, diagonal=diagonal)
    effective = "+".join(f"{line.effective!r}*{line.term}" for line in lines)
    rest = equilibrium(P, MU, effective, 1.0)
    plays, y, probability = sampled_plays(P, rest, MU, k, diagonal)
    slope = gradient(expected_loss(fit, rule, plays, y, probability), rest)
    assert slope == pytest.approx(0, abs=1e-11)  # the equilibrium is known to 1e-12 or so
    scale = lines[0].effective / lines[0].tau
    assert scale == pytest.approx(k / (k - 1) if diagonal == "include" and not fit.centered else 1)


@pytest.mark.parametrize("k", [2, 3, 5])
def test_own_entries_move_the_fixed_point_in_expectation(k):
    """Published SPPO and RSPO: the equilibrium of τK/(K − 1), found by looking for it."""
    rule, fit = rule_of("gmmd", regularizer="chi2"), get_fit("regression")

    def moved(logp):
        plays, y, probability = sampled_plays(P, logp, MU, k, "include")
        return gradient(expected_loss(fit, rule, plays, y, probability), logp) / np.exp(logp)

    rest = zero(moved, equilibrium(P, MU, "chi2", TAU))
    assert rest == pytest.approx(equilibrium(P, MU, "chi2", TAU * k / (k - 1)), abs=1e-11)


def test_lam_and_tau_name_the_same_game():
    """λR̂ of Eq. 6 with the published estimators, as in the paper's best run (Table 6)."""
    fit = get_fit("regression", estimator="published")
    regularizer, tau = fit.game(parse("0.1*forward_kl+0.5*reverse_kl"), lam=1.0, eta=5.0)
    assert (regularizer, tau) == (parse("0.1*forward_kl+1*reverse_kl"), 0.1)
    assert fit.coefficients(regularizer, 5.0, tau).parts == pytest.approx(
        {"forward_kl": 0.1, "reverse_kl": 0.5}
    )
    rule = get_rule("gmmd", eta=5.0, tau=tau, regularizer=regularizer)
    assert fit.temperatures(rule, 5.0, samples=5, diagonal="include") == [
        Temperature("forward_kl", pytest.approx(0.1), pytest.approx(0.01), pytest.approx(0.0125)),
        Temperature("reverse_kl", pytest.approx(0.5), pytest.approx(0.1), pytest.approx(0.125)),
    ]
    best_worst = replace(fit, responses="best_worst")
    assert [t.effective for t in best_worst.temperatures(rule, 5.0, samples=5)] == [None, None]
    assert get_fit("proximal").temperatures(rule, 5.0)[1] == Temperature(
        "reverse_kl", None, pytest.approx(0.1), pytest.approx(0.1)
    )
    assert fit.temperatures(get_rule("mwu"), 5.0) == []
    for options, exactly, sampled in [
        ({"fit": "pairwise"}, True, True),
        ({"fit": "pairwise", "signal": "winner"}, False, False),
        ({"fit": "pairwise", "length_normalized": True}, False, False),
        ({"fit": "logistic"}, True, False),
        ({"fit": "logistic", "signal": "preference"}, True, True),
        ({"fit": "logistic", "signal": "preference", "margin": 0.5}, False, False),
        ({"fit": "logistic", "signal": "winner"}, False, False),
    ]:
        pairs = get_fit(options.pop("fit"), **options)
        assert (pairs.temperatures(rule, 5.0)[0].effective is not None) == exactly
        assert (pairs.temperatures(rule, 5.0, samples=5)[0].effective is not None) == sampled
    normalized = replace(rule, baseline=log_partition)  # centers G on the batch
    assert fit.temperatures(normalized, 5.0, samples=5)[0].effective is None
    assert get_fit("proximal").temperatures(normalized, 5.0, samples=5)[0].effective is not None


def test_direct_forward_kl_leaves_its_term_to_the_rows_from_the_reference():
    rule = rule_of("gmmd", regularizer="forward_kl+reverse_kl")
    fit = get_fit("regression", estimator="published", direct_forward_kl=True)
    update = rule(exact())
    assert list(fit.items(exact(), update).regularizer.parts) == ["reverse_kl"]
    assert fit.reference_coefficient(update) == pytest.approx(2 * 0.5 * TAU)
    assert replace(fit, direct_forward_kl=False).reference_coefficient(update) is None
    assert fit.reference_coefficient(rule_of("gmmd", regularizer="chi2")(exact())) is None


# INPO.


def h(logp, update: Update, i, j):
    """INPO's h_t(π, y, y′), its η being 1/η here (above Eq. 6)."""
    share = update.eta * TAU
    return (
        (logp[i] - logp[j]) - share * (MU[i] - MU[j]) - (1 - share) * (PI[i] - PI[j])
    )  # fmt: skip


def test_the_pairwise_loss_is_eq_7():
    rule = rule_of("inpo")
    win_rate, expected = P @ np.exp(PI), 0.0
    for i, j in itertools.product(range(N), repeat=2):
        gap = h(THETA, rule(exact()), i, j) - rule.eta * (win_rate[i] - win_rate[j])
        expected += np.exp(PI[i] + PI[j]) * gap**2
    assert get_fit("pairwise")(exact(), rule(exact()), THETA) == pytest.approx(expected, abs=1e-13)


def test_preferences_and_labels_are_eq_7_up_to_a_constant():
    """Prop. 6: with the pair's own preference, and with 0/1 labels (Eq. 8) in every outcome."""
    rule, others = rule_of("inpo"), [THETA, random_policy(9, N), random_policy(10, N)]
    update = rule(exact())
    eq_7 = [get_fit("pairwise")(exact(), update, theta) for theta in others]
    pairs = get_fit("pairwise", signal="preference")
    soft = [pairs(exact(), update, theta) for theta in others]
    assert np.subtract(soft, eq_7) == pytest.approx(soft[0] - eq_7[0], abs=1e-13)

    # Eq. 8 as printed: (h(winner, loser) − 1/(2η))², over both outcomes of both orders.
    eq_8 = [
        sum(
            np.exp(PI[i] + PI[j])
            * (
                P[i, j] * (h(theta, update, i, j) - update.eta / 2) ** 2
                + P[j, i] * (h(theta, update, j, i) - update.eta / 2) ** 2
            )
            for i, j in itertools.product(range(N), repeat=2)
        )
        for theta in others
    ]
    assert np.subtract(eq_8, eq_7) == pytest.approx(eq_8[0] - eq_7[0], abs=1e-13)

    # The fit on tables of labels, each with its probability, is Eq. 8 itself (own pairs aside).
    upper = [(0, 1), (0, 2), (1, 2)]
    labelled = np.zeros(len(others))
    for wins in itertools.product([0.0, 1.0], repeat=3):
        table, probability = np.full((N, N), 0.5), 1.0
        for (i, j), win in zip(upper, wins, strict=True):
            table[i, j], table[j, i] = win, 1 - win
            probability *= P[i, j] if win else P[j, i]
        plays = Plays.exact(table, PI, MU)
        losses = [pairs(plays, rule(plays), theta) for theta in others]
        labelled += probability * np.array(losses)
    own = np.exp(2 * PI).sum() * rule.eta**2 / 4
    assert labelled == pytest.approx(np.array(eq_8) - own, abs=1e-13)


# A rule that the package has never seen.


def squared_win_rate(plays, weights):
    return plays.against(weights) ** 2


MINE = UpdateRule("mine", direction=squared_win_rate, eta=0.5)


@pytest.mark.parametrize("fit", ["regression", "proximal", "pairwise", "policy_gradient"])
def test_a_rule_of_ones_own_and_its_opposite(fit):
    opposite = replace(MINE, direction=lambda plays, weights: -squared_win_rate(plays, weights))
    fit = get_fit(fit)
    fit.check(MINE)
    one = gradient(expected_loss(fit, MINE, exact()), PI)
    assert np.abs(one).max() > 0.01
    other = gradient(expected_loss(fit, opposite, exact()), PI)
    assert other == pytest.approx(-one, abs=1e-12)


@pytest.mark.parametrize("fit", ["regression", "pairwise", "policy_gradient"])
def test_the_opposite_rule_flips_the_gradient_on_samples(fit):
    opposite = replace(MINE, direction=lambda plays, weights: -squared_win_rate(plays, weights))
    fit = get_fit(fit)
    y, _ = draws(N, 4)
    plays = Plays.sampled(P[y[:, :, None], y[:, None, :]], PI[y], MU[y])
    probability = np.ones(len(y))
    mean = [
        gradient(expected_loss(fit, replace(rule, baseline=no_baseline), plays, y, probability), PI)
        for rule in (MINE, opposite)
    ]
    assert mean[1] == pytest.approx(-mean[0], abs=1e-11)  # sums over 15 multisets, unweighted


def no_baseline(plays, direction, anchor, eta):
    return 0.0


# Rows.

CASES = [
    ("regression", {}, "gmmd"),
    ("regression", {"estimator": "published"}, "gmmd"),
    ("policy_gradient", {}, "gmmd"),
    ("proximal", {}, "gmmd"),
    ("regression", {}, "nash_md"),
    ("pairwise", {}, "omd"),
    ("pairwise", {"signal": "preference"}, "inpo"),
    ("logistic", {}, "alpha_spin"),
    ("pairwise", {}, "gmmd"),
    ("pairwise", {"signal": "winner", "error": "hinge"}, "dpo"),
    ("logistic", {"signal": "preference"}, "dpo"),
    ("logistic", {"signal": "winner", "length_normalized": True, "margin": 0.5}, "dpo"),
]


@pytest.mark.parametrize("sampled", [False, True], ids=["exact", "sampled"])
@pytest.mark.parametrize(("fit", "options", "name"), CASES)
def test_three_array_libraries_give_the_same_items_and_losses(fit, options, name, sampled):
    fit, rule = get_fit(fit, **options), rule_of(name, regularizer=None)
    plays = Plays.exact(P, PI, MU, **KNOWN, logp_data=DATA, length=LENGTH)
    if sampled:
        y = np.array([[0, 2, 2, 1], [1, 1, 2, 0]])
        plays = Plays.sampled(P[y[:, :, None], y[:, None, :]], PI[y], MU[y], length=LENGTH[y])
        if rule.needs_data:
            plays = Plays.with_data(PI[y], MU[y], 2)
    theta = np.log(
        np.random.default_rng(0).dirichlet(np.ones(4), size=plays.own.logp.shape)[..., 0]
    )
    items, loss = fit.items(plays, rule(plays)), fit(plays, rule(plays), theta)
    assert loss.shape == plays.own.logp.shape[:-1]
    for convert in (torch.tensor, array_api_strict.asarray):
        own = Measure(
            **{
                name: None if value is None else convert(np.array(value))
                for name, value in vars(plays.own).items()
                if name != "mirror"
            }
        )
        payoff = None if plays.payoff is None else convert(np.array(plays.payoff))
        other_plays = Plays(payoff, own, own, plays.diagonal)
        update = rule(other_plays)
        other = fit.items(other_plays, update)
        assert np.array_equal(np.asarray(other.index), items.index)
        assert other.columns.keys() == items.columns.keys()
        for column, values in items.columns.items():
            assert np.asarray(other.columns[column]) == pytest.approx(values, abs=1e-12)
        assert np.asarray(fit(other_plays, update, convert(theta))) == pytest.approx(
            loss, abs=1e-12
        )


@pytest.mark.parametrize(("fit", "options", "name"), CASES)
def test_a_loss_does_not_ask_which_rows_stand_beside_each_other(fit, options, name):
    """Rows of all prompts shuffled and cut into micro-batches give the same losses."""
    fit, rule = get_fit(fit, **options), rule_of(name)
    y = np.array([[0, 2, 2, 1], [1, 1, 2, 0], [2, 0, 1, 0]])
    plays = Plays.sampled(P[y[:, :, None], y[:, None, :]], PI[y], MU[y], length=LENGTH[y])
    if rule.needs_data:
        plays = Plays.with_data(PI[y], MU[y], 2)
    items = fit.items(plays, rule(plays))
    actions = np.take_along_axis(y[..., None], items.index.reshape(3, -1)[..., None], axis=1)
    logp_items = THETA[actions.reshape(items.index.shape)]
    whole = fit.loss(logp_items, items.columns, items.regularizer)
    assert fit(plays, rule(plays), THETA[y]) == pytest.approx((items.weight * whole).sum(-1))

    rows = logp_items.reshape(-1, logp_items.shape[-1])
    columns = {name: values.reshape(-1) for name, values in items.columns.items()}
    shuffled = np.random.default_rng(0).permutation(len(rows))
    for batch in np.array_split(shuffled, 4):
        part = fit.loss(
            rows[batch],
            {name: values[batch] for name, values in columns.items()},
            items.regularizer,
        )
        assert np.array_equal(part, whole.reshape(-1)[batch])


def test_samples_weigh_alike():
    plays, _, _ = sampled_plays(P, PI, MU, 4)
    for name, rows in [("regression", 4), ("pairwise", 6), ("logistic", 6)]:
        weight = get_fit(name).items(plays, rule_of("mwu")(plays)).weight
        assert weight == pytest.approx(np.full((len(plays.own.logp), rows), 1 / rows))
    plays = Plays.with_data(PI[None], MU[None], 2)
    weight = get_fit("logistic").items(plays, rule_of("spin")(plays)).weight
    assert weight == pytest.approx(np.full((1, 2), 1 / 2))


# Refusals.


# All fits serve all rules but these.
NO_BEST_RESPONSE = ("regression", "policy_gradient")
REFUSED = {
    "fictitious_play": tuple(FITS),  # a best response that nothing smooths
    "smooth_fictitious_play": NO_BEST_RESPONSE,
    "ipo_md": NO_BEST_RESPONSE,
    "dpo": NO_BEST_RESPONSE,
    # G is infinite on samples.
    "spin": ("regression", "proximal", "pairwise", "policy_gradient"),
    "alpha_spin": ("regression", "proximal", "pairwise", "policy_gradient"),
}


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("name", RULES)
def test_check_says_which_fits_serve_which_rules(fit, name):
    rule = rule_of(name)
    if fit in REFUSED.get(name, ()):
        with pytest.raises(InputError):
            get_fit(fit).check(rule)
    else:
        get_fit(fit).check(rule)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("regresion", {}, "did you mean 'regression'"),
        ("regression", {"estimators": "importance"}, "did you mean 'estimator'"),
        ("pairwise", {"estimator": "importance"}, "unknown option"),
        ("regression", {"estimator": "exact"}, "choose from importance, published"),
        ("regression", {"responses": "best"}, "choose from all, best_worst"),
        ("pairwise", {"signal": "labels"}, "choose from win_rate, preference, winner"),
        ("pairwise", {"error": "hinge"}, "signal=winner"),
        ("logistic", {"margin": "1.0"}, "a number that is at least 0"),
        ("logistic", {"margin": -1.0}, "a number that is at least 0"),
        ("logistic", {"length_normalized": "no"}, "true or false"),
    ],
)
def test_unknown_fits_and_options_are_refused(name, options, message):
    with pytest.raises(InputError, match=message):
        get_fit(name, **options)


def test_what_a_fit_cannot_do_is_refused():

    def one_is_favoured(plays, weights):
        return plays.against(weights) + np.array([1.0, 0.0, 0.0])

    favour = UpdateRule("favour", direction=one_is_favoured, eta=0.5)
    for fit, rule, message in [
        (get_fit("pairwise", signal="preference"), favour, "signal=win_rate"),
        (get_fit("pairwise", signal="preference"), rule_of("nash_md"), "signal=win_rate"),
        (get_fit("pairwise", signal="preference"), rule_of("dpo"), "the win rates of"),
        (get_fit("logistic", signal="preference"), rule_of("mwu"), "the Bradley-Terry scores of"),
        (get_fit("pairwise", signal="preference"), rule_of("mnpo"), "signal=win_rate"),
        (get_fit("logistic", length_normalized=True), rule_of("spin"), "are not known here"),
        (get_fit("regression"), replace(rule_of("mwu"), eta=np.inf), "best responses"),
        (get_fit("regression", estimator="published"), rule_of("gmmd", regularizer="js"), "js"),
    ]:
        with pytest.raises(InputError, match=message):
            fit.check(rule)
    with pytest.raises(InputError, match="among samples"):
        get_fit("regression", responses="best_worst").items(exact(), rule_of("mwu")(exact()))
    skew = Plays.exact(P - 0.5, PI, MU)
    with pytest.raises(InputError, match="payoffs between 0 and 1"):
        get_fit("logistic", signal="preference").items(skew, rule_of("mwu")(skew))
    get_fit("pairwise", signal="preference").check(replace(rule_of("mnpo"), memory=1))  # is INPO
    assert get_fit(get_fit("regression"), clip=5.0).clip == 5.0


def test_a_pair_that_counts_for_nothing_may_have_no_number():
    """Actions outside the support: log 0 on both sides."""
    logp = np.log(np.array([0.5, 0.5, 1e-300])) + np.array([0, 0, -np.inf])
    plays, rule = Plays.exact(P, logp, logp), rule_of("mwu")
    with np.errstate(invalid="ignore"):
        loss = get_fit("pairwise")(plays, rule(plays), logp)
    assert loss == pytest.approx(0.5 * (0.5 * 0.5 * (P[0, 1] - P[1, 0])) ** 2)


def test_fits_by_name_class_object_and_import_path(tmp_path, monkeypatch):
    (tmp_path / "user_fits.py").write_text(
        "from dataclasses import dataclass\n"
        "from solvers.fits import Proximal\n\n"
        "@dataclass(frozen=True)\n"
        "class Scaled(Proximal):\n"
        "    name = 'scaled'\n"
        "    scale: float = 1.0\n\n"
        "twice = Scaled(2.0)\n"
        "number = 3\n"
        "plain = dict\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert get_fit("user_fits:Scaled").scale == 1.0
    assert get_fit("user_fits:twice").scale == 2.0
    assert get_fit("user_fits:twice", scale=3.0).scale == 3.0
    assert get_fit(FITS["pairwise"], signal="winner") == get_fit("pairwise", signal="winner")
    for name, options, hint in [
        ("user_fits:number", {}, "is a int, not a Fit"),
        ("user_fits:plain", {}, "not a Fit"),
        ("user_fits:Scaled", {"scal": 1.0}, "did you mean 'scale'"),
        ("proximl", {}, "did you mean 'proximal'"),
    ]:
        with pytest.raises(InputError, match=hint):
            get_fit(name, **options)
