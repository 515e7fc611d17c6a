"""RSPO — Regularized Self-Play Policy Optimization (arXiv 2503.00030): games and rates."""
