"""What to change in a table that is not a valid game of the requested kind."""

from __future__ import annotations

import numpy as np

from games.checks import with_diagonal

COUNT_FIRST = "count a list of matches first: one row and column per player"
NO_DATA = "if a pair has no data, leave one of the two out, or give win counts and a prior"
ROUNDING = 0.01  # largest error of a pair sum that is taken for rounding


def advice(table: np.ndarray, kind: str) -> str:
    """The end of an error message about a refused table: "; ..." or an empty string."""
    hint = _advice(table, kind) if table.size else ""
    return f"; {hint}" if hint else ""


def _advice(table: np.ndarray, kind: str) -> str:
    if table.ndim < 2 or kind == "zero_sum":
        return ""
    m, n = table.shape[-2:]
    if m != n:
        return COUNT_FIRST if kind == "wins" else _rectangular(table)
    finite = np.isfinite(_pairs(with_diagonal(table, 0.0))).all()
    if kind == "preference" and _adds_up_to(table, 1.0) and _within(table, 0, 1):
        return "set the diagonal to 0.5"
    if triangle := _triangle(table):
        missing = {"preference": "1 - P", "skew": "-A", "wins": "the other counts"}[kind]
        return f"only one triangle is filled: fill in the {triangle} one ({missing}, transposed)"
    if not finite:
        return NO_DATA if kind == "preference" and not np.isinf(table).any() else ""
    if kind == "preference":
        return _for_preference(table)
    if kind == "skew":
        return _for_skew(table)
    fits = _adds_up_to(table, 1.0) and _within(table, 0, 1)
    return "the file fits --as preference" if fits else ""


def _rectangular(table: np.ndarray) -> str:
    m, n = table.shape[-2:]
    whole = table == np.round(table)
    if n == m + 1 and whole[..., 0].all() and not whole[..., 1:].all():
        return "the first column looks like an index: delete it"
    if m == n + 1 and whole[..., 0, :].all() and not whole[..., 1:, :].all():
        return "the first row looks like a header: delete it"
    return "the file fits --as zero_sum" if np.isfinite(table).all() else ""


def _for_preference(table: np.ndarray) -> str:
    if _adds_up_to(table, 100.0, 0.5) and _within(table, 0, 100):
        return "these look like percentages: divide by 100"
    if _is_skew(table):
        return "the file fits --as skew"
    if _is_counts(table):
        return "the file fits --as wins"
    if _adds_up_to(table, 1.0, ROUNDING) and _within(table, 0, 1):
        return "the table seems to be rounded: use more digits, or average P and 1 - P transposed"
    if not _within(table, 0, 1):
        return "payoffs of a row player are read --as zero_sum"
    return ""


def _for_skew(table: np.ndarray) -> str:
    if _adds_up_to(table, 1.0) and _within(table, 0, 1):
        return "the file fits --as preference"
    if _adds_up_to(table, 0.0, 1e-6 * _largest(table)):
        return "set the diagonal to 0"
    if _adds_up_to(table, 0.0, ROUNDING * _largest(table)):
        return "the table seems to be rounded: use more digits, or average A and -A transposed"
    if _is_counts(table):
        return "the file fits --as wins"
    return "payoffs of a row player are read --as zero_sum"


def _triangle(table: np.ndarray) -> str:
    """Which triangle is zero or missing while the other one is not."""
    empty = np.isnan(table) | (table == 0)
    n = table.shape[-1]
    lower, upper = np.tril_indices(n, -1), np.triu_indices(n, 1)
    for side, these, others in (("lower", lower, upper), ("upper", upper, lower)):
        if n > 1 and empty[..., *these].all() and not empty[..., *others].any():
            return side
    return ""


def _pairs(table: np.ndarray) -> np.ndarray:
    """(..., n, n) -> (..., n (n - 1)): the entries off the diagonal."""
    return table[..., ~np.eye(table.shape[-1], dtype=bool)]


def _adds_up_to(table: np.ndarray, total: float, tolerance: float = 1e-6) -> bool:
    """Whether the pairs off the diagonal add up to the total."""
    with np.errstate(over="ignore", invalid="ignore"):
        sums = _pairs(table + table.swapaxes(-1, -2))
    return sums.size > 0 and bool((np.abs(sums - total) <= tolerance).all())


def _within(table: np.ndarray, low: float, high: float) -> bool:
    pairs = _pairs(table)
    return bool(((pairs >= low) & (pairs <= high)).all())


def _is_skew(table: np.ndarray) -> bool:
    diagonal = np.diagonal(table, axis1=-2, axis2=-1)
    return _adds_up_to(table, 0.0, 1e-6 * _largest(table)) and not (diagonal != 0).any()


def _is_counts(table: np.ndarray) -> bool:
    """Whether the table can hold win counts: whole numbers ≥ 0 with an empty diagonal."""
    diagonal = np.diagonal(table, axis1=-2, axis2=-1)
    pairs = _pairs(table)
    whole = pairs.size > 0 and (pairs >= 0).all() and (pairs == np.round(pairs)).all()
    return bool(whole and not (np.nan_to_num(diagonal) != 0).any() and pairs.any())


def _largest(table: np.ndarray) -> float:
    return float(np.abs(_pairs(table)).max(initial=0.0))
