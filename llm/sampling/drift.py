"""How far an engine's own log-probabilities are from those that the policy computes.

An engine runs its own kernels, batches and precision, so that it samples from a distribution close
to π_t, not from π_t itself. The drift of a token is the engine's log-probability of it minus the
policy's, in nats. With truncation (`sample.top_k`, `sample.top_p`) the engine's is that of the
truncated distribution, and the drift contains the mass that was cut off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from llm.storage.files import Record, read_rows

FIELD = "drift"  # of a stored row: K lists, a number for each token
DIGITS = 6  # of the stored differences: 1e-6 is below float32's own rounding of a token


def differences(
    engine: Sequence[Sequence[float]], policy: Sequence[Sequence[float]]
) -> list[list[float]]:
    """K responses: log-probabilities of their tokens, twice -> the drift of each token."""
    return [
        [round(theirs - ours, DIGITS) for theirs, ours in zip(one, other, strict=True)]
        for one, other in zip(engine, policy, strict=True)
    ]


def drift_of(rows: Sequence[Record]) -> np.ndarray:
    """(N,): the drift of all tokens of stored rows; empty where none is recorded."""
    found = [value for row in rows for each in row.get(FIELD, ()) for value in each]
    return np.array(found, dtype=np.float64)


def stored_drift(directory: Path) -> np.ndarray:
    """(N,): the drift of all tokens in the chunks of a stage."""
    chunks = sorted(directory.glob("*.jsonl"))
    return drift_of([row for chunk in chunks for row in read_rows(chunk)])
