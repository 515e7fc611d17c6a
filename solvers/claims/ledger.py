"""What a claim is, and how it gets its verdict.

A claim is a function that measures one statement of a paper. Its docstring states it as printed,
its `Finding` says how it fared:

    @claim("RSPO", "Prop. 3.1", each=("reverse_kl", "chi2"), on=("preference",))
    def rate(setting: Setting, spec: str) -> Finding:
        \"\"\"With R = {each} the last iterate of GMMD converges.\"\"\"
        games = setting.games(n=3)
        ...
        return finding(printed=converged, mended=..., evidence=f"worst ratio {size(worst)}")

With `each`, there is one row for each of its values, which docstring and equation may quote as
{each}; where it is a mapping, the docstring may quote what each value maps to as {text}. A verdict
is never written down: `printed` and `mended` are what was measured.
"""

from __future__ import annotations

import inspect
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import partial

import numpy as np

from games import PreferenceGame, SymmetricGame

from ..arrays import Array, normalise
from ..plays import Plays
from ..rules import RULES, UpdateRule, get_rule
from ..steps import step

ROUNDING = 1e-12  # what sums of a few numbers of order 1 may be off by


class Verdict(StrEnum):
    """How a statement fared."""

    HOLDS = "holds"
    CORRECTED = "corrected"
    FAILS = "fails"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Curve:
    """y (T,) over x (T,), both positive; a `bound` is drawn dashed."""

    label: str
    x: np.ndarray
    y: np.ndarray
    bound: bool = False


@dataclass(frozen=True)
class Chart:
    """Curves of one panel, on log axes."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = True


@dataclass(frozen=True)
class Finding:
    """What was measured. Make it with `finding`.

    evidence        on how many games, and the worst that was seen
    correction      the statement as it does hold, or what holds instead, where that was measured
    counterexample  numbers or a derivation that a reader can check by hand
    """

    verdict: Verdict
    evidence: str
    correction: str = ""
    counterexample: str = ""
    chart: Chart | None = None


def finding(
    *,
    printed: bool | Mapping[str, bool],
    evidence: str,
    mended: bool = False,
    instead: bool = False,
    correction: str = "",
    counterexample: str = "",
    chart: Chart | None = None,
) -> Finding:
    """The verdict of what was measured.

    printed  whether the statement held as printed: `holds`. Where it can be read in several ways, a
             mapping from each reading to whether that one held: some but not all is `unclear`
    mended   whether it held with a constant, a sign or an assumption mended: `corrected`, else
             `fails`
    instead  whether another statement holds in the place of one that fails
    """
    outcomes = list(printed.values()) if isinstance(printed, Mapping) else [printed]
    if all(outcomes):
        return Finding(Verdict.HOLDS, evidence, chart=chart)
    if any(outcomes):
        return Finding(Verdict.UNCLEAR, evidence, correction, counterexample, chart)
    verdict = Verdict.CORRECTED if mended else Verdict.FAILS
    shown = correction if mended or instead else ""
    return Finding(verdict, evidence, shown, counterexample, chart)


@dataclass(frozen=True)
class Setting:
    """What claims are measured on: random games, or the user's own game and reference.

    rules   stand in for those of the registry under the same names (a test's broken one)
    stream  chooses the random numbers of `rng`; each row has its own, whatever runs beside it
    """

    game: SymmetricGame | None = None
    reference: np.ndarray | None = None  # log μ (n,) for the given game, uniform unless given
    rules: Mapping[str, UpdateRule] = field(default_factory=dict)
    seed: int = 0
    stream: str = ""

    @property
    def rng(self) -> np.random.Generator:
        """A fresh generator, the same at each call: take it once."""
        return np.random.default_rng([self.seed, zlib.crc32(self.stream.encode())])

    def games(self, rng: np.random.Generator, count: int, n: int) -> SymmetricGame:
        """The given game, else `count` preference games of n actions, independent uniform."""
        return self.game or random_games(rng, count, n)

    def references(self, rng: np.random.Generator, games: SymmetricGame) -> np.ndarray:
        """(..., n): log μ, the given one for the given game, else a random one for each game."""
        if self.game is None:
            return random_policies(rng, (*games.batch_shape, games.n))
        if self.reference is None:
            return np.full((*games.batch_shape, games.n), -math.log(games.n))
        return np.broadcast_to(self.reference, (*games.batch_shape, games.n))

    def rule(self, name: str, **settings) -> UpdateRule:
        """The rule of that name with these settings, as `get_rule` gives it."""
        return get_rule(self.rules.get(name, RULES[name]), **settings)

    def about(self, games: SymmetricGame) -> str:
        """What was measured on, for the evidence."""
        if self.game is not None:
            return self.game.name or "the given game"
        n = "2 actions" if games.n == 2 else f"{games.n} actions"
        return f"{math.prod(games.batch_shape)} random games of {n}"


def random_games(rng: np.random.Generator, count: int, n: int) -> PreferenceGame:
    """(count, n, n): preferences independent and uniform on [0, 1]."""
    upper = np.triu(rng.uniform(size=(count, n, n)), 1)
    lower = np.tril(1 - np.swapaxes(upper, -1, -2), -1)
    return PreferenceGame(upper + lower + 0.5 * np.eye(n))


def random_policies(rng: np.random.Generator, shape: Sequence[int], spread=1.0) -> np.ndarray:
    """(..., n): log-probabilities ∝ exp of normal numbers of that standard deviation."""
    return normalise(spread * rng.normal(size=shape))


@dataclass(frozen=True)
class Claim:
    """One row of the ledger. `on`: the kinds of game it can be measured on when one is given."""

    paper: str
    equation: str
    statement: str
    name: str
    measure: Callable[[Setting], Finding]
    on: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module of `solvers.claims` that entered it."""
        return self.name.partition(".")[0]

    def __call__(self, setting: Setting) -> Row:
        """Measure it, on random numbers of its own."""
        return Row(self, self.measure(replace(setting, stream=self.name)))


@dataclass(frozen=True)
class Row:
    """A claim and what was found."""

    claim: Claim
    finding: Finding

    def record(self) -> dict[str, str]:
        """The JSON contract: one flat object a row."""
        found = self.finding
        return {
            "paper": self.claim.paper,
            "equation": self.claim.equation,
            "statement": self.claim.statement,
            "verdict": str(found.verdict),
            "correction": found.correction,
            "evidence": f"{found.evidence} {found.counterexample}".strip(),
        }


CLAIMS: list[Claim] = []


def claim(
    paper: str,
    equation: str,
    *,
    each: Iterable[str] | Mapping[str, str] = (),
    on: tuple[str, ...] = (),
) -> Callable[[Callable[..., Finding]], Callable[..., Finding]]:
    """Enter a function into the ledger, once or, with `each`, once for each value."""
    texts = each if isinstance(each, Mapping) else dict.fromkeys(each, "")

    def enter(measure: Callable[..., Finding]) -> Callable[..., Finding]:
        stated = " ".join((inspect.getdoc(measure) or "").split())
        module = measure.__module__.removeprefix(f"{__package__}.")
        name = f"{module}.{measure.__name__}"
        if not texts:
            CLAIMS.append(Claim(paper, equation, stated, name, measure, on))
        for value, text in texts.items():
            statement = stated.replace("{each}", value).replace("{text}", text)
            label = equation.replace("{each}", value)
            row = partial(_measure, measure, value)
            CLAIMS.append(Claim(paper, label, statement, f"{name}[{value}]", row, on))
        return measure

    return enter


def _measure(measure: Callable[..., Finding], value: str, setting: Setting) -> Finding:
    return measure(setting, value)


# What many claims measure with.


def path(
    rule: UpdateRule, games: SymmetricGame, start: Array, reference: Array, steps: int
) -> np.ndarray:
    """(..., n), (..., n) -> (steps + 1, ..., n): log π_t of a rule without a memory, π_0 first."""
    points = [start]
    for t in range(steps):
        plays = Plays.exact(games.payoff, points[-1], reference)
        points.append(step(rule(plays, t), plays))
    return np.stack(points)


def score(logp: Array, values: Array) -> np.ndarray:
    """(..., n), (..., n) -> (..., n): Σ_y values(y) ∇_θ log π(y), θ the logits of a softmax."""
    return values - np.exp(logp) * values.sum(axis=-1, keepdims=True)


# How measurements are judged and written down.


def within(measured, bound, slack: float = 1e-9) -> tuple[bool, float]:
    """Whether measured ≤ bound everywhere, up to rounding, and the largest measured/bound."""
    measured, bound = np.broadcast_arrays(np.asarray(measured, float), np.asarray(bound, float))
    shown = bound > ROUNDING  # below, both are rounding
    worst = float((measured[shown] / bound[shown]).max(initial=0.0))
    return bool(np.all(measured <= bound * (1 + slack) + ROUNDING)), worst


def largest(*values) -> float:
    """The largest absolute value in some arrays."""
    return max(float(np.abs(np.asarray(value)).max()) for value in values)


def equal(first, second, scale: float = 1.0) -> bool:
    """Whether two arrays agree to rounding, for numbers of that scale."""
    return largest(np.asarray(first) - np.asarray(second)) <= ROUNDING * scale


def order(x, errors) -> float:
    """The exponent p of errors ∝ x^p, by least squares on logs."""
    return float(np.polyfit(np.log(x), np.log(errors), 1)[0])


def size(value: float, floor: float = ROUNDING) -> str:
    """Two digits; below the floor, where machines differ, as `< floor`."""
    return f"< {floor:.0e}" if abs(value) < floor else f"{value:.2g}"


def vector(values) -> str:
    """(n,) as (0.25, 0.5, 0.25), to three decimals."""
    return "(" + ", ".join(f"{0.0 + round(float(v), 3):.3g}" for v in np.asarray(values)) + ")"
