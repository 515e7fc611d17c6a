"""Linear algebra of zero-sum games: skew-symmetric tables K and the resolvents (diag 1/h − K)⁻¹.

A symmetric game has K = payoff − value; a game of two players has K = [[0, A], [−Aᵀ, 0]] on the
stacked policies (x, y). Arrays carry the batch last, (N, B): numpy then runs along the games.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.linalg import get_lapack_funcs

Solve = Callable[[np.ndarray], np.ndarray]

_getrf, _getrs, _potrf, _potrs = get_lapack_funcs(("getrf", "getrs", "potrf", "potrs"), dtype=float)


def pick(array: np.ndarray, games: np.ndarray) -> np.ndarray:
    """(..., B) -> (..., b): array[..., games] by mask or index, but contiguous."""
    return array.take(np.flatnonzero(games) if games.dtype == bool else games, axis=-1)


@dataclass(frozen=True)
class Skew:
    """K by all of its entries, (n, n, B)."""

    payoff: np.ndarray

    def __matmul__(self, z: np.ndarray) -> np.ndarray:
        """(n, B) -> (n, B): K z."""
        return _product(self.payoff, z[:, None])[:, 0]

    def __getitem__(self, games: np.ndarray) -> Skew:
        return Skew(pick(self.payoff, games))

    @property
    def whole(self) -> Skew:
        """K by all of its entries."""
        return self

    def restricted(self, support: np.ndarray) -> Skew:
        """(n,) -> K on the support alone."""
        return Skew(self.payoff[np.ix_(support, support)])

    def resolvent(self, h: np.ndarray) -> Solve:
        """(n, B) ≥ 0 -> the map (n, k, B) -> (n, k, B): r ↦ (diag 1/h − K)⁻¹ r, 0 where h is.

        The matrix is positive definite: never singular. Scaled by √h on both sides it pivots well.
        """
        if h.shape[1] > 1:  # without pivoting, scaling the columns is as good
            solve = _factored(_plus_identity(self.payoff * -h))
            return lambda r: h[:, None] * solve(r)
        root = np.sqrt(h)
        matrix = self.payoff * -root
        matrix *= root[:, None]
        solve = _factored(_plus_identity(matrix))
        return lambda r: root[:, None] * solve(root[:, None] * r)


@dataclass(frozen=True)
class Bipartite:
    """K = [[0, A], [−Aᵀ, 0]] by its block A, (m, n, B).

    A resolvent goes through the Schur complement of one player: a symmetric matrix of half the
    size, but of the square of the condition number. Where h spans more than some eight orders of
    magnitude, `whole` is needed.
    """

    payoff: np.ndarray

    def __matmul__(self, z: np.ndarray) -> np.ndarray:
        """(m + n, B) -> (m + n, B): K z."""
        return self._times(z[:, None])[:, 0]

    def __getitem__(self, games: np.ndarray) -> Bipartite:
        return Bipartite(pick(self.payoff, games))

    def restricted(self, support: np.ndarray) -> Skew:
        """(m + n,) -> K on the support alone."""
        return Bipartite(self.payoff[np.ix_(*self._split(support))]).whole

    @property
    def whole(self) -> Skew:
        """K by all of its entries."""
        m, n, batch = self.payoff.shape
        table = np.zeros((m + n, m + n, batch))
        table[:m, m:] = self.payoff
        table[m:, :m] = -self.payoff.swapaxes(0, 1)
        return Skew(table)

    def resolvent(self, h: np.ndarray) -> Solve:
        """(m + n, B) ≥ 0 -> the map (m + n, k, B) -> (m + n, k, B): r ↦ (diag 1/h − K)⁻¹ r."""
        m, n, _ = self.payoff.shape
        root_x, root_y = self._split(np.sqrt(h))
        scaled = self.payoff * root_x[:, None] * root_y
        if m < n:
            scaled = scaled.swapaxes(0, 1)
        solve = _factored(_plus_identity(_product(scaled.swapaxes(0, 1), scaled)), symmetric=True)
        few, root = (slice(m), root_x) if m < n else (slice(m, None), root_y)

        def solution(r: np.ndarray) -> np.ndarray:
            first = h[:, None] * r
            x = np.zeros_like(first)
            x[few] = root[:, None] * solve(root[:, None] * (r + self._times(first))[few])
            rest = first + h[:, None] * self._times(x)
            rest[few] = x[few]
            return rest

        return solution

    def _times(self, z: np.ndarray) -> np.ndarray:
        x, y = self._split(z)
        return np.concatenate([_product(self.payoff, y), -_product(self.payoff.swapaxes(0, 1), x)])

    def _split(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        m = len(self.payoff)
        return z[:m], z[m:]


@dataclass(frozen=True)
class Simplices:
    """The sizes of the blocks of stacked policies: (n,) for one policy, (m, n) for a pair."""

    sizes: tuple[int, ...]

    @cached_property
    def blocks(self) -> np.ndarray:
        """(N, q): which block each action is in, as columns of zeros and ones."""
        return np.repeat(np.eye(len(self.sizes)), self.sizes, axis=0)

    def total(self, z: np.ndarray) -> np.ndarray:
        """(N, ...) -> (q, ...): the sum over each block."""
        if len(self.sizes) == 1:
            return z.sum(axis=0, keepdims=True)
        return np.stack([block.sum(axis=0) for block in self.split(z)])

    def spread(self, values: np.ndarray) -> np.ndarray:
        """(q, ...) -> what broadcasts to (N, ...): one value for all of a block."""
        return values if len(self.sizes) == 1 else np.repeat(values, self.sizes, axis=0)

    def split(self, z: np.ndarray) -> list[np.ndarray]:
        """(N, ...) -> the blocks."""
        first = self.sizes[0]
        return [z] if len(self.sizes) == 1 else [z[:first], z[first:]]


class TangentResolvent:
    """Solves x/h − K x + spread(ν) = r for (x, ν) with total(x) = 0; `first` is the first r's."""

    def __init__(
        self, skew: Skew | Bipartite, simplices: Simplices, h: np.ndarray, r: np.ndarray
    ) -> None:
        self._solve, self._total = skew.resolvent(h), simplices.total
        columns = np.empty((len(r), 1 + len(simplices.sizes), r.shape[1]))
        columns[:, 0] = r
        columns[:, 1:] = simplices.blocks[..., None]
        x = self._solve(columns)
        self._border = x[:, 1:]
        self._solve_border = _factored(self._total(self._border))
        self.first = self._projected(x[:, :1])

    def __call__(self, r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, B) -> (N, B), (q, B)."""
        return self._projected(self._solve(r[:, None]))

    def _projected(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        nu = self._solve_border(self._total(x))
        return (x - _product(self._border, nu))[:, 0], nu[:, 0]


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """(m, n, B), (n, k, B) -> (m, k, B): a product of matrices for each game."""
    if left.shape[-1] == 1:
        return (left[..., 0] @ right[..., 0])[..., None]
    result = left[:, :1] * right[:1]
    for j in range(1, left.shape[1]):
        result += left[:, j, None] * right[j]
    return result


def _plus_identity(matrix: np.ndarray) -> np.ndarray:
    diagonal = np.arange(len(matrix))
    matrix[diagonal, diagonal] += 1.0
    return matrix


def _factored(matrix: np.ndarray, symmetric: bool = False) -> Solve:
    """(n, n, B) -> the map (n, k, B) -> (n, k, B): r ↦ matrix⁻¹ r. Overwrites the matrix.

    One game by LAPACK. Many at once by elimination without pivoting, along the batch: the matrices
    are positive definite, so that no pivot is 0.
    """
    if len(matrix) == 1:
        return lambda r: r / matrix
    if matrix.shape[-1] == 1 and symmetric:
        factor, _ = _potrf(matrix[..., 0].T, overwrite_a=True)
        return lambda r: _potrs(factor, r[..., 0])[0][..., None]
    if matrix.shape[-1] == 1:
        lu, pivots, _ = _getrf(matrix[..., 0].T, overwrite_a=True)
        return lambda r: _getrs(lu, pivots, r[..., 0], trans=1)[0][..., None]
    for k in range(len(matrix) - 1):
        matrix[k + 1 :, k] /= matrix[k, k]
        matrix[k + 1 :, k + 1 :] -= matrix[k + 1 :, k, None] * matrix[k, k + 1 :]

    def solution(r: np.ndarray) -> np.ndarray:
        x = r.copy()
        for k in range(len(x) - 1):
            x[k + 1 :] -= matrix[k + 1 :, k, None] * x[k]
        for k in reversed(range(len(x))):
            x[k] /= matrix[k, k]
            x[:k] -= matrix[:k, k, None] * x[k]
        return x

    return solution
