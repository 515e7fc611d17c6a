"""How games are played: divergences, update rules, exact equilibria, and the loop.

>>> from games import zoo
>>> from solvers import solve
>>> solve(zoo.get("rps"), "gmmd", tau=0.1, regularizer="chi2", eta=1.0).policy.round(3)
array([0.333, 0.333, 0.333])
"""

import games.startup  # noqa: F401 - first, for the time that the others take

# isort: split
from .divergences import Divergence, parse
from .gap import duality_gap
from .loop import Solution, Status, solve
from .plays import Measure, Plays
from .rules import RULES, UpdateRule, get_rule
from .steps import step
from .update import Update

__all__ = [
    "RULES",
    "Divergence",
    "Measure",
    "Plays",
    "Solution",
    "Status",
    "Update",
    "UpdateRule",
    "duality_gap",
    "get_rule",
    "parse",
    "solve",
    "step",
]
