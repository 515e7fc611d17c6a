"""f-divergences R(π, μ) = Σ μ f(π/μ): value, gradient, best response and proximal step.

All functions take the log-ratio r = log π/μ and work with the slope φ(r) = f′(eʳ), an increasing
function. A regularizer is a weighted sum of kernels, and the two optimization problems are one:

    best response   argmax_π ⟨g, π⟩ − τR(π, μ)            solves τφ(r) = g − ν,
    proximal step   argmin_π −η⟨g, π⟩ + KL(π‖a) + ητR(π, μ)

The second is the first for the sum (1/η)·reverse_kl + τR and the direction g + (1/η) log a/μ. The
multiplier ν makes Σ μ eʳ = 1. Entropy, Σ π log π, is reverse KL plus the linear term ⟨π, log μ⟩.

Adding c(u − 1) to f leaves R unchanged. Best responses are computed for the f whose f′(∞) is 0,
where it is finite: the slope of a large ratio is then a small number that keeps all its digits.

Arrays may be numpy, torch or any of the array API standard; policies are log-probabilities.
"""

from __future__ import annotations

import functools
import math
import operator
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace, is_numpy_array

from games.errors import InputError
from games.lookup import load_object, suggestion

from .arrays import Array, dot, increasing_root, logsumexp, normalize
from .kernels import (
    CHI2,
    FARTHEST,
    FORWARD_KL,
    HELLINGER,
    JS,
    REVERSE_KL,
    Kernel,
    alpha_kernel,
    log1pexp,
    root_of_slope,
)

# Overflow to ±inf is meant: a slope at r = −∞ is −∞. NaN is not, and is not silenced.
_quiet = np.errstate(over="ignore", divide="ignore")

KERNELS = {kernel.name: kernel for kernel in (REVERSE_KL, FORWARD_KL, CHI2, JS, HELLINGER)}
NAMES = (*KERNELS, "alpha:<a>", "entropy")


@dataclass(frozen=True)
class Summand:
    """A weighted kernel of a regularizer; `counting`: against the counting measure, not μ."""

    weight: float
    kernel: Kernel
    counting: bool = False

    @property
    def name(self) -> str:
        """The specification of the kernel; reverse KL against the counting measure is entropy."""
        return "entropy" if self.counting else self.kernel.name

    @property
    def divergence(self) -> Divergence:
        """The kernel's divergence, without the weight."""
        return Divergence(((1.0, self.kernel),), 1.0 if self.counting else 0.0)


@dataclass(frozen=True)
class Divergence:
    """A regularizer R(π, μ): Σ_j c_j R_j(π, μ) + tilt·⟨π, log μ⟩ over kernels R_j, all c_j > 0.

    Adding two and multiplying by a positive number gives another one.
    """

    terms: tuple[tuple[float, Kernel], ...]
    tilt: float = 0.0
    names: tuple[tuple[float, str], ...] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def complete(self) -> Divergence:
        """The same R, up to a constant on the simplex, with complete kernels: for computing."""
        return Divergence(tuple((c, kernel.complete) for c, kernel in self.terms), self.tilt)

    @property
    def summands(self) -> tuple[Summand, ...]:
        """R as a weighted sum of kernels, with entropy as a summand of its own."""
        found = []
        for c, kernel in self.terms:
            if kernel == REVERSE_KL and self.tilt:  # entropy is reverse KL plus ⟨π, log μ⟩
                found.insert(0, Summand(self.tilt, kernel, True))
                c -= self.tilt
            if c:
                found.append(Summand(c, kernel))
        return tuple(found)

    @property
    def parts(self) -> dict[str, float]:
        """{name: weight} of the summands."""
        return {part.name: part.weight for part in self.summands}

    @property
    def name(self) -> str:
        """The specification that `parse` reads."""
        terms = (name if c == 1 else f"{c:.12g}*{name}" for c, name in self._named)
        return "+".join(terms)

    @property
    def _named(self) -> tuple[tuple[float, str], ...]:
        """Weights and specifications: those that R was parsed from, or those of its summands."""
        return self.names or tuple((part.weight, part.name) for part in self.summands)

    def __add__(self, other: Divergence) -> Divergence:
        weights: dict[Kernel, float] = {}
        for c, kernel in (*self.terms, *other.terms):
            weights[kernel] = weights.get(kernel, 0.0) + c
        terms = tuple((c, kernel) for kernel, c in weights.items())
        given = self.names is not None or other.names is not None
        names = self._named + other._named if given else None
        return Divergence(terms, self.tilt + other.tilt, names)

    def __rmul__(self, factor: float) -> Divergence:
        names = None if self.names is None else tuple((factor * c, n) for c, n in self.names)
        return Divergence(tuple((factor * c, k) for c, k in self.terms), factor * self.tilt, names)

    @_quiet
    def slope(self, log_ratio: Array) -> Array:
        """(..., n) -> (..., n): φ(r) = f′(eʳ), without the tilt."""
        return _total(c * kernel.slope(log_ratio) for c, kernel in self.terms)

    @_quiet
    def slope_derivative(self, log_ratio: Array) -> Array:
        """(..., n) -> (..., n): φ′(r) = eʳ f″(eʳ) > 0."""
        return _total(c * kernel.slope_derivative(log_ratio) for c, kernel in self.terms)

    @cached_property
    def floor(self) -> float:
        """φ(−∞): finite where best responses have exact zeros."""
        return sum(c * kernel.floor for c, kernel in self.terms)

    @cached_property
    def ceiling(self) -> float:
        """φ(∞)."""
        return sum(c * kernel.ceiling for c, kernel in self.terms)

    @_quiet
    def value(self, logp: Array, logp_ref: Array) -> Array:
        """(..., n), (..., n) -> (...,): R(π, μ); inf where π leaves what R can measure."""
        xp = array_namespace(logp)
        r = logp - logp_ref
        if all(kernel.weighted is not None for _, kernel in self.terms):
            values = xp.exp(logp_ref) * _total(c * kernel.f(r) for c, kernel in self.terms)
        else:
            values = _total(c * k.times_weight(r, logp_ref, logp) for c, k in self.terms)
        total = xp.sum(values, axis=-1)
        return total if self.tilt == 0 else total + self.tilt * dot(xp.exp(logp), logp_ref)

    def gradient(self, logp: Array, logp_ref: Array) -> Array:
        """(..., n), (..., n) -> (..., n): ∂R/∂π, constants included."""
        slope = self.slope(logp - logp_ref)
        return slope if self.tilt == 0 else slope + self.tilt * logp_ref

    def best_response(self, direction: Array, logp_ref: Array, tau: float) -> Array:
        """(..., n), (..., n) -> (..., n): log argmax_π ⟨direction, π⟩ − τR(π, μ), for τ > 0."""
        return (tau * self)._argmax(direction, logp_ref)

    def conjugate(self, direction: Array, logp_ref: Array, tau: float) -> Array:
        """(..., n), (..., n) -> (...,): max_π ⟨direction, π⟩ − τR(π, μ), for τ > 0.

        The conjugate of τR; its error is of second order in that of the best response.
        """
        if self._only_reverse_kl:
            scale = tau * self.terms[0][0]
            g = direction - tau * self.tilt * logp_ref
            return scale * logsumexp(logp_ref + g / scale)
        xp = array_namespace(direction)
        response = self.best_response(direction, logp_ref, tau)
        return dot(xp.exp(response), direction) - tau * self.value(response, logp_ref)

    def prox(
        self, direction: Array, logp_anchor: Array, logp_ref: Array, eta: float, tau: float
    ) -> Array:
        """(..., n) × 3 -> (..., n): log argmin_π −η⟨direction, π⟩ + KL(π‖anchor) + ητR(π, μ).

        The GMMD step (RSPO Eq. 38; Sokota et al. 2022, Alg. 3.1). RSPO Eq. 13 prints τR without
        the η.
        """
        pull = (1 / eta) * (logp_anchor - logp_ref)
        return ((1 / eta) * reverse_kl + tau * self)._argmax(direction + pull, logp_ref)

    def modulus(self, logp_ref: Array) -> float:
        """(..., n) -> m ≥ 0: R(·, μ) is m-strongly convex relative to entropy on the simplex.

        The largest such m for one kernel, 0 where there is none; for a sum, the sum of the parts'
        (a lower bound). The worst direction moves mass between two actions only, so that
        m = min over pairs and p + q = 1 of q φ′(log p/μ₁) + p φ′(log q/μ₂), attained at the two
        smallest entries of μ (for forward KL: 2√(μ₁μ₂)). Derivation in PAPERS.md.
        """
        mu = np.sort(np.exp(np.asarray(logp_ref, dtype=float)), axis=-1)[..., :2]
        worst = mu.reshape(-1, mu.shape[-1])
        return sum(c * min(_kernel_modulus(k, pair) for pair in worst) for c, k in self.terms)

    def _argmax(self, direction: Array, logp_ref: Array) -> Array:
        """log argmax_π ⟨direction, π⟩ − R(π, μ)."""
        g = direction if self.tilt == 0 else direction - self.tilt * logp_ref
        if self._only_reverse_kl:
            return normalize(logp_ref + g / self.terms[0][0])
        return self.complete._argmax_by_root(g, logp_ref)

    @property
    def _only_reverse_kl(self) -> bool:
        return len(self.terms) == 1 and self.terms[0][1] == REVERSE_KL

    @_quiet
    def _argmax_by_root(self, g: Array, logp_ref: Array) -> Array:
        """The best response for any kernels: r_i = φ⁻¹(φ(t) + g_i − g_k), where t = r_k.

        k is the action with the largest g, so that 0 ≤ t ≤ −log μ_k and the other slopes are
        smaller. Where rounding of t moves the total by more than rounding, another action takes the
        rest of the probability, and is k instead (α ≫ 2, far below μ).
        """
        xp = array_namespace(g, logp_ref)
        g, logp_ref = xp.broadcast_arrays(g, logp_ref)
        alive, nothing = g > -math.inf, xp.full_like(g, -math.inf)  # an anchor's zeros stay zeros
        logp_ref = xp.where(alive, logp_ref, nothing)
        lead = g - xp.max(g, axis=-1, keepdims=True)
        low = -logsumexp(logp_ref, keepdims=True)
        high = -xp.max(xp.where(lead == 0, logp_ref, nothing), axis=-1, keepdims=True)
        t = self._log_ratio_of_leader(lead, logp_ref, low, high, low)
        r = self._log_ratios(lead, t)
        missed = xp.abs(logsumexp(logp_ref + r, keepdims=True)) > _RESOLVED
        if not bool(xp.any(missed)):
            return normalize(logp_ref + r)
        margin = 16 * xp.finfo(t.dtype).eps * (1 + xp.abs(t))
        less, more = self._log_ratios(lead, t - margin), self._log_ratios(lead, t + margin)
        moved = xp.exp(logp_ref + more) - xp.exp(logp_ref + less)
        k = xp.argmax(moved, axis=-1, keepdims=True)
        relative = lead - xp.take_along_axis(lead, k, axis=-1)
        low = xp.maximum(xp.take_along_axis(less, k, axis=-1), xp.full_like(low, -FARTHEST))
        high = xp.minimum(xp.take_along_axis(more, k, axis=-1), xp.full_like(low, FARTHEST))
        t = self._log_ratio_of_leader(relative, logp_ref, low, high, high)
        return normalize(logp_ref + xp.where(missed, self._log_ratios(relative, t), r))

    def _log_ratios(self, lead: Array, t: Array) -> Array:
        """(..., n), (..., 1) -> (..., n): φ⁻¹(φ(t) + lead), t itself where lead is 0."""
        xp = array_namespace(lead, t)
        alive = lead > -math.inf
        slopes = self.slope(t) + xp.where(alive, lead, xp.zeros_like(lead))
        r = xp.where(lead == 0, t, self.inverse_slope(slopes))
        return xp.where(alive, r, xp.full_like(r, -math.inf))

    def _log_ratio_of_leader(
        self, lead: Array, logp_ref: Array, low: Array, high: Array, start: Array
    ) -> Array:
        """(..., n) × 2, (..., 1) × 3 -> (..., 1): t with Σ μ exp(r(t)) = 1."""
        xp, nothing = array_namespace(lead), array_namespace(lead).full_like(lead, -math.inf)

        def excess(t: Array) -> tuple[Array, Array]:
            r = self._log_ratios(lead, t)
            log_total = logsumexp(logp_ref + r, keepdims=True)
            finite = xp.isfinite(log_total)
            zero = xp.zeros_like(log_total)
            p = xp.exp(xp.where(finite, logp_ref + r, nothing) - xp.where(finite, log_total, zero))
            # d r / d t, which is 1 where r = t
            other = (p > 0) & (lead != 0)
            steepness = xp.where(other, self.slope_derivative(r), xp.ones_like(p))
            rise = xp.where(other, self.slope_derivative(t) / steepness, xp.ones_like(p))
            return log_total, xp.sum(p * rise, axis=-1, keepdims=True)

        return increasing_root(excess, low, high, start)

    @_quiet
    def inverse_slope(self, slope: Array) -> Array:
        """(..., n) -> (..., n): r with φ(r) = slope; −∞ at and below the floor, ∞ at the ceiling.

        One kernel's own formula; reverse KL plus forward KL or χ² by the Wright ω function (numpy
        only); anything else by a root search.
        """
        if len(self.terms) == 1 and self.terms[0][1].inverse is not None:
            c, kernel = self.terms[0]
            return kernel.inverse(slope / c)
        if len(self.terms) == 2 and is_numpy_array(slope):
            weights = {kernel: c for c, kernel in self.terms}
            c = weights.pop(REVERSE_KL, None)
            if c is not None and FORWARD_KL in weights:
                return -_omega_root(1 - slope / c, weights[FORWARD_KL] / c)
            if c is not None and CHI2 in weights:
                return _omega_root((slope + weights[CHI2]) / c - 1, weights[CHI2] / c)
        return self.inverse_slope_by_root(slope)

    @_quiet
    def inverse_slope_by_root(self, slope: Array) -> Array:
        """(..., n) -> (..., n): `inverse_slope` for any sum of kernels, by a root search."""
        whole = self.complete
        zero = array_namespace(slope).zeros_like(slope)
        if any(one[1] is not other[1] for one, other in zip(self.terms, whole.terms, strict=True)):
            slope = slope + (whole.slope(zero) - self.slope(zero))
        low, high = whole._bounds(slope)
        functions = whole.slope, whole.slope_derivative
        return root_of_slope(*functions, slope, whole.floor, whole.ceiling, low, high)

    def _bounds(self, slope: Array) -> tuple[Array, Array]:
        """(..., n) -> (..., n) × 2: a bracket of the root from the inverses of complete kernels."""
        xp, m = array_namespace(slope), len(self.terms)
        zero = xp.zeros_like(slope)
        below, above = zero - FARTHEST, zero + FARTHEST
        parts = [(c, k, k.inverse) for c, k in self.terms if k.inverse is not None]
        if self.ceiling == 0:  # all slopes are negative
            # No part is below the sum, and one has at least an equal share of it.
            low = high = below
            for c, _, inverse in parts:
                low = xp.maximum(low, inverse(slope / c))
                high = xp.maximum(high, inverse(slope / (m * c)))
            return xp.minimum(low - _SLACK, above), xp.minimum(high + _SLACK, above)
        # Between u = 1 and the root every part of φ moves the same way, so that no part alone
        # exceeds the slope: each kernel's inverse bounds the root from the far side.
        start, rounding = self.slope(zero), 8 * xp.finfo(slope.dtype).eps
        rest = slope - start
        for c, kernel, inverse in parts:
            own = kernel.slope(zero)
            margin = rounding * ((xp.abs(slope) + xp.abs(start)) / c + xp.abs(own))
            bound = inverse(rest / c + own - margin)
            below = xp.where(xp.isfinite(bound), xp.maximum(below, bound), below)
            bound = inverse(rest / c + own + margin)
            above = xp.where(xp.isfinite(bound), xp.minimum(above, bound), above)
        low = xp.where(rest < 0, below, zero - _SLACK)
        return low, xp.where(rest > 0, above, zero + _SLACK)


# A total whose logarithm is below this is 1 to rounding.
_RESOLVED = 1e-12
# What a bound on a root may be off by through rounding.
_SLACK = 1e-6


def _omega_root(q: Array, ratio: float) -> Array:
    """r with r + ratio·eʳ = q: r = q − W for W = ω(q + log ratio), without cancellation."""
    from scipy.special import wrightomega  # scipy.special is slow to import

    w = wrightomega(q + math.log(ratio))
    return np.where(w > 1, np.log(w) - math.log(ratio), q - w)


def _total(parts: Iterable[Array]) -> Array:
    return functools.reduce(operator.add, parts)


def _kernel_modulus(kernel: Kernel, pair: Array) -> float:
    """The largest m for one kernel, from the two smallest entries of μ."""
    if kernel.floor > -math.inf:
        return 0.0  # φ′ vanishes at u = 0
    if kernel == REVERSE_KL or len(pair) < 2:
        return float(kernel.slope_derivative(np.zeros(())))
    from scipy.optimize import minimize_scalar  # slow to import, and seldom needed

    log_mu = np.log(pair)

    def curvature(logit: Array) -> Array:
        log_p, log_q = -log1pexp(-logit), -log1pexp(logit)
        first = np.exp(log_q) * kernel.slope_derivative(log_p - log_mu[0])
        return first + np.exp(log_p) * kernel.slope_derivative(log_q - log_mu[1])

    # The curvature has one valley for each known kernel; the grid guards against a second.
    grid = np.linspace(-60, 60, 2401)
    best = grid[np.argmin(curvature(grid))]
    valley = minimize_scalar(
        lambda x: float(curvature(np.asarray(x))),
        bounds=(best - 0.1, best + 0.1),
        method="bounded",
        options={"xatol": 1e-9},
    )
    return float(valley.fun)


def _single(kernel: Kernel) -> Divergence:
    return Divergence(((1.0, kernel),))


reverse_kl = _single(REVERSE_KL)
forward_kl = _single(FORWARD_KL)
chi2 = _single(CHI2)
js = _single(JS)
hellinger = _single(HELLINGER)
entropy = Divergence(((1.0, REVERSE_KL),), tilt=1.0)


def alpha(a: float) -> Divergence:
    """The α-divergence with f(u) = (uᵃ − au + a − 1)/(a(a − 1)), a not 0 or 1."""
    return _single(alpha_kernel(a))


def parse(spec: str | Kernel | Divergence) -> Divergence:
    """A divergence from a kernel, or from its specification.

    That is a name of NAMES, the import path `package.module:object` of a Kernel or Divergence, or a
    weighted sum of these such as `0.1*forward_kl+js`. Raises InputError for an unknown name (with
    the nearest one), an import that fails, or a weight that is not positive.

    >>> parse("0.1*forward_kl+0.5*reverse_kl").name
    '0.1*forward_kl+0.5*reverse_kl'
    """
    if isinstance(spec, Divergence):
        return spec
    if isinstance(spec, Kernel):
        return _single(spec)
    return functools.reduce(operator.add, (_parse_term(term) for term in _split_sum(spec)))


def _split_sum(spec: str) -> list[str]:
    """The terms of a sum; the + of an exponent (1e+3) does not separate."""
    return [term.strip() for term in re.split(r"(?<![0-9][eE])\+", spec)]


def _parse_term(term: str) -> Divergence:
    weight, star, name = term.rpartition("*")
    factor = _number(weight, term) if star else 1.0
    if not 0 < factor < math.inf:
        raise InputError(f"regularizer '{term}': the weight must be a positive number")
    name = name.strip()
    if name == "entropy":
        return factor * entropy
    if name.startswith("alpha:"):
        return factor * alpha(_number(name.removeprefix("alpha:"), term))
    if ":" in name:
        return factor * _loaded(name)
    if name not in KERNELS:
        raise InputError(f"unknown regularizer '{name}': {suggestion(name, NAMES)}")
    return factor * _single(KERNELS[name])


def _loaded(path: str) -> Divergence:
    """The Kernel or Divergence at an import path, which becomes its name."""
    found: Any = load_object(path, "regularizer", (Kernel, Divergence))
    if isinstance(found, Kernel):
        return _single(replace(found, name=path))
    return replace(found, names=((1.0, path),))


def _number(text: str, term: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"regularizer '{term}': '{text.strip()}' is not a number") from None
