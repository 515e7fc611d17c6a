"""Statements of RSPO: Regularized Self-Play Policy Optimization (arXiv 2503.00030)."""

# ruff: noqa: F401, I001
# The import order is the order of the ledger.
from . import regularized_game, rates, convexity, losses, derivation_nash_md, derivation_omd_gmmd
from . import estimators, algorithm, other_methods
