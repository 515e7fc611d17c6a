"""Where training examples come from.

    SelfPlay        K responses of π_t, every pair judged
    SelectedPairs   the best and the worst of K responses (`selection`)
    GivenPairs      a chosen and a rejected response from the dataset (`data.rejected`)
    Demonstrations  dataset responses vs. the policy's own samples (SPIN, α-SPIN)

A source checks a configuration, gives the responses of an iteration and the game that they form,
and states what they cost. No code outside this package tests which one it is.
"""

from __future__ import annotations

from llm.config.schema import TrainConfig
from llm.sources.base import Source
from llm.sources.demonstrations import Demonstrations
from llm.sources.given_pairs import GivenPairs
from llm.sources.selected_pairs import SelectedPairs
from llm.sources.self_play import SelfPlay
from solvers.rules import UpdateRule


def source_of(config: TrainConfig, rule: UpdateRule) -> Source:
    """The source of a configuration."""
    if rule.needs_data:
        return Demonstrations(config, rule)
    if config.data.rejected is not None:
        return GivenPairs(config, rule)
    if config.selection is not None:
        return SelectedPairs(config, rule)
    return SelfPlay(config, rule)
