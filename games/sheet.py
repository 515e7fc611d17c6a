"""The contents of a file before they are a game."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from games.checks import Labels


@dataclass(frozen=True, eq=False)
class Sheet:
    """A table and what may come with it in a file.

    ties, losses  counts under keys such as "draws" and "losses"
    others        keys of further tables, whose meaning is unknown
    """

    table: np.ndarray
    row_labels: Labels = None
    column_labels: Labels = None
    ties: np.ndarray | None = None
    losses: np.ndarray | None = None
    others: tuple[str, ...] = ()
