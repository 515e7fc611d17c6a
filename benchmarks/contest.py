"""A task solved by nashplay and by its peers in turns, and the ratio of their times."""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Run = Callable[[], Any]

TURN = 0.5  # seconds: a faster contestant repeats the task for this long in each turn
FEWEST_ROUNDS = 2  # the first includes imports and compilation

HEADER = """\
| work | nashplay | peer | | ratio | target | met | error: nashplay, peer | load |
|---|---|---|---|---|---|---|---|---|"""


def seconds(run: Run) -> tuple[float, Any]:
    """Run time in seconds, and the answer."""
    began = time.perf_counter()
    answer = run()
    return time.perf_counter() - began, answer


def peak_bytes(run: Run) -> tuple[float, Any]:
    """Peak of allocated memory in bytes, and the answer."""
    tracemalloc.start()
    answer = run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak, answer


@dataclass(frozen=True)
class Peer:
    """`run` does the fraction `share` of the work; its time is extrapolated.

    `answers`: whether it returns an answer in the format of nashplay.
    """

    name: str
    run: Run
    share: float = 1.0
    answers: bool = True


@dataclass(frozen=True)
class Contest:
    """A comparison of nashplay with the fastest of its peers on a task.

    error      function of an answer; nashplay's error must not exceed `tolerance`
    faster     True: the ratio is peer/nashplay and must be at least `target`; False: it is
               nashplay/peer and must be at most `target`
    target     None: no target
    """

    work: str
    ours: Run
    peers: tuple[Peer, ...]
    error: Callable[[Any], float]
    tolerance: float
    target: float | None = None
    faster: bool = True
    measure: Callable[[Run], tuple[float, Any]] = seconds

    def play(self, budget: float) -> str:
        """The row of the table, from at least FEWEST_ROUNDS rounds and `budget` seconds."""
        contestants = (Peer("nashplay", self.ours), *self.peers)
        least, answers, loads = [np.inf] * len(contestants), [None] * len(contestants), []
        began, rounds = time.perf_counter(), 0
        while rounds < FEWEST_ROUNDS or time.perf_counter() - began < budget:
            rounds += 1
            for i, contestant in enumerate(contestants):
                loads.append(os.getloadavg()[0])
                turn = time.perf_counter()
                while time.perf_counter() - turn < TURN:
                    amount, answers[i] = self.measure(contestant.run)
                    least[i] = min(least[i], amount / contestant.share)
        first = int(np.argmin(least[1:])) + 1
        peer = contestants[first]
        ratio = least[first] / least[0] if self.faster else least[0] / least[first]
        error = self.error(answers[0])
        errors = f"{error:.0e}" + (f", {self.error(answers[first]):.0e}" if peer.answers else "")
        goal, met = "–", "–"
        if self.target is not None:
            goal = f"{'≥' if self.faster else '≤'} {self.target:,g}×"
            reached = ratio >= self.target if self.faster else ratio <= self.target
            met = "yes" if reached and error <= self.tolerance else "**no**"
        amounts = (self._amount(least[0]), peer.name, self._amount(least[first]))
        load = f"{min(loads):.1f}–{max(loads):.1f}"
        digits = f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
        cells = (self.work, *amounts, f"{digits}×", goal, met, errors, load)
        return f"| {' | '.join(cells)} |"

    def _amount(self, amount: float) -> str:
        if self.measure is peak_bytes:
            return f"{amount / 1e6:.3g} MB"
        unit, factor = next((u, f) for u, f in UNITS if amount * f >= 1 or u == "µs")
        return f"{amount * factor:.3g} {unit}"


UNITS = (("s", 1.0), ("ms", 1e3), ("µs", 1e6))
