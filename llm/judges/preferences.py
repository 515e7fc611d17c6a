"""Checks of preference tables, and making them exactly complementary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

# With fewer pairs of different responses, equal values for all of them may be a coincidence.
FEWEST_PAIRS = 6
# Admits tables computed in float32, as in games.PreferenceGame.
TOLERANCE = 1e-6


class JudgeError(RuntimeError):
    """A judge failed during a run: one line that names the judge and the fix."""


def check_preferences(
    preferences: np.ndarray, name: str, responses: Sequence[Sequence[str]] | None = None
) -> None:
    """(B, K, K) -> None: rejects a degenerate judge, which gives all pairs the same preference.

    Pairs of equal `responses` are ignored; fewer than `FEWEST_PAIRS` pairs are always accepted.

    Raises:
        JudgeError: the same value (to 1e-6) for every pair, or an invalid table (`complementary`).
    """
    preferences = complementary(preferences, np.shape(preferences), name)
    counted = _above_diagonal(preferences.shape)
    if responses is not None:
        texts = np.array([list(row) for row in responses], dtype=object)
        counted = counted & (texts[:, :, None] != texts[:, None, :])
    values = preferences[counted]
    if values.size >= FEWEST_PAIRS and np.ptp(values) <= 1e-6:
        raise JudgeError(
            f"judge {name}: returned {values[0]:.6g} for all {values.size} pairs; check that the "
            "checkpoint is of this kind and has its trained head, and that responses are not empty"
        )


def complementary(values: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """(B, K, K) -> (B, K, K) float64: a judge's table, checked, with P + P^T = 1 made exact.

    Raises:
        JudgeError: not numbers, wrong shape, NaN, outside [0, 1], or |P + P^T - 1| > 1e-6 (two
            units of rounding at 1 where the table has a dtype of less precision).
    """
    allowed = max(TOLERANCE, 2 * _precision(values))
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double()  # numpy has no bfloat16
    try:
        table = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise JudgeError(
            f"judge {name}: did not return an array of numbers; its shape must be {shape}"
        ) from error
    if table.shape != shape or len(shape) != 3 or shape[-1] != shape[-2]:
        raise JudgeError(
            f"judge {name}: returned shape {table.shape}; expected (B, K, K), here {shape}"
        )
    if not np.isfinite(table).all():
        raise JudgeError(f"judge {name}: returned NaN or infinity; return numbers in [0, 1]")
    if table.size and (table.min() < 0 or table.max() > 1):
        worst = table.flat[np.abs(table - 0.5).argmax()]
        raise JudgeError(
            f"judge {name}: returned {worst:.6g}; return probabilities in [0, 1] (for logits, "
            "their sigmoid)"
        )
    transposed = table.swapaxes(-1, -2)
    if np.abs(table + transposed - 1).max(initial=0) > allowed:
        raise JudgeError(
            f"judge {name}: P + P^T is not 1; return (P + 1 - P^T) / 2, the average of both orders"
        )
    return exact(0.5 + (table - transposed) / 2)


def _precision(values: Any) -> float:
    """The distance from 1 to the next number of a table's dtype; 0 for other values."""
    if isinstance(values, torch.Tensor):
        return torch.finfo(values.dtype).eps if values.dtype.is_floating_point else 0.0
    floats = isinstance(values, np.ndarray) and np.issubdtype(values.dtype, np.floating)
    return float(np.finfo(values.dtype).eps) if floats else 0.0


def exact(preferences: np.ndarray) -> np.ndarray:
    """(B, K, K) -> (B, K, K): entries below the diagonal become 1 minus those above it."""
    above = _above_diagonal(preferences.shape)
    below = above.swapaxes(-1, -2)
    complement = 1 - preferences.swapaxes(-1, -2)
    return np.where(above, preferences, np.where(below, complement, 0.5))


def _above_diagonal(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.triu(np.ones(shape[-2:], bool), 1), shape)
