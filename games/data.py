"""Self-play fine-tuning as a game: the policy imitates a data distribution."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from games.errors import InputError


@dataclass(frozen=True, eq=False)
class DataGame:
    """Target distribution (..., n) over responses, for SPIN and α-SPIN; there are no preferences.

    Raises InputError unless all entries are positive and each distribution sums to 1 within 1e-6.
    """

    data: np.ndarray = field(repr=False)
    name: str = ""

    kind: ClassVar[str] = "data"

    def __post_init__(self) -> None:
        data = np.asarray(self.data, dtype=float)
        if data.ndim == 0 or data.shape[-1] == 0 or not np.isfinite(data).all():
            raise InputError("the data distribution must be a non-empty vector of finite numbers")
        if (data <= 0).any() or (abs(data.sum(axis=-1) - 1) > 1e-6).any():
            raise InputError("the data distribution must have positive entries that sum to 1")
        data = data / data.sum(axis=-1, keepdims=True)
        data.setflags(write=False)
        object.__setattr__(self, "data", data)

    @property
    def n(self) -> int:
        return self.data.shape[-1]

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.data.shape[:-1]
