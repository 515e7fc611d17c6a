"""Claims, findings and verdicts.

A claim is a function that tests one statement of a paper numerically. Its docstring is the
statement as printed, and it returns a `Finding`:

    @claim("RSPO", "Prop. 3.1", each=("reverse_kl", "chi2"), on=("preference",))
    def rate(setting: Setting, spec: str) -> Finding:
        \"\"\"With R = {each} the last iterate of GMMD converges.\"\"\"
        games = setting.games(n=3)
        ...
        return finding(printed=converged, corrected=..., evidence=f"worst ratio {size(worst)}")

`each` makes one entry per value; {each} in the docstring and the equation is replaced by the value.
If `each` is a mapping, {text} in the docstring is replaced by what the value maps to. Verdicts are
not written by hand: they follow from the measured booleans `printed` and `corrected`.
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

from ..arrays import Array, normalize
from ..plays import Plays
from ..rules import RULES, UpdateRule, get_rule
from ..steps import step

ROUNDING = 1e-12  # bound on the rounding error of sums of a few numbers of order 1


class Verdict(StrEnum):
    """Verdict on a statement."""

    HOLDS = "holds"
    CORRECTED = "corrected"
    FAILS = "fails"
    UNCLEAR = "unclear"


@dataclass(frozen=True)
class Curve:
    """y (T,) against x (T,), both positive; a `bound` is drawn dashed."""

    label: str
    x: np.ndarray
    y: np.ndarray
    bound: bool = False


@dataclass(frozen=True)
class Chart:
    """One panel: curves on log axes."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = True


@dataclass(frozen=True)
class Finding:
    """Result of testing a claim. Created by `finding`.

    evidence        number of games and the worst value observed
    correction      a corrected statement, or another one that holds instead, if that was measured
    counterexample  numbers or a derivation that can be checked by hand
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
    corrected: bool = False,
    instead: bool = False,
    correction: str = "",
    counterexample: str = "",
    chart: Chart | None = None,
) -> Finding:
    """The finding, with the verdict that follows from the measurements.

    printed    whether the statement held as printed (`holds`). If it has several readings, a
               mapping from each reading to whether it held: some but not all gives `unclear`
    corrected  whether it held with a corrected constant, sign or assumption (`corrected`, otherwise
               `fails`)
    instead    whether another statement, given as `correction`, holds in place of a failed one
    """
    outcomes = list(printed.values()) if isinstance(printed, Mapping) else [printed]
    if all(outcomes):
        return Finding(Verdict.HOLDS, evidence, chart=chart)
    if any(outcomes):
        return Finding(Verdict.UNCLEAR, evidence, correction, counterexample, chart)
    verdict = Verdict.CORRECTED if corrected else Verdict.FAILS
    shown = correction if corrected or instead else ""
    return Finding(verdict, evidence, shown, counterexample, chart)


@dataclass(frozen=True)
class Setting:
    """Where claims are tested: on random games, or on a given game and reference policy.

    rules   replace rules of the registry by name (tests use this to insert broken rules)
    stream  selects the random numbers of `rng`; each claim has its own stream, so that results do
            not depend on which other claims are run
    """

    game: SymmetricGame | None = None
    reference: np.ndarray | None = None  # log μ (n,) for the given game; None: uniform
    rules: Mapping[str, UpdateRule] = field(default_factory=dict)
    seed: int = 0
    stream: str = ""

    @property
    def rng(self) -> np.random.Generator:
        """A new generator with the same seed at each access. Access it once per claim."""
        return np.random.default_rng([self.seed, zlib.crc32(self.stream.encode())])

    def games(self, rng: np.random.Generator, count: int, n: int) -> SymmetricGame:
        """The given game, or `count` random preference games of n actions."""
        return self.game or random_games(rng, count, n)

    def references(self, rng: np.random.Generator, games: SymmetricGame) -> np.ndarray:
        """(..., n): log μ of the given game, or a random one for each random game."""
        if self.game is None:
            return random_policies(rng, (*games.batch_shape, games.n))
        if self.reference is None:
            return np.full((*games.batch_shape, games.n), -math.log(games.n))
        return np.broadcast_to(self.reference, (*games.batch_shape, games.n))

    def rule(self, name: str, **settings) -> UpdateRule:
        """The rule of that name with these settings, see `get_rule`."""
        return get_rule(self.rules.get(name, RULES[name]), **settings)

    def about(self, games: SymmetricGame) -> str:
        """Description of the games, for the evidence."""
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
    """(..., n): log-probabilities whose logits are normal with standard deviation `spread`."""
    return normalize(spread * rng.normal(size=shape))


@dataclass(frozen=True)
class Claim:
    """A statement and its test. `on`: the kinds of given game on which it can be tested."""

    paper: str
    equation: str
    statement: str
    name: str
    measure: Callable[[Setting], Finding]
    on: tuple[str, ...] = ()

    @property
    def module(self) -> str:
        """The module of `solvers.claims` that defines it."""
        return self.name.partition(".")[0]

    def __call__(self, setting: Setting) -> Entry:
        """Runs the test with the random stream of this claim."""
        return Entry(self, self.measure(replace(setting, stream=self.name)))


@dataclass(frozen=True)
class Entry:
    """An entry of the ledger: a claim and its finding."""

    claim: Claim
    finding: Finding

    def record(self) -> dict[str, str]:
        """The JSON object of the entry (a stable interface)."""
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
    """Decorator: registers a claim, or one claim per value of `each`."""
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


# Quantities that many claims need.


def trajectory(
    rule: UpdateRule, games: SymmetricGame, start: Array, reference: Array, steps: int
) -> np.ndarray:
    """(..., n), (..., n) -> (steps + 1, ..., n): log π_0, …, log π_T of a rule without memory."""
    points = [start]
    for t in range(steps):
        plays = Plays.exact(games.payoff, points[-1], reference)
        points.append(step(rule(plays, t), plays))
    return np.stack(points)


def logit_gradient(logp: Array, values: Array) -> np.ndarray:
    """(..., n), (..., n) -> (..., n): Σ_y values(y) ∇_θ log π(y), θ the softmax logits."""
    return values - np.exp(logp) * values.sum(axis=-1, keepdims=True)


# Comparison and formatting of numbers.


def within(measured, bound, slack: float = 1e-9) -> tuple[bool, float]:
    """Whether measured ≤ bound everywhere, up to rounding; and the largest ratio measured/bound."""
    measured, bound = np.broadcast_arrays(np.asarray(measured, float), np.asarray(bound, float))
    shown = bound > ROUNDING  # below this, both are rounding errors
    worst = float((measured[shown] / bound[shown]).max(initial=0.0))
    return bool(np.all(measured <= bound * (1 + slack) + ROUNDING)), worst


def largest(*values) -> float:
    """The largest absolute value in some arrays."""
    return max(float(np.abs(np.asarray(value)).max()) for value in values)


def equal(first, second, scale: float = 1.0) -> bool:
    """Whether two arrays of numbers of order `scale` agree up to rounding."""
    return largest(np.asarray(first) - np.asarray(second)) <= ROUNDING * scale


def order(x, errors) -> float:
    """The exponent p in errors ∝ x^p, by least squares on the logarithms."""
    return float(np.polyfit(np.log(x), np.log(errors), 1)[0])


def size(value: float, floor: float = ROUNDING) -> str:
    """The number with two digits, or `< floor` below the floor (where results vary by machine)."""
    return f"< {floor:.0e}" if abs(value) < floor else f"{value:.2g}"


def vector(values) -> str:
    """(n,) as text with three decimals, such as (0.25, 0.5, 0.25)."""
    return "(" + ", ".join(f"{0.0 + round(float(v), 3):.3g}" for v in np.asarray(values)) + ")"
