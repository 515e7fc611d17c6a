"""Divergences: definitions, calculus, optimality certificates, closed against generic forms."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad

from games import InputError
from solvers import divergences as d
from solvers.divergences import parse
from tests.strategies import KERNELS, SPECS, divergences, random_policy, seeds, sizes, temperatures

N = 5
LOGP, MU = random_policy(0, N), random_policy(1, N)
P, Q = np.exp(LOGP), np.exp(MU)
MIDDLE = (P + Q) / 2

# design: every divergence by its textbook formula, in probabilities.
TEXTBOOK = {
    "reverse_kl": np.sum(P * np.log(P / Q)),
    "forward_kl": np.sum(Q * np.log(Q / P)),
    "chi2": 0.5 * np.sum((P - Q) ** 2 / Q),
    "js": 0.5 * np.sum(P * np.log(P / MIDDLE)) + 0.5 * np.sum(Q * np.log(Q / MIDDLE)),
    "hellinger": 0.5 * np.sum((np.sqrt(P) - np.sqrt(Q)) ** 2),
    "alpha:3": np.sum(Q * ((P / Q) ** 3 - 3 * P / Q + 2)) / 6,
    "entropy": np.sum(P * np.log(P)),
}


@pytest.mark.parametrize("spec", TEXTBOOK)
def test_value_is_the_textbook_formula(spec):
    # Five terms of order one: a few units in the last place.
    assert parse(spec).value(LOGP, MU) == pytest.approx(TEXTBOOK[spec], abs=1e-14)


@pytest.mark.parametrize(
    ("one", "other"), [("alpha:2", "chi2"), ("alpha:0.5", "4*hellinger"), ("2*js", "js+js")]
)
def test_known_identities(one, other):
    one, other = parse(one), parse(other)
    assert one.value(LOGP, MU) == pytest.approx(other.value(LOGP, MU), abs=1e-14)
    assert one.gradient(LOGP, MU) == pytest.approx(other.gradient(LOGP, MU), abs=1e-13)


@pytest.mark.parametrize("spec", SPECS)
def test_gradient_is_the_derivative_of_the_value(spec):
    regularizer = parse(spec)
    logits = torch.tensor(LOGP, dtype=torch.float64, requires_grad=True)
    regularizer.value(logits, torch.tensor(MU)).backward()
    assert logits.grad is not None
    # d/dlogp = p d/dp on unnormalized measures; both are sums of a few terms of order one.
    assert logits.grad.numpy() == pytest.approx(P * regularizer.gradient(LOGP, MU), abs=1e-12)


@pytest.mark.parametrize("spec", KERNELS)
def test_kernel_calculus(spec):
    kernel = parse(spec).terms[0][1]
    r = np.linspace(-4, 4, 33)
    step = 1e-5  # central differences: error ~ step²·f‴ plus eps/step, below 1e-8 for these f
    slope = (kernel.f(r + step) - kernel.f(r - step)) / (2 * step) / np.exp(r)
    assert kernel.slope(r) == pytest.approx(slope, rel=1e-7, abs=1e-7)
    bend = (kernel.slope(r + step) - kernel.slope(r - step)) / (2 * step)
    assert kernel.slope_derivative(r) == pytest.approx(bend, rel=1e-7, abs=1e-7)
    assert kernel.inverse(kernel.slope(r)) == pytest.approx(r, abs=1e-9)  # js saturates at e⁴
    assert kernel.f(np.zeros(1)) == pytest.approx(0, abs=1e-16)
    with np.errstate(all="ignore"):
        assert kernel.slope(np.array(-np.inf)) == kernel.floor
        assert kernel.slope(np.array(np.inf)) == pytest.approx(kernel.ceiling)


@given(divergences, seeds, sizes, temperatures)
def test_best_response_is_optimal(regularizer, seed, n, tau):
    """KKT: τ∂R − g is constant where π > 0 and no smaller where π = 0."""
    mu, g = random_policy(seed, n), np.random.default_rng(seed).normal(size=n)
    logp = regularizer.best_response(g, mu, tau)
    assert np.exp(logp).sum() == pytest.approx(1, abs=1e-14)
    pull = tau * regularizer.gradient(logp, mu) - g
    inside = logp > -np.inf
    # r = log π − log μ has an error of some ulp of |log μ| ≤ 20, which φ′ magnifies; next to a
    # ceiling the slope is a difference of nearly equal numbers, which costs α = −1 another digit.
    steep = tau * np.max(regularizer.slope_derivative((logp - mu)[inside]) + 1)
    assert np.ptp(pull[inside]) <= 1e-12 * (1 + np.abs(pull[inside]).max() + steep)
    assert np.all(pull[~inside] >= pull[inside].max() - 1e-12)


@given(divergences, seeds, sizes, temperatures)
def test_conjugate_is_the_maximum(regularizer, seed, n, tau):
    rng = np.random.default_rng(seed)
    mu, g = random_policy(seed, n), rng.normal(size=n)
    best = regularizer.conjugate(g, mu, tau)
    others = np.log(rng.dirichlet(np.ones(n), size=50) + 1e-300)
    values = np.exp(others) @ g - tau * regularizer.value(others, mu)
    assert best >= values.max() - 1e-12 * (1 + abs(best))


@given(divergences, seeds, sizes, temperatures, st.floats(0.05, 20))
def test_prox_is_optimal(regularizer, seed, n, tau, eta):
    rng = np.random.default_rng(seed)
    mu, anchor, g = random_policy(seed, n), random_policy(seed + 1, n), rng.normal(size=n)
    logp = regularizer.prox(g, anchor, mu, eta, tau)
    balance = eta * g - (logp - anchor) - eta * tau * regularizer.gradient(logp, mu)
    scale = 1 + np.abs(eta * tau * regularizer.gradient(logp, mu)).max() + np.abs(anchor).max()
    assert np.ptp(balance) <= 1e-12 * scale


@pytest.mark.parametrize("spec", ["reverse_kl", "0.3*reverse_kl"])
def test_reverse_kl_closed_form_is_the_generic_answer(spec):
    regularizer = parse(spec)
    g = np.random.default_rng(3).normal(size=(40, N))
    generic = regularizer._argmax_by_root(g, np.broadcast_to(MU, g.shape))
    # The root is found to 4 ulp of ν, here of order one.
    assert regularizer.best_response(g, MU, 1.0) == pytest.approx(generic, abs=1e-13)


@pytest.mark.parametrize("other", ["forward_kl", "chi2"])
@pytest.mark.parametrize("weight", [1e-6, 0.1, 1.0, 1e4])
def test_wright_omega_forms_are_the_generic_root(other, weight):
    regularizer = parse(f"0.7*reverse_kl+{weight}*{other}")
    slope = np.linspace(-300, 300, 601)
    closed, generic = regularizer.inverse_slope(slope), regularizer.inverse_slope_by_root(slope)
    assert closed == pytest.approx(generic, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("spec", KERNELS)
def test_inverse_formulas_are_the_generic_root(spec):
    regularizer = parse(spec)
    r = np.linspace(-6, 6, 49)
    slope = regularizer.slope(r)
    generic = regularizer.inverse_slope_by_root(slope)
    # At e^6 the slope of js has lost 5 digits of r.
    assert generic == pytest.approx(r, abs=1e-9)


def test_exact_zeros_of_chi2():
    logp = d.chi2.best_response(np.array([1.0, 0.0, -5.0]), np.log(np.full(3, 1 / 3)), 0.5)
    assert logp[2] == -np.inf
    # By hand: π = μ(1 + (g − ν)/τ) on the first two, ν = ¼... so that they add up to 1.
    nu = (1.0 + 0.0) / 2 + 0.5 - 0.5 * 3 / 2
    expected = np.array([1 + (1 - nu) / 0.5, 1 + (0 - nu) / 0.5]) / 3
    assert np.exp(logp[:2]) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("spec", SPECS)
def test_prox_keeps_the_zeros_of_its_anchor(spec):
    """KL(π‖anchor) is infinite elsewhere; the rest is the step of the game without them."""
    regularizer = parse(spec)
    mu, anchor, g = np.log([0.2, 0.3, 0.5]), np.log([0.4, 0.6, 1.0]), np.array([0.3, 0.1, 0.9])
    anchor[2] = -np.inf
    whole = regularizer.prox(g, anchor, mu, 0.7, 0.3)
    part = regularizer.prox(g[:2], anchor[:2], mu[:2], 0.7, 0.3)
    assert whole[2] == -np.inf
    assert whole[:2] == pytest.approx(part, abs=1e-13)


@pytest.mark.parametrize("spec", SPECS)
def test_batches_and_array_libraries_agree(spec):
    regularizer = parse(spec)
    rng = np.random.default_rng(4)
    g, mu = rng.normal(size=(3, 2, N)), np.log(rng.dirichlet(np.ones(N), size=(3, 2)))
    anchor = np.log(rng.dirichlet(np.ones(N), size=(3, 2)))
    expected = regularizer.prox(g, anchor, mu, 0.7, 0.3)
    one_by_one = regularizer.prox(g[1, 1], anchor[1, 1], mu[1, 1], 0.7, 0.3)
    assert expected[1, 1] == pytest.approx(one_by_one, abs=1e-13)
    for convert in (torch.tensor, array_api_strict.asarray):
        arrays = [convert(a) for a in (g, anchor, mu)]
        answer = np.asarray(regularizer.prox(*arrays, 0.7, 0.3))
        # numpy takes the Wright ω form where the others search a root.
        assert answer == pytest.approx(expected, abs=1e-12)
        value = np.asarray(regularizer.value(arrays[1], arrays[2]))
        assert value == pytest.approx(regularizer.value(anchor, mu), abs=1e-12)


@pytest.mark.parametrize("spec", ["forward_kl", "js", "hellinger", "alpha:0.3", "alpha:-1"])
@pytest.mark.parametrize("mu", [[0.5, 0.5], [0.9, 0.1], [0.1, 0.2, 0.7], [0.02, 0.03, 0.05, 0.9]])
def test_modulus_is_the_largest(spec, mu):
    """No direction on the simplex is flatter, and the worst one is as flat as claimed."""
    regularizer, log_mu = parse(spec), np.log(mu)
    claimed, n = regularizer.modulus(log_mu), len(mu)
    rng = np.random.default_rng(5)
    p = rng.dirichlet(np.full(n, 0.5), size=4000) + 1e-12
    q = rng.dirichlet(np.full(n, 0.5), size=4000) + 1e-12
    gradients = regularizer.gradient(np.log(p), log_mu) - regularizer.gradient(np.log(q), log_mu)
    ratio = ((p - q) * gradients).sum(-1) / ((p - q) * np.log(p / q)).sum(-1)
    assert ratio.min() >= claimed * (1 - 1e-6)
    i, j = np.argsort(mu)[:2]  # attained by moving mass between the two rarest actions
    share = 1 / (1 + np.exp(-np.linspace(-30, 30, 60001)))
    flat = (1 - share) * regularizer.slope_derivative(np.log(share) - log_mu[i])
    flat += share * regularizer.slope_derivative(np.log(1 - share) - log_mu[j])
    assert claimed == pytest.approx(np.nanmin(flat), rel=1e-6)  # the grid's spacing, squared


def test_modulus_in_closed_form():
    log_mu = np.log([0.2, 0.3, 0.5])
    assert d.forward_kl.modulus(log_mu) == pytest.approx(2 * np.sqrt(0.06), rel=1e-12)
    assert d.reverse_kl.modulus(log_mu) == d.entropy.modulus(log_mu) == 1
    assert d.chi2.modulus(log_mu) == d.alpha(3).modulus(log_mu) == 0
    assert parse("0.5*reverse_kl+chi2").modulus(log_mu) == 0.5


def test_algebra_and_names():
    total = parse("0.1*forward_kl + 0.5*reverse_kl")
    assert total == 0.1 * d.forward_kl + 0.5 * d.reverse_kl
    assert all(parse(parse(spec).name) == parse(spec) for spec in SPECS)
    assert parse("1e-1*js+1e+1*chi2").name == "0.1*js+10*chi2"
    assert parse("js+js") == 2 * d.js
    mixed = parse("0.5*entropy+0.25*reverse_kl+alpha:0.123456789")
    assert parse(mixed.name) == mixed
    assert mixed.parts == {"entropy": 0.5, "reverse_kl": 0.25, "alpha:0.123456789": 1.0}


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("revers_kl", "did you mean 'reverse_kl'"),
        ("nonsense", "choose from"),
        ("0*js", "positive"),
        ("-1*js", "positive"),
        ("x*js", "'x' is not a number"),
        ("alpha:one", "'one' is not a number"),
        ("alpha:1", "use forward_kl (a = 0) or reverse_kl (a = 1)"),
        ("", "unknown regularizer ''"),
        ("js+", "unknown regularizer ''"),
    ],
)
def test_bad_specifications(spec, hint):
    with pytest.raises(InputError) as error:
        parse(spec)
    assert hint in str(error.value)
    assert "\n" not in str(error.value)


def test_js_value_against_its_integral_form():
    """An independent route: f(u) = ∫₁ᵘ (u − v) f″(v) dv with f″(v) = ½/(v(1 + v))."""
    for u in (0.1, 0.7, 3.0, 40.0):
        integral, _ = quad(lambda v, u=u: (u - v) * 0.5 / (v * (1 + v)), 1, u)
        assert d.JS.f(np.log(u)) == pytest.approx(integral, abs=1e-8)  # quad's own tolerance
