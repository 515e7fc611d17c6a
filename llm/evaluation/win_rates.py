"""Win rates of several policies against each other: exact on an enumerated game, else judged."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from games import PreferenceGame
from games.errors import InputError
from llm.data.examples import Prompt
from llm.evaluation.statistics import over_prompts
from llm.judges.model import Judge
from llm.judges.stored import judge_responses
from llm.sampling.responses import Responses
from llm.storage.chunks import Work
from llm.storage.directory import RunDirectory
from llm.storage.files import read_rows
from solvers import duality_gap


@dataclass(frozen=True)
class WinRates:
    """Win rates of n policies against each other.

    win_rate        (n, n): of the row over the column
    standard_error  (n, n): over the prompts; None where win rates are exact
    gaps            (n,): duality gaps of the game without a regularizer; None where it is unknown
    """

    win_rate: np.ndarray
    standard_error: np.ndarray | None = None
    gaps: np.ndarray | None = None


def exact_win_rates(game: PreferenceGame, policies: Sequence[np.ndarray]) -> WinRates:
    """Log-probabilities (prompts, n) of each policy -> π_a′ P π_b, averaged over the prompts."""
    each = np.exp(np.stack(policies, axis=-2))
    wins = each @ game.payoff @ np.swapaxes(each, -1, -2)
    gaps = [np.mean(duality_gap(game, logp)) for logp in policies]
    return WinRates(wins.mean(axis=0), gaps=np.array(gaps))


def sampled_win_rates(
    work: Work, directory: Path, judge: Judge, played: Sequence[Responses]
) -> WinRates:
    """Responses of each policy to the same prompts -> mean preferences with their errors.

    Judged pairs are stored under a hash of their texts: a policy that is added later costs only the
    comparisons with it.
    """
    wins = np.full((len(played), len(played)), 0.5)
    errors = np.zeros_like(wins)
    for a, one in enumerate(played):
        for b, two in enumerate(played[:a]):
            both = [ours + theirs for ours, theirs in zip(one.texts, two.texts, strict=True)]
            name = hashlib.sha256(repr(both).encode()).hexdigest()[:16]
            preference = judge_responses(work, directory / name, judge, one.prompts, both)
            k = one.logp.shape[1]
            wins[a, b], errors[a, b] = over_prompts(preference[:, :k, k:])
            wins[b, a], errors[b, a] = 1 - wins[a, b], errors[a, b]
    return WinRates(wins, errors)


def evaluation_responses(run: RunDirectory, t: int | None, prompts: Sequence[Prompt]) -> Responses:
    """The stored responses that iterate t of a run was evaluated on; t = None: those of μ.

    Raises InputError where they answer other prompts.
    """
    start = run.path / "reference" / "evaluation"
    stored = start if t is None else run.iteration(t) / "evaluation" / "responses"
    rows = [r for file in sorted(stored.glob("*.jsonl")) for r in read_rows(file)]
    if [row["prompt"] for row in rows] != [prompt.text for prompt in prompts]:
        raise InputError(f"{stored}: answers other prompts than the other recipes' runs")
    return Responses(prompts, rows)
