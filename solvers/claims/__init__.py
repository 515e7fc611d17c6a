"""The claims ledger: statements of the papers, each with a function that tests it numerically.

This package is not part of the solver library: nothing in `solvers` imports it except the command
`python -m solvers claims`, which writes CLAIMS.md. Its modules are

    ledger        Claim, Finding, Setting and the decorator `@claim`
    instances     random games and policies on which several papers' statements are tested
    report        the ledger as a table, as Markdown and as a figure
    parser        arguments of the command
    command       the command
    rspo, inpo, nash_md, alpha_spin, no_regret
                  the statements, one module (or package) per paper

`claims()` returns all of them. To add one, write a function decorated with `@claim` in the module
of its paper.
"""

from __future__ import annotations

import importlib

from .ledger import CLAIMS, Claim, Entry, Finding, Setting, Verdict

# The modules that define claims, in the order of the ledger.
MODULES = ("rspo", "inpo", "nash_md", "alpha_spin", "no_regret")


def claims() -> list[Claim]:
    """All claims, in the order of the ledger."""
    for module in MODULES:
        importlib.import_module(f"{__name__}.{module}")
    return sorted(CLAIMS, key=lambda claim: MODULES.index(claim.module))


__all__ = ["MODULES", "Claim", "Entry", "Finding", "Setting", "Verdict", "claims"]
