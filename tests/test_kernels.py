"""Kernels: a user's own, small references against 50 digits, and estimators in closed form."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from games import InputError, PreferenceGame
from solvers import parse, solve
from solvers.equilibrium import equilibrium
from solvers.estimators import estimate
from solvers.kernels import CHI2, FORWARD_KL, HELLINGER, JS, REVERSE_KL, Kernel, alpha_kernel

mpmath.mp.dps = 60

MODULE = """
from array_api_compat import array_namespace
from solvers.kernels import Kernel
from solvers.divergences import js

def u(r):
    return array_namespace(r).exp(r)

le_cam = Kernel(
    "le_cam",
    lambda r: 0.5 * (u(r) - 1) ** 2 / (u(r) + 1),
    lambda r: 0.5 * (u(r) - 1) * (u(r) + 3) / (u(r) + 1) ** 2,
    lambda r: 4 * u(r) / (u(r) + 1) ** 3,
    floor=-1.5,
    ceiling=0.5,
)
mixed = 0.5 * js
unlimited = Kernel("unlimited", le_cam.f, le_cam.slope, le_cam.slope_derivative)
"""

# f′(u) up to a constant.
SLOPES = {
    "reverse_kl": mpmath.log,
    "forward_kl": lambda u: -1 / u,
    "chi2": lambda u: u,
    "js": lambda u: -mpmath.log1p(1 / u) / 2,
    "hellinger": lambda u: -1 / mpmath.sqrt(u) / 2,
    "user_kernels:le_cam": lambda u: -2 / (u + 1) ** 2,
}
SPECS = [*SLOPES, "alpha:-5", "alpha:-1", "alpha:0.5", "alpha:0.98", "alpha:0.9999999",
         "alpha:1.0000001", "alpha:1.1", "alpha:1.5", "alpha:2.5", "alpha:100"]  # fmt: skip


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A module of the user's own."""
    (tmp_path / "user_kernels.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("user_kernels", None)


def two_actions(spec: str, log_mu: np.ndarray, tau: float, p: float):
    """x with τ(φ(x/μ₁) − φ((1 − x)/μ₂)) = P(1 ≻ 2) − ½, by bisection in the logit."""
    slope = SLOPES.get(spec)
    if slope is None:
        a = mpmath.mpf(float(spec.removeprefix("alpha:")))
        slope = lambda u: u ** (a - 1) / (a - 1)  # noqa: E731
    first, second = (mpmath.exp(mpmath.mpf(float(v))) for v in log_mu)
    gain, tau = mpmath.mpf(p) - mpmath.mpf(0.5), mpmath.mpf(tau)
    low, high = mpmath.mpf(-400), mpmath.mpf(400)
    for _ in range(200):
        middle = (low + high) / 2
        x, rest = 1 / (1 + mpmath.exp(-middle)), 1 / (1 + mpmath.exp(middle))
        if tau * (slope(x / first) - slope(rest / second)) > gain:
            high = middle
        else:
            low = middle
    return x


@pytest.mark.parametrize("mu", [0.5, 1e-9, 1e-30])
@pytest.mark.parametrize("spec", SPECS)
def test_two_actions_against_sixty_digits(spec, mu):
    log_mu = np.array([math.log(mu), math.log1p(-mu)])
    log_mu -= np.logaddexp(*log_mu)
    for tau in (1e-4, 0.05, 1.0, 1e3):
        for p in (0.9, 0.1):
            found = equilibrium(PreferenceGame([[0.5, p], [1 - p, 0.5]]), parse(spec), tau, log_mu)
            x = float(two_actions(spec, log_mu, tau, p))
            assert found.policy[0] == pytest.approx(x, abs=1e-12), (tau, p)
            assert found.status == "converged"


def test_a_small_reference_in_the_known_case():
    mu = np.log([1e-9, 1 - 1e-9])
    found = equilibrium(PreferenceGame([[0.5, 0.9], [0.1, 0.5]]), parse("alpha:-1"), 0.05, mu)
    assert found.policy == pytest.approx([0.75, 0.25], abs=1e-3)  # to first order in μ


def test_a_kernel_by_its_import_path_keeps_it_as_its_name():
    mixed = parse("0.1*user_kernels:le_cam+0.5*reverse_kl")
    assert mixed.name == "0.1*user_kernels:le_cam+0.5*reverse_kl"
    assert parse(mixed.name) == mixed
    weighted = parse("3*user_kernels:mixed+chi2")
    assert weighted.name == "3*user_kernels:mixed+chi2"
    assert parse(weighted.name) == weighted == parse("1.5*js+chi2")
    assert (2 * weighted).name == "6*user_kernels:mixed+2*chi2"
    assert parse("alpha:3").name == "alpha:3"
    assert parse(CHI2) == parse("chi2")


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("user_kernels:le_cem", "cannot be imported"),
        ("user_kernels:u", "not a Kernel or Divergence"),
        ("alpha:one", "is not a number"),
    ],
)
def test_what_is_not_a_kernel(spec, hint):
    with pytest.raises(InputError, match=hint):
        parse(spec)


def test_undeclared_limits_are_refused():
    with pytest.raises(InputError, match="declare ceiling"):
        parse("user_kernels:unlimited").best_response(np.array([1.0, 0.0]), np.log([0.5, 0.5]), 1.0)


@pytest.mark.parametrize("spec", ["user_kernels:le_cam", "0.3*user_kernels:le_cam+0.2*reverse_kl"])
def test_a_rule_converges_to_the_equilibrium_of_a_users_kernel(spec):
    game, mu = (
        PreferenceGame([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]]),
        np.log([0.2, 0.3, 0.5]),
    )
    star = equilibrium(game, parse(spec), 0.3, mu)
    assert abs(star.duality_gap) < 1e-14
    solution = solve(game, "gmmd", tau=0.3, regularizer=spec, eta=0.3, reference=mu, tol=1e-13,
                     steps=5000)  # fmt: skip
    assert solution.policy == pytest.approx(star.policy, abs=1e-6)  # the root of the gap


# f(u) for exact arithmetic.
def exact_f(kernel: Kernel, u):
    log = mpmath.log
    if kernel.name.startswith("alpha"):
        a = mpmath.mpf(float(kernel.name.removeprefix("alpha:")))
        return (u**a - a * u + a - 1) / (a * (a - 1))
    return {
        "reverse_kl": lambda: u * log(u),
        "forward_kl": lambda: -log(u),
        "chi2": lambda: (u - 1) ** 2 / 2,
        "js": lambda: u * log(u) / 2 - (1 + u) * log((1 + u) / 2) / 2,
        "hellinger": lambda: (mpmath.sqrt(u) - 1) ** 2 / 2,
        "le_cam": lambda: (u - 1) ** 2 / (u + 1) / 2,
    }[kernel.name]()


BUILT_IN = [REVERSE_KL, FORWARD_KL, CHI2, JS, HELLINGER, alpha_kernel(0.5), alpha_kernel(-1.0),
            alpha_kernel(3.0), alpha_kernel(1.001)]  # fmt: skip


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("kernel", BUILT_IN, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(
    ("r", "a"), [(0.0, 0.0), (1.5, -2.0), (-3.0, 1.0), (100.0, -99.0), (800.0, -800.0),
                 (250.0, -240.0), (-300.0, 2.0), (1e-3, 0.3)]
)  # fmt: skip
def test_weighted_values_in_closed_form_and_generically(kernel, closed, r, a):
    """e^a f(e^r), also where one of the factors overflows."""
    if not closed:
        kernel = replace(kernel, weighted=None)
    expected = mpmath.exp(mpmath.mpf(a)) * exact_f(kernel, mpmath.exp(mpmath.mpf(r)))
    if abs(expected) > 1e300:
        pytest.skip("the value itself overflows")
    scale = float(mpmath.exp(mpmath.mpf(a)) + mpmath.exp(mpmath.mpf(a + r)))
    with np.errstate(over="ignore"):
        found = kernel.times_weight(*(np.array([x]) for x in (r, a, a + r)))[0]
    assert found == pytest.approx(float(expected), rel=1e-9, abs=1e-13 * scale * (1 + abs(r)))


@pytest.mark.parametrize(
    "spec", ["js", "hellinger", "reverse_kl", "forward_kl", "user_kernels:le_cam"]
)
def test_estimators_are_finite_at_extreme_log_ratios(spec):
    (summand,) = parse(spec).summands
    for shift in (0.1, -0.1):
        logp = torch.tensor([-50.0], dtype=torch.float64, requires_grad=True)
        ref, current = (torch.tensor([x]).double() for x in (-850.0, -50.0 + shift))
        value = estimate("importance", summand, logp, ref, current, 10.0)
        value.sum().backward()
        assert logp.grad is not None
        assert torch.isfinite(value).all()
        assert torch.isfinite(logp.grad).all()


def test_the_gradient_of_a_users_kernel_is_that_of_its_slope():
    """(π_θ/π_t)(φ(r) − φ(0)), on both sides of where the value is extrapolated."""
    (summand,) = parse("user_kernels:le_cam").summands
    for r in (-2.0, 0.0, 3.0, 300.0):
        logp = torch.tensor([r - 320.0], dtype=torch.float64, requires_grad=True)
        ref, current = (torch.tensor([x], dtype=torch.float64) for x in (-320.0, r - 320.2))
        estimate("importance", summand, logp, ref, current, 10.0).sum().backward()
        u = mpmath.exp(mpmath.mpf(r))
        slope = (u - 1) * (u + 3) / (u + 1) ** 2 / 2
        assert logp.grad is not None
        assert logp.grad.item() == pytest.approx(math.exp(0.2) * float(slope), rel=1e-12, abs=1e-13)
