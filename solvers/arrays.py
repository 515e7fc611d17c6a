"""The few array operations that numpy, torch and the array API standard do not share."""

from __future__ import annotations

import math
from typing import Any

from array_api_compat import array_namespace

# An array of numpy, torch or any library of the array API standard.
Array = Any


def logsumexp(x: Array, *, keepdims: bool = False) -> Array:
    """(..., n) -> (...,): log Σ exp(x) over the last axis; −∞ entries count for nothing."""
    xp = array_namespace(x)
    top = xp.max(x, axis=-1, keepdims=True)
    shift = xp.where(xp.isfinite(top), top, xp.zeros_like(top))
    total = xp.log(xp.sum(xp.exp(x - shift), axis=-1, keepdims=True)) + shift
    return total if keepdims else xp.squeeze(total, axis=-1)


def normalize(theta: Array) -> Array:
    """(..., n) -> (..., n): the log-probabilities ∝ exp(theta)."""
    return theta - logsumexp(theta, keepdims=True)


def dot(weights: Array, values: Array) -> Array:
    """(..., n), (..., n) -> (...,): Σ weights · values, a zero weight silences an infinity."""
    xp = array_namespace(weights, values)
    return xp.sum(xp.where(weights == 0, xp.zeros_like(weights), weights * values), axis=-1)


def log_mixture(first: Array, second: Array, share: float) -> Array:
    """(...,), (...,) -> (...,): (1 − share)·first + share·second, for log-probabilities or logits.

    The geometric mixture before normalization. With share 0 it is `first` itself, also where
    `second` is −∞.
    """
    return first if share == 0 else (1 - share) * first + share * second


def against(payoff: Array, weights: Array) -> Array:
    """(..., n, m), (..., m) -> (..., n): the payoff of each action against a mixed opponent."""
    return (payoff @ weights[..., None])[..., 0]


def uniform(like: Array) -> Array:
    """(..., n) -> (..., n): log-probabilities of the uniform policy."""
    xp = array_namespace(like)
    return xp.full_like(like, -math.log(like.shape[-1]))


def increasing_root(function: Any, low: Array, high: Array, start: Array) -> Array:
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
