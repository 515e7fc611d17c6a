"""Judges of tone: callables for `judge.path` that need no weights and no network.

They prefer the more positive response, by a lexicon: `vader` by the rules of VADER (Hutto and
Gilbert, 2014), `afinn` by the word list of AFINN (Nielsen, 2011). The two lexicons were made by
different people, so that one can be trained on and the other held out. `panel` adds two criteria
and takes their majority, which makes it intransitive.

A lexicon knows words, not meaning: these judges show how training behaves on a real model, not what
a good response is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from games import zoo
from games.errors import InputError

try:
    from afinn import Afinn
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
except ImportError as error:
    raise InputError(
        f"judge.path: llm.judges.sentiment needs {error.name}; pip install 'nashplay[sentiment]'"
    ) from error

Responses = Sequence[Sequence[str]]

# P(y ≻ y′) = σ(slope · difference of scores). With these slopes the difference between a neutral
# and a clearly positive response of some thirty words gives P of about 0.9.
VADER_SLOPE = 4.0
AFINN_SLOPE = 15.0


@cache
def _vader() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


@cache
def _afinn() -> Afinn:
    return Afinn()


def vader_score(text: str) -> float:
    """VADER's compound score in [-1, 1]: the sum of valences, squashed. It grows with length."""
    return float(_vader().polarity_scores(text)["compound"])


def afinn_score(text: str) -> float:
    """Mean valence per word, in [-5, 5], by AFINN: it does not grow with length."""
    return _afinn().score(text) / max(1, len(text.split()))


def vader(prompts: Sequence[object], responses: Responses) -> np.ndarray:
    """B prompts, B × K responses -> (B, K, K): Bradley-Terry with VADER's compound score."""
    return zoo.bradley_terry(VADER_SLOPE * _scores(responses, vader_score)).payoff


def afinn(prompts: Sequence[object], responses: Responses) -> np.ndarray:
    """B prompts, B × K responses -> (B, K, K): Bradley-Terry with AFINN's mean valence."""
    return zoo.bradley_terry(AFINN_SLOPE * _scores(responses, afinn_score)).payoff


def panel(prompts: Sequence[object], responses: Responses) -> np.ndarray:
    """B prompts, B × K responses -> (B, K, K): the share of three criteria on which one is better.

    The criteria are a positive tone (VADER), brevity (words) and variety (share of different
    words); a tie on one counts half. A majority of transitive criteria need not be transitive
    (Condorcet).
    """
    criteria = (vader_score, lambda text: -len(text.split()), _variety)
    tables = [_scores(responses, criterion) for criterion in criteria]
    wins = [0.5 + 0.5 * np.sign(table[:, :, None] - table[:, None, :]) for table in tables]
    return np.mean(wins, axis=0)


def _variety(text: str) -> float:
    words = text.lower().split()
    return len(set(words)) / max(1, len(words))


def _scores(responses: Responses, score: Callable[[str], float]) -> np.ndarray:
    return np.array([[score(text) for text in row] for row in responses], dtype=float)
