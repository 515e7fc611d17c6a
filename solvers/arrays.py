"""The few array operations that numpy, torch and the array API standard do not share."""

from __future__ import annotations

import math
from typing import Any, Protocol, TypeVar

from array_api_compat import array_namespace


class Array(Protocol):
    """An array of numpy, torch or any library of the array API standard.

    The operators that the formulas use; their results depend on the library.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of the axes."""
        ...

    @property
    def dtype(self) -> Any:
        """The type of the entries."""
        ...

    @property
    def ndim(self) -> int:
        """The number of axes."""
        ...

    @property
    def size(self) -> Any:
        """The number of entries (numpy) or a method for the shape (torch)."""
        ...

    def __array__(self) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...
    def __len__(self) -> int: ...
    def __neg__(self) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __radd__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __rsub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...
    def __rtruediv__(self, other: Any, /) -> Any: ...
    def __pow__(self, other: Any, /) -> Any: ...
    def __matmul__(self, other: Any, /) -> Any: ...
    def __lt__(self, other: Any, /) -> Any: ...
    def __le__(self, other: Any, /) -> Any: ...
    def __gt__(self, other: Any, /) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...
    def __bool__(self) -> bool: ...
    def __float__(self) -> float: ...


# Functions return an array of the library, and so of the type, that they are given.
A = TypeVar("A", bound=Array)


def logsumexp(x: A, *, keepdims: bool = False) -> A:
    """(..., n) -> (...,): log Σ exp(x) over the last axis; −∞ entries count for nothing."""
    xp = array_namespace(x)
    top = xp.max(x, axis=-1, keepdims=True)
    shift = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.log(xp.sum(xp.exp(x - shift), axis=-1, keepdims=True)) + shift
    return total if keepdims else xp.squeeze(total, axis=-1)


def normalize(theta: A) -> A:
    """(..., n) -> (..., n): the log-probabilities ∝ exp(theta)."""
    return theta - logsumexp(theta, keepdims=True)


def dot(weights: A, values: A) -> A:
    """(..., n), (..., n) -> (...,): Σ weights · values, a zero weight silences an infinity."""
    xp = array_namespace(weights, values)
    return xp.sum(xp.where(weights == 0, xp.zeros_like(weights), weights * values), axis=-1)


def log_mixture(first: A, second: A, share: float) -> A:
    """(...,), (...,) -> (...,): (1 − share)·first + share·second, for log-probabilities or logits.

    The geometric mixture before normalization. With share 0 it is `first` itself, also where
    `second` is −∞.
    """
    return first if share == 0 else (1 - share) * first + share * second


def against(payoff: A, weights: A) -> A:
    """(..., n, m), (..., m) -> (..., n): the payoff of each action against a mixed opponent."""
    return (payoff @ weights[..., None])[..., 0]


def uniform(like: A) -> A:
    """(..., n) -> (..., n): log-probabilities of the uniform policy."""
    xp = array_namespace(like)
    return xp.full_like(like, -math.log(like.shape[-1]))


def increasing_root(function: Any, low: A, high: A, start: A) -> A:
    """Zeros of increasing functions, elementwise, by Newton's method inside a bracket.

    `function(x) -> (value, derivative)` of one shape; value(low) ≤ 0 ≤ value(high). A Newton step
    that leaves the bracket, or that follows one which did not halve it, is replaced by bisection:
    at most two evaluations per halving, and quadratic convergence near the zero.
    """
    xp = array_namespace(low, high, start)
    x, tolerance = start, 4 * xp.finfo(start.dtype).eps
    width = high - low
    for _ in range(200):
        value, derivative = function(x)
        low = xp.where(value <= 0, x, low)
        high = xp.where(value >= 0, x, high)
        newton = x - value / derivative
        halved = (high - low) <= 0.5 * width
        inside = (newton > low) & (newton < high)
        # Close to the zero Newton moves one end only: its own step is the measure.
        small = xp.abs(newton - x) <= 0.25 * (high - low)
        moved = xp.where(inside & (halved | small), newton, 0.5 * (low + high))
        moved = xp.where(xp.abs(value) <= tolerance, x, moved)
        width = high - low
        done = xp.abs(moved - x) <= tolerance * xp.abs(x)
        x = moved
        if bool(xp.all(done)):
            break
    return x
