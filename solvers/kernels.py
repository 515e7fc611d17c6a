"""Kernels: the function f of an f-divergence R(π, μ) = Σ μ f(π/μ), in terms of r = log π/μ.

A kernel of your own needs four functions; everything else is derived from them:

>>> from array_api_compat import array_namespace
>>> def tilted(r):  # f(u) = (u − 1)²/(u + 1)/2: Le Cam's divergence
...     u = array_namespace(r).exp(r)
...     return 0.5 * (u - 1) ** 2 / (u + 1)
>>> def slope(r):
...     u = array_namespace(r).exp(r)
...     return 0.5 * (u - 1) * (u + 3) / (u + 1) ** 2
>>> def slope_derivative(r):
...     u = array_namespace(r).exp(r)
...     return 4 * u / (u + 1) ** 3
>>> le_cam = Kernel("le_cam", tilted, slope, slope_derivative, floor=-1.5, ceiling=0.5)

On the command line and in configurations it is named by its import path, package.module:le_cam.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from array_api_compat import array_namespace

from games.errors import InputError

from .arrays import A, Array, increasing_root

Function = Callable[[Array], Array]

# Float64 policies cannot represent ratios beyond e^±800.
FARTHEST = 800.0
# Nodes and weights of ∫₀^∞ e^(−y) g(y) dy; weights below 1e-20 are dropped.
_NODES = [
    (float(y), float(w))
    for y, w in zip(*np.polynomial.laguerre.laggauss(32), strict=True)
    if w > 1e-20
]
# A shifted slope changes from the difference to the integral where it is this small.
_SWITCH = 1e-3
# α this close to 1 needs the form that tends to reverse KL.
_NEAR_ONE = 1 / 64
# Slopes stay well below a ceiling this high at all ratios of interest.
_HIGH = 1 / _NEAR_ONE


@dataclass(frozen=True)
class Published:
    """An estimator of R that papers print: `loss(r, clip)` on samples of π_t.

    `factor` is the ratio of its gradient at π_θ = π_t to that of R; `clip` bounds the log-ratio in
    exponents.
    """

    loss: Callable[[Array, float], Array]
    factor: float = 1.0


@dataclass(frozen=True)
class Kernel:
    """One convex f with f(1) = 0, as functions of r = log u ∈ [−∞, ∞].

    name              for messages and specifications
    f                 f(u)
    slope             φ(r) = f′(u)
    slope_derivative  φ′(r) = u f″(u) > 0
    inverse           r = φ⁻¹(s); None: by a root search
    floor, ceiling    the limits φ(−∞) and φ(∞). With a finite floor (χ², α > 1) a best response
                      can have exact zeros
    weighted          (r, a, b) -> eᵃ f(eʳ) for b = a + r, finite wherever eᵃ and eᵇ are; None: a
                      generic form
    published         the estimator of R that papers use, if there is one
    shifted           the same kernel for f − c(u − 1), where that computes better; None: derived

    The functions take numpy and torch arrays (`array_api_compat.array_namespace`).
    """

    name: str
    f: Function
    slope: Function
    slope_derivative: Function
    inverse: Function | None = None
    floor: float = -math.inf
    ceiling: float = math.inf
    weighted: Callable[[Array, Array, Array], Array] | None = None
    published: Published | None = None
    shifted: Kernel | None = None

    @cached_property
    def complete(self) -> Kernel:
        """The same divergence with an inverse, and with a ceiling of 0 where it is finite.

        Adding c(u − 1) to f does not change R. With a ceiling of 0 the slope of a large ratio is a
        small number, which keeps its digits. Raises InputError where the declared limits are not
        those of the slope, or where the slope cannot be shifted accurately.
        """
        if self.shifted is not None:
            return self.shifted
        cancels = self.ceiling != 0 and abs(self.ceiling) < _HIGH
        if self.inverse is not None and not cancels:
            return self
        _check_limits(self)
        shifted = _shifted(self) if cancels else self
        return replace(shifted, inverse=_inverse(shifted))

    def times_weight(self, r: A, a: A, b: A) -> A:
        """(...,) × 3 -> (...,): eᵃ f(eʳ) for b = a + r, without overflow of a factor."""
        if self.weighted is not None:
            closed: Any = self.weighted(r, a, b)
            return closed
        xp = array_namespace(r)
        edge = _edge(r)
        far = r > edge
        half = xp.exp(0.5 * a)  # twice half the weight: eᵃ may overflow where eᵃ f does not
        near = half * (half * self.f(xp.where(far, xp.full_like(r, edge), r)))
        if not bool(xp.any(far)):
            return near
        # f(u) − f(0) = ∫₀ᵘ f′ = u ∫₀^∞ e^(−y) φ(r − y) dy; f(0) is negligible for u this large.
        top = xp.where(far, r, xp.full_like(r, 2 * edge))
        mean: Array | float = 0.0
        for y, weight in _NODES:
            mean = mean + weight * self._far_slope(
                xp.where(top > y, top - y, xp.zeros_like(top)), edge
            )
        return xp.where(far, xp.exp(xp.where(far, b, xp.zeros_like(b))) * mean, near)

    def _far_slope(self, r: A, edge: float) -> A:
        """φ(r), without overflow where its ceiling is finite."""
        if self.ceiling == math.inf:
            value: Any = self.slope(r)
            return value
        xp = array_namespace(r)
        far = r > edge
        inside = self.slope(xp.where(far, xp.full_like(r, edge), r))
        return xp.where(far, xp.full_like(r, self.ceiling), inside)


def _edge(like: Array) -> float:
    """The r up to which u³ = e³ʳ does not overflow in this precision."""
    return math.floor(math.log(float(array_namespace(like).finfo(like.dtype).max)) / 3)


def _check_limits(kernel: Kernel) -> None:
    """Raises InputError where a slope tends to a finite limit that is not declared."""
    with np.errstate(all="ignore"):
        for sign, name in ((1.0, "ceiling"), (-1.0, "floor")):
            declared = getattr(kernel, name)
            near, far = kernel.slope(np.array([100.0, 120.0]) * sign)
            settled = abs(far - near) <= 1e-9 * max(1.0, abs(far))
            wrong = abs(far - declared) > 1e-6 * max(1.0, abs(far))
            if (settled and wrong) or (math.isfinite(declared) and not settled):
                limit = f"{far:.9g}" if settled else "infinite"
                raise InputError(
                    f"kernel '{kernel.name}': {name}={declared:g} is declared, but its slope tends "
                    f"to {limit}; declare {name} as the limit of slope(r)"
                )


def _shifted(kernel: Kernel) -> Kernel:
    """The kernel with the slope φ − ceiling, without cancellation.

    Where φ is close to its ceiling c, c − φ(r) = ∫_r^∞ φ′, and φ′ decays as e^(−βr).
    """
    c, bend = kernel.ceiling, kernel.slope_derivative
    with np.errstate(all="ignore"):
        for far in (60.0, 30.0, 15.0, 8.0):  # the farthest r where φ′ has not underflowed
            first, second = bend(np.array([far, far + 1]))
            if second > 1e-250:
                break
        decay = float(np.log(first / second))
        grid = np.linspace(-20, far, 641)
        below = np.flatnonzero(c - kernel.slope(grid) < _SWITCH * max(1.0, abs(c)))
        switch = float(grid[below[0]]) if len(below) else far

    def integral(r: Array) -> Any:
        total: Any = 0.0
        for y, weight in _NODES:
            total = total + weight * math.exp(y) / decay * bend(r + y / decay)
        return total

    trial = switch + np.array([0.0, 0.5, 1.0])
    with np.errstate(all="ignore"):
        expected, found = c - kernel.slope(trial), integral(trial)
    if not (decay > 0 and np.all(np.abs(found - expected) <= 1e-9 * np.abs(expected) + 1e-14)):
        raise InputError(
            f"kernel '{kernel.name}': its slope cannot be shifted to a ceiling of 0 accurately; "
            "subtract ceiling*(u - 1) from f, and ceiling from its slope"
        )

    def slope(r: A) -> A:
        xp, last = array_namespace(r), _edge(r) / 2
        far = r > switch
        low = kernel.slope(xp.where(far, xp.full_like(r, switch), r)) - c
        if not bool(xp.any(far)):
            return low
        inside = xp.where(
            far, xp.where(r > last, xp.full_like(r, last), r), xp.full_like(r, switch)
        )
        tail = -integral(inside) * xp.exp(-decay * (xp.where(far, r, inside) - inside))
        return xp.where(far, tail, low)

    def slope_derivative(r: A) -> A:
        xp, last = array_namespace(r), _edge(r) / 2
        inside = xp.where(r > last, xp.full_like(r, last), r)
        beyond = xp.where(r > last, r - last, xp.zeros_like(r))
        return bend(inside) * xp.exp(-decay * beyond)

    return replace(
        kernel,
        slope=slope,
        slope_derivative=slope_derivative,
        floor=kernel.floor - c,
        ceiling=0.0,
        inverse=None,
    )


def scale_free(slope: A, floor: float, ceiling: float) -> A:
    """(...,) -> (...,): an increasing function of a slope whose differences are relative errors.

    For any floor, and a ceiling that is 0 or high.
    """
    xp = array_namespace(slope)
    if ceiling == 0:
        value = -log(-slope)
        return value if floor == -math.inf else value + log(slope - floor)
    return xp.asinh(slope) if floor == -math.inf else log(slope - floor)


def scale_free_derivative(slope: A, floor: float, ceiling: float) -> A:
    """(...,) -> (...,): the derivative of `scale_free`."""
    xp = array_namespace(slope)
    if ceiling == 0:
        return -1 / slope if floor == -math.inf else -1 / slope + 1 / (slope - floor)
    return 1 / xp.sqrt(1 + slope**2) if floor == -math.inf else 1 / (slope - floor)


def root_of_slope(
    slope: Function,
    slope_derivative: Function,
    target: A,
    floor: float,
    ceiling: float,
    low: A,
    high: A,
) -> A:
    """(...,) -> (...,): r in [low, high] with φ(r) = target; ∓∞ at and beyond the limits of φ."""
    xp = array_namespace(target)
    inside = (target > floor) & (target < ceiling)
    # Where there is no root, search for an attained value.
    wanted = xp.where(inside, target, slope(xp.zeros_like(target)))
    goal = scale_free(wanted, floor, ceiling)

    def excess(r: A) -> tuple[A, A]:
        value = slope(r)
        gap = scale_free(value, floor, ceiling) - goal
        return gap, scale_free_derivative(value, floor, ceiling) * slope_derivative(r)

    zero = xp.zeros_like(target)
    low, high = xp.where(inside, low, zero), xp.where(inside, high, zero)
    root = increasing_root(excess, low, high, 0.5 * (low + high))
    beyond = xp.where(target > floor, xp.full_like(root, math.inf), xp.full_like(root, -math.inf))
    return xp.where(inside, root, beyond)


def _inverse(kernel: Kernel) -> Function:
    def inverse(target: A) -> A:
        xp = array_namespace(target)
        high = xp.full_like(target, FARTHEST)
        parts = kernel.slope, kernel.slope_derivative
        with np.errstate(all="ignore"):
            return root_of_slope(*parts, target, kernel.floor, kernel.ceiling, -high, high)

    return inverse


def _exp(x: A) -> A:
    return array_namespace(x).exp(x)


def _expm1(x: A) -> A:
    return array_namespace(x).expm1(x)


def _one(x: A) -> A:
    return array_namespace(x).ones_like(x)


def log(x: A) -> A:
    """log on [0, ∞), −∞ at and below 0 (a slope under the floor)."""
    xp = array_namespace(x)
    return xp.log(xp.where(x > 0, x, xp.zeros_like(x)))


def _log1p(x: A) -> A:
    """log(1 + x), −∞ at and below −1."""
    xp = array_namespace(x)
    return xp.log1p(xp.where(x > -1, x, xp.full_like(x, -1.0)))


def _grown(x: A, change: A) -> A:
    """e^(x + change) − eˣ."""
    xp = array_namespace(x)
    small = xp.abs(change) < 1
    near = xp.exp(x) * xp.expm1(xp.where(small, change, 0 * x))
    return xp.where(small, near, xp.exp(x + change) - xp.exp(x))


def log1pexp(x: A) -> A:
    """log(1 + eˣ) without overflow."""
    xp = array_namespace(x)
    return xp.logaddexp(x, xp.zeros_like(x))  # torch has its derivative at 0, too


def _times_exp(r: A) -> A:
    """r eʳ, 0 at −∞."""
    xp = array_namespace(r)
    return xp.where(r == -math.inf, xp.zeros_like(r), r) * xp.exp(r)


def _clip(x: A, clip: float) -> A:
    """exp(min(x, clip)), which has no gradient beyond the clip."""
    xp = array_namespace(x)
    return xp.exp(xp.where(x > clip, xp.full_like(x, clip), x))


REVERSE_KL = Kernel(
    "reverse_kl",
    _times_exp,
    lambda r: r + 1,
    _one,
    lambda s: s - 1,
    weighted=lambda r, a, b: _exp(b) * r,
    # Eq. 52, whose right-hand side lacks a factor ½ (see its proof, Eq. 48).
    published=Published(lambda r, clip: r**2, 2.0),
)
FORWARD_KL = Kernel(
    "forward_kl",
    lambda r: -r,
    lambda r: -_exp(-r),
    lambda r: _exp(-r),
    lambda s: -log(-s),
    ceiling=0.0,
    weighted=lambda r, a, b: -r * _exp(a),
    published=Published(lambda r, clip: _clip(-r, clip)),  # Eq. 53
)
CHI2 = Kernel(
    "chi2",
    lambda r: 0.5 * (_exp(r) - 1) ** 2,
    lambda r: _exp(r) - 1,
    _exp,
    lambda s: log(1 + s),
    floor=-1.0,
    weighted=lambda r, a, b: 0.5 * (_exp(r + b) - 2 * _exp(b) + _exp(a)),
    published=Published(lambda r, clip: _clip(r, clip)),  # Eq. 54
)


def _js(r: A) -> A:
    """½ u log u − ½ (1 + u) log((1 + u)/2)."""
    mean = log1pexp(r) - math.log(2)
    return 0.5 * (_times_exp(r) - (1 + _exp(r)) * mean)


def _weighted_js(r: A, a: A, b: A) -> A:
    mean, pi = log1pexp(r) - math.log(2), _exp(b)
    return 0.5 * (pi * r - (_exp(a) + pi) * mean)


JS = Kernel(
    "js",
    _js,
    lambda r: 0.5 * (math.log(2) - log1pexp(-r)),
    lambda r: 0.5 * _exp(-log1pexp(r)),
    lambda s: 2 * s - log(2 - _exp(2 * s)),
    ceiling=0.5 * math.log(2),
    weighted=_weighted_js,
    shifted=Kernel(
        "js",
        lambda r: _js(r) - 0.5 * math.log(2) * _expm1(r),
        lambda r: -0.5 * log1pexp(-r),
        lambda r: 0.5 * _exp(-log1pexp(r)),
        lambda s: 2 * s - log(-_expm1(2 * s)),
        ceiling=0.0,
    ),
)


def _published_power(scale: float, a: float) -> Published:
    """An antiderivative of φ, up to a constant in φ, for scale times the α-divergence."""
    return Published(lambda r, clip: scale / (a - 1) * (_clip((a - 1) * r, clip) / (a - 1) - r))


HELLINGER = Kernel(
    "hellinger",
    lambda r: 0.5 * (_exp(0.5 * r) - 1) ** 2,
    lambda r: 0.5 * (1 - _exp(-0.5 * r)),
    lambda r: 0.25 * _exp(-0.5 * r),
    lambda s: -2 * log(1 - 2 * s),
    ceiling=0.5,
    weighted=lambda r, a, b: 0.5 * (_exp(b) - 2 * _exp(0.5 * (a + b)) + _exp(a)),
    published=_published_power(0.25, 0.5),
    shifted=Kernel(
        "hellinger",
        lambda r: -_expm1(0.5 * r),
        lambda r: -0.5 * _exp(-0.5 * r),
        lambda r: 0.25 * _exp(-0.5 * r),
        lambda s: -2 * log(-2 * s),
        ceiling=0.0,
    ),
)


@functools.cache
def alpha_kernel(a: float) -> Kernel:
    """f(u) = (uᵃ − au + a − 1)/(a(a − 1)); a = 2 is χ², a = ½ four times Hellinger.

    Raises InputError where a is 0 or 1: those limits are forward and reverse KL.
    """
    if a in (0.0, 1.0) or not math.isfinite(a):
        raise InputError(f"alpha:{a:g} is undefined: use forward_kl (a = 0) or reverse_kl (a = 1)")
    name, b = f"alpha:{a:.12g}", a - 1
    near, shifted = abs(b) < _NEAR_ONE, None
    if a > 2 or (a < 1 and not near):
        # Limits of 0 instead of −1/b: at a floor that matters for a > 2 only, where u^b vanishes
        # faster than u. For a near 1 the limit is far from all slopes, and large.
        shifted = Kernel(
            name,
            lambda r: _expm1(a * r) / (a * b),
            lambda r: _exp(b * r) / b,
            lambda r: _exp(b * r),
            lambda s: log(b * s) / b,
            floor=0.0 if a > 1 else -math.inf,
            ceiling=0.0 if a < 1 else math.inf,
        )

    def f(r: A) -> A:
        if not near:
            return (_exp(a * r) - a * _exp(r) + b) / (a * b)
        xp = array_namespace(r)
        finite = xp.where(r == -math.inf, xp.zeros_like(r), r)
        # (uᵃ − u)/(a − 1), which tends to u log u, is 0 at u = 0.
        return (xp.exp(r) * xp.expm1(b * finite) / b - xp.expm1(r)) / a

    def weighted(r: A, w: A, v: A) -> A:
        if not near:
            return (_exp(a * r + w) - a * _exp(v) + b * _exp(w)) / (a * b)
        return (_grown(v, b * r) / b - _exp(v) + _exp(w)) / a

    return Kernel(
        name,
        f,
        lambda r: _expm1(b * r) / b,
        lambda r: _exp(b * r),
        lambda s: _log1p(b * s) / b,
        floor=-math.inf if a < 1 else -1 / b,
        ceiling=math.inf if a > 1 else -1 / b,
        weighted=weighted,
        published=_published_power(1.0, a),
        shifted=shifted,
    )
