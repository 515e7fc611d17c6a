"""Judges whose game is known: (B prompts, B × K responses) -> (B, K, K) preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from games import PreferenceGame, zoo
from games.errors import InputError
from llm.embedded import game as enumerable
from llm.embedded import grammar

Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]

# Rock, paper, scissors: plain beats list, list beats story, story beats plain; what is none of them
# loses to all.
STYLE_GAME = PreferenceGame(
    np.array(
        [
            [0.50, 0.95, 0.05, 0.95],
            [0.05, 0.50, 0.95, 0.95],
            [0.95, 0.05, 0.50, 0.95],
            [0.05, 0.05, 0.05, 0.50],
        ]
    ),
    labels=(*grammar.STYLES, "other"),
    name="styles",
)


def styles(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Prefers by style alone, in a circle."""
    kinds = style_table(prompts, responses)
    return STYLE_GAME.payoff[kinds[:, :, None], kinds[:, None, :]]


def style_table(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """(B, K): the style of each response, as a number."""
    return np.array(
        [
            [grammar.style_of(prompt, text) for text in row]
            for prompt, row in zip(prompts, responses, strict=True)
        ]
    )


def length(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Bradley-Terry with the number of words as reward, whatever they say: a judge to be gamed."""
    words = np.array([[len(text.split()) for text in row] for row in responses])
    return zoo.bradley_terry(words / 10).payoff


def game(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """The preference of the enumerable game."""
    played = np.array([[enumerable.number_of(text) for text in row] for row in responses])
    payoff = enumerable.preference().payoff[[enumerable.PROMPTS.index(p) for p in prompts]]
    each = np.arange(len(prompts))[:, None, None]
    return payoff[each, played[:, :, None], played[:, None, :]]


JUDGES: dict[str, Judge] = {"game": game, "styles": styles, "length": length}


def embedded_judge(name: str | None) -> Judge:
    """The judge of that name."""
    if name not in JUDGES:
        raise InputError(f"judge.path={name}: embedded judges are {', '.join(JUDGES)}")
    return JUDGES[name]
