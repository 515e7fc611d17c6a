"""Sampling: engines that generate responses, mixtures of policies, and stored responses."""
