"""The iterates π_0, …, π_t of a run, one at a time in the one model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llm.policy.model import Policy
from llm.storage.directory import RunDirectory
from solvers.rules import UpdateRule

REMEMBERED = {"average", "geometric"}  # what a rule may need of its memory


@dataclass(frozen=True)
class Iterates:
    """π_s is the adapter that iteration s − 1 left; π_0 that of `start`, or μ without one."""

    run: RunDirectory
    policy: Policy
    start: str | None

    def adapter(self, s: int) -> Path | None:
        """Where the weights of π_s are; None where it is μ."""
        if s > 0:
            return self.run.adapter(s)
        return None if self.start is None else Path(self.start)

    @contextmanager
    def acting(self, s: int, t: int) -> Iterator[None]:
        """The policy is π_s inside, unless that is μ, and π_t afterwards."""
        there = self.adapter(s)
        if s != t and there is not None:
            self.policy.load_adapter(there)
        yield
        if s != t and there is not None:  # s < t: π_t is one of the run's own
            self.policy.load_adapter(self.run.adapter(t))


def required_iterates(rule: UpdateRule, t: int) -> list[int]:
    """The iterates whose probabilities step t of a rule needs, among 0, …, t.

    The opponent of a rule for data is known by its samples alone.
    """
    found = {rule.magnet(t)} - {0}  # iterate 0 as a magnet is μ itself
    if not rule.needs_data:
        if "previous" in rule.needs:
            found.add(max(t - 1, 0))
        if REMEMBERED & set(rule.needs):
            found |= set(rule.remembered(t))
    return sorted(found)
