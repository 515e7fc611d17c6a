"""Figures of nashplay beside those of its peers: make bench, or python -m benchmarks [NAME ...]."""
