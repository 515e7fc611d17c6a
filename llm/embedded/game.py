"""A game on a language model that can be enumerated: 2 prompts, responses of 3 of 5 symbols."""

from __future__ import annotations

from functools import cache

import numpy as np
from safetensors.numpy import load_file

from games import PreferenceGame
from llm.embedded import HERE

SYMBOLS = "abcde"
LENGTH = 3
PROMPTS = ("ab", "ba")


def responses() -> list[tuple[int, ...]]:
    """Token ids of all 125 responses."""
    return list(np.ndindex(*(len(SYMBOLS),) * LENGTH))


def number_of(text: str) -> int:
    """The index of a response in `responses`."""
    return int(np.ravel_multi_index([SYMBOLS.index(s) for s in text], (len(SYMBOLS),) * LENGTH))


@cache
def data() -> np.ndarray:
    """(2, 125): log-probabilities of the distribution of the chosen responses in answers.jsonl."""
    return load_file(HERE / "game" / "answers.safetensors")["logp_data"]


@cache
def preference() -> PreferenceGame:
    """One game per prompt, (2, 125, 125)."""
    stored = load_file(HERE / "game" / "preference.safetensors")["payoff"]
    return PreferenceGame(stored, name="embedded:game")
