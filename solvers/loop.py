"""The only loop: play a game by a rule until the duality gap is small or the steps are over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
from array_api_compat import array_namespace

from games import DataGame, MatrixGame, SaddlePointGame, SymmetricGame
from games.errors import InputError

from . import saddle
from .arrays import A, dot, normalize
from .gap import duality_gap
from .mirror import ENTROPY, EUCLIDEAN, MirrorMap
from .plays import Measure, Plays
from .rates import with_step_size
from .rules import UpdateRule, get_rule
from .steps import step as move

Game = SymmetricGame | MatrixGame | SaddlePointGame | DataGame


class Status(StrEnum):
    """How a run ended."""

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    NON_FINITE = "non_finite"


@dataclass(frozen=True)
class History:
    """What was recorded at `steps` (T,), step 0 first.

    gap, average_gap  (T, ...) duality gap of π_t and of the average of π_0..π_t
    kl                (T, ...) KL(π*‖π_t), or None without an equilibrium to compare with
    logp              (T, ..., n) log π_t, or None unless asked for
    """

    steps: np.ndarray
    gap: np.ndarray
    average_gap: np.ndarray
    kl: np.ndarray | None
    logp: np.ndarray | None


@dataclass(frozen=True)
class Solution:
    """What `solve` returns. Policies are log-probabilities; `policy` and `average` exponentiate.

    In a zero-sum game `logp` is the row player's and `opponent_logp` the column player's, in
    self-play they are the same. On ℝᵈ they are the points themselves.
    """

    logp: np.ndarray
    opponent_logp: np.ndarray
    average: np.ndarray
    opponent_average: np.ndarray
    gap: np.ndarray
    average_gap: np.ndarray
    status: Status
    steps: int
    seconds: float
    rule: UpdateRule
    reference: np.ndarray
    history: History = field(repr=False)
    on_simplex: bool = True

    @property
    def policy(self) -> np.ndarray:
        """(..., n): probabilities of the last iterate."""
        return np.exp(self.logp) if self.on_simplex else self.logp

    @property
    def opponent_policy(self) -> np.ndarray:
        """(..., m): the column player's last iterate."""
        return np.exp(self.opponent_logp) if self.on_simplex else self.opponent_logp


def solve(
    game: Game,
    rule: str | UpdateRule = "gmmd",
    *,
    steps: int = 1000,
    tol: float | None = None,
    start: np.ndarray | Sequence[np.ndarray] | None = None,
    reference: np.ndarray | Sequence[np.ndarray] | None = None,
    equilibrium: np.ndarray | Sequence[np.ndarray] | None = None,
    keep_policies: bool = False,
    on_step: Callable[[int], None] | None = None,
    **settings,
) -> Solution:
    """Play `game` by `rule`, all games of a batch at once.

    start, reference  log-probabilities (..., n), the uniform policy unless given; a run starts at
                      its reference. A pair of them in a zero-sum game; points (x, y) on ℝ × ℝ.
    equilibrium       log π* to measure KL(π*‖π_t) against
    tol               stop when every duality gap is ≤ tol, which is tested when it is recorded: at
                      every step up to 128, then at steps 1/64 apart; 0 never stops early. None:
                      1e-10 times the range of the payoffs, or times τ where that is larger
    settings          eta, tau, regularizer, alpha, memory, magnet_every: see `get_rule`

    The gap is that of the rule's target game. A gap that is negative beyond rounding is an error of
    arithmetic: the status is then `non_finite`. Raises InputError for arguments that do not fit.

    >>> from games import zoo
    >>> solution = solve(zoo.get("biased_rps"), "mmd", tau=0.5, tol=1e-12)
    >>> solution.status
    <Status.CONVERGED: 'converged'>
    """
    if steps < 0 or (tol is not None and tol < 0):
        raise InputError("steps and tol must not be negative")
    rule = get_rule(rule, **settings)
    board = _board(game)
    references = board.points(reference, "reference", None)
    if not all(np.isfinite(theta).all() for theta in references):
        raise InputError("the reference policy has zeros: every action needs a positive share")
    starts = board.points(start, "start", references)
    stars = None if equilibrium is None else board.points(equilibrium, "equilibrium", None)
    if rule.needs_data != isinstance(game, DataGame):
        wanted = "a data distribution (DataGame)" if rule.needs_data else "a game with payoffs"
        raise InputError(f"rule '{rule.name}' needs {wanted}")
    if not isinstance(game, DataGame):
        both = references[0] if len(references) == 1 else (references[0], references[1])
        rule = with_step_size(rule, game, both, steps, board.mirror)

    rounding = _default_tolerance(game, rule)
    enough = rounding if tol is None else np.asarray(tol)
    began = time.perf_counter()
    players = [
        _Player.at(theta, mu, rule, board.mirror)
        for theta, mu in zip(starts, references, strict=True)
    ]
    recorder = _Recorder(board, rule, references, stars, keep_policies)
    status, t = Status.MAX_STEPS, 0
    # Overflow to inf is how a run diverges: it is looked for, not warned of.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        recorder.record(0, players)
        while True:
            if recorder.last_step == t:
                if np.any(recorder.last_gap < -np.maximum(enough, rounding)):
                    status = Status.NON_FINITE
                    break
                if np.all(enough > 0) and np.all(recorder.last_gap <= enough):
                    status = Status.CONVERGED
                    break
            if t == steps:
                break
            plays = board.plays([player.measure(rule, board) for player in players])
            moved = [move(rule(p, t), p) for p in plays]
            if any(np.any(np.isnan(theta) | (theta == np.inf)) for theta in moved):
                status = Status.NON_FINITE
                break
            t += 1
            players = [
                p.moved(theta, rule, board.mirror) for p, theta in zip(players, moved, strict=True)
            ]
            if _is_recorded(t) or t == steps:
                recorder.record(t, players)
            if on_step is not None:
                on_step(t)
        if recorder.last_step != t:
            recorder.record(t, players)
    own, other = players[0], players[-1]
    return Solution(
        own.logp,
        other.logp,
        own.average,
        other.average,
        recorder.last_gap,
        recorder.last_average_gap,
        status,
        t,
        time.perf_counter() - began,
        rule,
        references[0],
        recorder.history(),
        board.mirror is ENTROPY,
    )


def _default_tolerance(game: Game, rule: UpdateRule) -> np.ndarray:
    """(...): the gap of a converged policy, in the units of each game."""
    if not isinstance(game, SymmetricGame | MatrixGame):
        return np.asarray(1e-10)
    spread = game.payoff.max(axis=(-1, -2)) - game.payoff.min(axis=(-1, -2))
    return 1e-10 * np.maximum(spread, rule.target[1])


def _is_recorded(t: int) -> bool:
    return t <= 128 or t % 2 ** (t.bit_length() - 7) == 0


@dataclass(frozen=True)
class _Board:
    """A game as `solve` sees it: one player in self-play, two in a zero-sum game."""

    game: Game
    shapes: tuple[tuple[int, ...], ...]  # of each player's policy
    mirror: MirrorMap = ENTROPY
    payoffs: tuple[np.ndarray | None, ...] = (None,)
    offset: np.ndarray | None = None
    logp_data: np.ndarray | None = None

    def plays(self, measures: list[Measure]) -> list[Plays]:
        others = measures[::-1]
        return [
            Plays(payoff, own, other, offset=self.offset)
            for payoff, own, other in zip(self.payoffs, measures, others, strict=True)
        ]

    def points(self, given, what: str, default) -> list[np.ndarray]:
        """Each player's θ of the right shape, from what the user gave."""
        if given is None:
            return default or [np.full(shape, -math.log(shape[-1])) for shape in self.shapes]
        each = given if len(self.shapes) == 2 and isinstance(given, tuple | list) else [given]
        if len(each) != len(self.shapes):
            raise InputError(f"the {what} of a zero-sum game is a pair: one for each player")
        points = []
        for theta, shape in zip(each, self.shapes, strict=True):
            theta = np.asarray(theta, dtype=float)
            try:
                theta = np.broadcast_to(theta, shape)
            except ValueError:
                raise InputError(
                    f"the {what} has shape {theta.shape}, the game needs {shape}"
                ) from None
            total = np.exp(theta).sum(axis=-1)
            if self.mirror is ENTROPY and not np.allclose(total, 1, atol=1e-6):
                raise InputError(f"the {what} must be log-probabilities: exp of it must sum to 1")
            points.append(self.mirror.normalize(theta))
        return points

    def gap(self, policies: list[np.ndarray], regularizer, tau: float, references) -> np.ndarray:
        """(...,): the duality gap of the game of that regularizer and temperature."""
        if isinstance(self.game, SaddlePointGame):
            return saddle.duality_gap(self.game, policies[0], tau, references[0])
        assert isinstance(self.game, SymmetricGame | MatrixGame)
        opponent = policies[1] if len(policies) == 2 else None
        reference = references[0] if len(policies) == 1 else tuple(references)
        return duality_gap(self.game, policies[0], opponent, regularizer, tau, reference)


def _board(game: Game) -> _Board:
    if isinstance(game, SymmetricGame):
        return _Board(game, ((*game.batch_shape, game.n),), payoffs=(game.payoff,))
    if isinstance(game, MatrixGame):
        shapes = ((*game.batch_shape, game.m), (*game.batch_shape, game.n))
        return _Board(game, shapes, payoffs=(game.payoff, -np.swapaxes(game.payoff, -1, -2)))
    if isinstance(game, SaddlePointGame):
        payoff, offset = saddle.affine(game)
        return _Board(game, ((2,),), EUCLIDEAN, (payoff,), offset)
    return _Board(game, (game.data.shape,), logp_data=np.log(game.data))


@dataclass(frozen=True)
class _Player:
    """One player's π_t, its average over π_0..π_t, and what its rule remembers.

    `average` and `memory_mean` are points: probabilities, on ℝᵈ the points themselves. `recent` are
    the θ of the last h policies where the memory h is finite, and more than the present one.
    """

    logp: np.ndarray
    magnet: np.ndarray  # μ of the next step
    average: np.ndarray
    memory_mean: np.ndarray
    recent: tuple[np.ndarray, ...]
    previous: np.ndarray
    t: int = 0

    @classmethod
    def at(cls, logp: np.ndarray, reference: np.ndarray, rule: UpdateRule, mirror) -> _Player:
        """At the start; the policies before it count as equal to it (α-SPIN, Algorithm 2)."""
        point = mirror.point(logp)
        recent = () if rule.memory in (1, math.inf) else (logp,) * int(rule.memory)
        return cls(logp, reference, point, point, recent, logp)

    def moved(self, logp: np.ndarray, rule: UpdateRule, mirror) -> _Player:
        point, t = mirror.point(logp), self.t + 1
        recent = (logp, *self.recent[:-1]) if self.recent else ()
        if recent:
            points = [mirror.point(theta) for theta in recent]
            memory_mean = sum(points[1:], points[0]) / len(points)
        elif rule.memory == math.inf:
            count = t + 1 if rule.remember_start else t
            memory_mean = self.memory_mean + (point - self.memory_mean) / count
        else:
            memory_mean = point
        average = self.average + (point - self.average) / (t + 1)
        magnet = logp if rule.magnet_every is not None and rule.magnet(t) == t else self.magnet
        return _Player(logp, magnet, average, memory_mean, recent, self.logp, t)

    def measure(self, rule: UpdateRule, board: _Board) -> Measure:
        forgetful = rule.memory == 1 or board.mirror is EUCLIDEAN
        geometric = self.logp if rule.memory == 1 else None
        if self.recent:
            geometric = sum(self.recent[1:], self.recent[0]) / len(self.recent)
        return Measure(
            self.logp,
            self.magnet,
            logp_average=self.logp if forgetful else np.log(self.memory_mean),
            logp_geometric=geometric,
            logp_previous=self.previous,
            logp_data=board.logp_data,
            mirror=board.mirror,
        )


class _Recorder:
    """Measures policies at the steps that are recorded."""

    def __init__(self, board: _Board, rule: UpdateRule, references, stars, keep: bool):
        self.board, self.rule, self.references = board, rule, references
        self.stars, self.keep = stars, keep
        self.rows: list[tuple] = []
        self.last_step = -1
        self.last_gap = self.last_average_gap = np.array(np.inf)
        if rule.needs_data:  # their target is known in closed form
            assert board.logp_data is not None
            self.stars = [spin_target(rule, board.logp_data, references[0])]

    def record(self, t: int, players: list[_Player]) -> None:
        policies = [player.logp for player in players]
        averages = [np.log(player.average) for player in players]
        if self.board.mirror is EUCLIDEAN:
            averages = [player.average for player in players]
        stars = self.stars
        kl = None if stars is None else self._distance(policies, stars)
        if stars is not None and kl is not None and self.rule.needs_data:
            gap, average_gap = kl, self._distance(averages, stars)
        else:
            aimed = (*self.rule.target, self.references)
            gap, average_gap = self.board.gap(policies, *aimed), self.board.gap(averages, *aimed)
        self.rows.append((t, gap, average_gap, kl, policies[0] if self.keep else None))
        self.last_step, self.last_gap, self.last_average_gap = t, gap, average_gap

    def _distance(self, policies: list[np.ndarray], stars: list[np.ndarray]) -> np.ndarray:
        """Σ over players of B_ψ(π*; π): KL(π*‖π), or ½‖z* − z‖² on ℝᵈ."""
        if self.board.mirror is EUCLIDEAN:
            return 0.5 * ((stars[0] - policies[0]) ** 2).sum(axis=-1)
        pairs = zip(stars, policies, strict=True)
        return np.sum([kl_divergence(star, logp) for star, logp in pairs], axis=0)

    def history(self) -> History:
        steps, gaps, average_gaps, kls, logps = zip(*self.rows, strict=True)
        kl = None if kls[0] is None else np.stack(kls)
        logp = np.stack(logps) if self.keep else None
        return History(np.array(steps), np.stack(gaps), np.stack(average_gaps), kl, logp)


def kl_divergence(logp: A, logq: A) -> A:
    """(..., n), (..., n) -> (...,): KL(p‖q) ≥ 0; inf where q lacks an action of p."""
    xp = array_namespace(logp, logq)
    with np.errstate(invalid="ignore"):  # −∞ − (−∞) where p = 0, which `dot` passes over
        return xp.clip(dot(xp.exp(logp), logp - logq), 0.0, None)


def spin_target(rule: UpdateRule, logp_data: np.ndarray, logp_ref: np.ndarray) -> np.ndarray:
    """(..., n): the fixed point of (α-)SPIN, ∝ base^(1−α) data^(1/β), exponents normalized."""
    base, data = 1 - (1.0 if rule.alpha is None else rule.alpha), rule.eta_at(0)
    return normalize((base * logp_ref + data * logp_data) / (base + data))
