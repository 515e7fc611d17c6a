"""RSPO — Regularized Self-Play Policy Optimization (arXiv 2503.00030)."""

# ruff: noqa: F401, I001
# The order is that of the ledger.
from . import games, rates, convexity, losses, lines, lines_of_gmmd
from . import estimators, algorithm, methods
