"""Judges with a known game: (B prompts, B × K responses) -> (B, K, K) preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from games import PreferenceGame, zoo
from games.errors import InputError
from games.lookup import suggestion
from llm.embedded import game as enumerable
from llm.embedded import grammar
from llm.judges.function import FunctionJudge

PreferenceFunction = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]

# Rock-paper-scissors: plain beats list, list beats story, story beats plain; a response in none of
# the styles loses to all of them.
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
    """Preferences that depend only on the style, and are cyclic."""
    kinds = style_table(prompts, responses)
    return STYLE_GAME.payoff[kinds[:, :, None], kinds[:, None, :]]


def style_table(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """B prompts, B × K responses -> (B, K): the index of the style of each response."""
    return np.array(
        [
            [grammar.style_of(prompt, text) for text in row]
            for prompt, row in zip(prompts, responses, strict=True)
        ]
    )


def length(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Bradley-Terry with the number of words as the reward: a deliberately exploitable judge."""
    words = np.array([[len(text.split()) for text in row] for row in responses])
    return zoo.bradley_terry(words / 10).payoff


def game(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """The preferences of the enumerable game."""
    played = np.array([[enumerable.number_of(text) for text in row] for row in responses])
    payoff = enumerable.preference().payoff[[enumerable.PROMPTS.index(p) for p in prompts]]
    each = np.arange(len(prompts))[:, None, None]
    return payoff[each, played[:, :, None], played[:, None, :]]


JUDGES: dict[str, PreferenceFunction] = {"game": game, "styles": styles, "length": length}


class EmbeddedJudge(FunctionJudge):
    """A judge of this module, by its name in JUDGES."""

    def __init__(self, name: str | None) -> None:
        super().__init__(embedded_judge(name))
        self.name = f"embedded {name}"


def embedded_judge(name: str | None) -> PreferenceFunction:
    """The judge with this name. Raises InputError."""
    if name not in JUDGES:
        hint = suggestion(name, JUDGES)
        raise InputError(f"judge.path={name}: unknown embedded judge; {hint}")
    return JUDGES[name]
