"""Estimators of R: value and gradient by enumeration, where each is right and where it is not."""

from __future__ import annotations

import math

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from games import InputError
from solvers import parse
from solvers.arrays import dot
from solvers.estimators import estimate, factor
from solvers.fits import direct_forward_kl
from tests.enumeration import order
from tests.strategies import KERNELS, SPECS, random_policy, seeds, sizes

N = 5
CURRENT, MU, THETA = random_policy(1, N), random_policy(2, N), random_policy(3, N)
TERMS = [*KERNELS, "entropy"]
PUBLISHED = [term for term in TERMS if term != "js"]


def only(term):
    """The one summand of a regularizer."""
    (summand,) = parse(term).summands
    return summand


def gradient(estimator, term, theta, current=CURRENT, mu=MU, weights=None, clip=math.inf):
    """(n,): ∂/∂logits of E_{π_t} of the estimator at log π_θ, by autograd."""
    logits = torch.tensor(theta, requires_grad=True)
    logp = torch.log_softmax(logits, dim=-1)
    current, mu = torch.tensor(current), torch.tensor(mu)
    weights = current.exp() if weights is None else torch.tensor(weights)
    (weights * estimate(estimator, only(term), logp, mu, current, clip)).sum().backward()
    assert logits.grad is not None
    return logits.grad.numpy()


def true_gradient(term, theta, mu=MU):
    """π∘(∂R − E_π ∂R)."""
    slope = parse(term).gradient(theta, mu)
    return np.exp(theta) * (slope - np.exp(theta) @ slope)


@given(st.sampled_from(SPECS), seeds, sizes)
def test_the_terms_add_up(spec, seed, n):
    logp, mu = random_policy(seed, n), random_policy(seed + 1, n)
    parts = [c * parse(name).value(logp, mu) for name, c in parse(spec).parts.items()]
    # Ratios up to e^40 to the powers of a kernel: relative rounding.
    assert sum(parts) == pytest.approx(parse(spec).value(logp, mu), rel=1e-12, abs=1e-12)


def test_entropy_and_reverse_kl_are_told_apart():
    mixed = parse("0.5*entropy+0.25*reverse_kl+js")
    assert mixed.parts == {"reverse_kl": 0.25, "js": 1.0, "entropy": 0.5}
    assert parse("0.3*entropy").parts == {"entropy": 0.3}


@given(st.sampled_from(TERMS), seeds, sizes)
def test_importance_weights_give_the_divergence_itself(term, seed, n):
    logp, mu, current = (random_policy(seed + i, n) for i in range(3))
    sampled = estimate("importance", only(term), logp, mu, current, math.inf)
    value = parse(term).value(logp, mu)
    size = dot(np.exp(current), np.abs(sampled))  # what the sum may lose to cancellation
    assert dot(np.exp(current), sampled) == pytest.approx(value, abs=1e-13 * (1 + size))


@pytest.mark.parametrize("theta", [CURRENT, THETA], ids=["on policy", "off policy"])
@pytest.mark.parametrize("term", TERMS)
def test_importance_weights_give_the_gradient_on_and_off_policy(term, theta):
    expected = true_gradient(term, theta)
    assert gradient("importance", term, theta) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("term", PUBLISHED)
def test_published_estimators_have_factor_times_the_gradient_on_policy(term):
    """RSPO Eqs. 52–54: the square of Eq. 52 has twice the gradient of the reverse KL."""
    twice = term in ("reverse_kl", "entropy")
    assert factor(only(term).kernel, "published") == (2 if twice else 1)
    expected = factor(only(term).kernel, "published") * true_gradient(term, CURRENT)
    assert gradient("published", term, CURRENT) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("term", PUBLISHED)
def test_published_estimators_are_biased_off_policy(term):
    """In proportion to how far π_θ has gone from π_t."""
    distances, bias = [0.02, 0.01, 0.005], []
    for distance in distances:
        theta = CURRENT + distance * (THETA - CURRENT)
        theta = theta - np.log(np.exp(theta).sum())
        expected = factor(only(term).kernel, "published") * true_gradient(term, theta)
        bias.append(np.abs(gradient("published", term, theta) - expected).max())
    # The next order is some percent of the first at these distances.
    assert order(distances, bias) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("estimator", "term"),
    [
        *(("importance", term) for term in KERNELS),
        *(("published", term) for term in ("reverse_kl", "hellinger", "alpha:3", "alpha:-1")),
    ],
)
def test_samples_have_no_noise_at_the_reference(estimator, term):
    """At π_θ = μ, where runs start, each sample's own gradient is zero; not as Eqs. 53–54 print."""
    for y in range(N):
        one = np.where(np.arange(N) == y, 1.0, 0.0)
        assert gradient(estimator, term, MU, weights=one) == pytest.approx(0, abs=1e-12)


def test_published_formulas_and_their_clip():
    r = np.array([-12.0, -1.0, 0.5, 12.0])
    mu, current = np.zeros(4), np.zeros(4)
    values = {
        term: estimate("published", only(term), r, mu, current, 10.0)
        for term in ("reverse_kl", "forward_kl", "chi2")
    }
    assert values["reverse_kl"] == pytest.approx(r**2)
    assert values["forward_kl"] == pytest.approx(np.exp([10, 1, -0.5, -12]))
    assert values["chi2"] == pytest.approx(np.exp([-12, -1, 0.5, 10]))
    # Beyond the clip there is no gradient.
    far = torch.tensor([12.0, -12.0], requires_grad=True)
    zero = torch.zeros(2)
    for term in ("forward_kl", "chi2"):
        (slope,) = torch.autograd.grad(
            estimate("published", only(term), far, zero, zero, 10.0).sum(), far
        )
        assert (slope == 0).tolist() == ([False, True] if term == "forward_kl" else [True, False])


def test_js_has_no_published_estimator():
    with pytest.raises(InputError, match="estimator=importance"):
        factor(only("js").kernel, "published")


def test_direct_forward_kl_on_responses_of_the_reference():
    """−λ log π_θ over μ: λ times the gradient of KL(μ‖π_θ), wherever π_θ is."""
    logits = torch.tensor(THETA, requires_grad=True)
    rows = direct_forward_kl(torch.log_softmax(logits, dim=-1)[:, None], 0.7)
    (torch.tensor(MU).exp() * rows).sum().backward()
    assert logits.grad is not None
    expected = 0.7 * true_gradient("forward_kl", THETA)
    assert logits.grad.numpy() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("term", [t for t in KERNELS if not t.startswith("alpha") and t != "chi2"])
def test_long_responses_stay_finite_in_single_precision(term):
    """log μ/π_t = −100 on a sequence that π_t has learnt: e^100 is no float32."""
    logp = torch.tensor([-50.0], requires_grad=True)
    value = estimate(
        "importance", only(term), logp, torch.tensor([-150.0]), torch.tensor([-50.1]), 10.0
    )
    value.sum().backward()
    assert logp.grad is not None
    assert torch.isfinite(value).all()
    assert torch.isfinite(logp.grad).all()


@pytest.mark.parametrize("estimator", ["importance", "published"])
@pytest.mark.parametrize("term", PUBLISHED)
def test_three_array_libraries_agree(term, estimator):
    expected = estimate(estimator, only(term), THETA, MU, CURRENT, 10.0)
    for convert in (torch.tensor, array_api_strict.asarray):
        arrays = (convert(a) for a in (THETA, MU, CURRENT))
        value = np.asarray(estimate(estimator, only(term), *arrays, 10.0))
        assert value == pytest.approx(expected, rel=1e-12)
