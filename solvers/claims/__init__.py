"""The claims ledger: statements of the papers, each with a function that measures it.

`claims()` loads all of them. To add one, write a function under `@claim` (see `ledger`) in the
module of its paper.
"""

from __future__ import annotations

import importlib

from .ledger import CLAIMS, Claim, Finding, Row, Setting, Verdict

# What enters claims, in the order of the ledger.
MODULES = ("rspo", "inpo", "nash_md", "alpha_spin", "no_regret")


def claims() -> list[Claim]:
    """Every claim, in the order of the ledger."""
    for module in MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return sorted(CLAIMS, key=lambda claim: MODULES.index(claim.module))


__all__ = ["MODULES", "Claim", "Finding", "Row", "Setting", "Verdict", "claims"]
