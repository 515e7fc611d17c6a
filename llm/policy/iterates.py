"""The iterates π_0, …, π_t of a run: where their weights are, and which of them a rule needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm.storage.directory import RunDirectory
from solvers.rules import UpdateRule

MEMORY = {"average", "geometric"}  # fields of `Measure` that hold a rule's memory


@dataclass(frozen=True)
class Iterates:
    """π_s is the adapter that iteration s − 1 left; π_0 that of `start`, or μ without one."""

    run: RunDirectory
    start: str | None

    def adapter(self, s: int) -> Path | None:
        """The directory of π_s's weights; None where π_s is μ."""
        if s > 0:
            return self.run.adapter(s)
        return None if self.start is None else Path(self.start)


def required_iterates(rule: UpdateRule, t: int) -> list[int]:
    """The iterates among 0, …, t whose log-probabilities step t of a rule needs."""
    found = {rule.magnet(t)} - {0}  # iterate 0 as a magnet is μ itself
    if "previous" in rule.needs:
        found.add(max(t - 1, 0))
    if MEMORY & set(rule.needs):
        found |= set(rule.remembered(t))
    return sorted(found)
