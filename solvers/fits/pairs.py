"""Fits of pairs of responses: squared error, hinge and logistic loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

from array_api_compat import array_namespace, device

from games.errors import InputError

from ..arrays import Array
from ..divergences import Divergence
from ..mirror import ENTROPY
from ..plays import Plays
from ..rules import bradley_terry, win_rate
from ..update import Update
from .base import Fit, Items, broadcast, drawn_weights, refuse_unreachable


@dataclass(frozen=True)
class Pairs(Fit):
    """Pairs of responses: their implied rewards against a signal of which is better.

    The reward that π_θ implies is

        r_θ = (1/η)(log π_θ − anchor) − drift + τφ(log π_θ/μ),  φ = f′ of the implicit R, φ(1) = 0.

    At the step of the rule it is G − drift up to a constant; at η = ∞ only the term of R remains.
    Each pair occurs once, and h is its r_θ(y) − r_θ(y′).

    signal  `win_rate`: the gap of G − drift, for any rule.
            `preference`: P(y ≻ y′), which is the same in expectation where G − drift `follows`
            the preferences among the responses; other rules are refused.
            `winner`: which of the two is preferred, ½ for each at a tie, as published for labels.
            For 0/1 payoffs it is `preference`; otherwise no guarantee, and the rule's opponent is
            ignored.
    length_normalized  r_θ is divided by the tokens of the response (SimPO); no guarantee
    """

    centered = True
    follows: ClassVar[Callable[[Plays, Array], Array]]
    following: ClassVar[str]
    signal: Literal["win_rate", "preference", "winner"] = "win_rate"
    length_normalized: bool = False

    def is_consistent(self, sampled: bool) -> bool:
        return self.signal != "winner" and not self.length_normalized

    def items(self, plays: Plays, update: Update) -> Items:
        i, j, weight, signal = self._pairs(plays, update)
        xp, beta = array_namespace(signal), 1 / update.eta
        columns = {"signal": signal, "beta": xp.full_like(signal, beta)}
        columns |= _both("offset", beta * update.anchor + update.drift, i, j)
        regularizer = None
        if update.regularizer is not None:
            columns |= _both("logp_ref", plays.own.logp_ref, i, j)
            regularizer = update.tau * update.regularizer
        if self.length_normalized:
            if plays.own.length is None:
                raise InputError(
                    "length_normalized: the lengths of responses are not known here, leave it out"
                )
            columns |= _both("length", plays.own.length, i, j)
        index = broadcast(xp.stack([i, j], axis=-1), signal)
        return Items(index, weight, columns, regularizer)

    def _pairs(self, plays: Plays, update: Update) -> tuple[Array, Array, Array, Array]:
        """(I,), (I,), (..., I), (..., I): y, y′, weight and signal of each pair."""
        refuse_unreachable(update, best_response=update.regularizer is None)
        xp, n = array_namespace(update.direction), update.direction.shape[-1]
        points = xp.arange(n, device=device(update.direction))
        i, j = xp.nonzero(points[:, None] < points)
        if self.signal == "win_rate":
            won = update.direction - update.drift
            # Both responses of a pair met the other: without own entries that game counts twice.
            signal = (xp.take(won, i, axis=-1) - xp.take(won, j, axis=-1)) / plays.centering
        else:
            signal = self._preferences(plays, update, i, j)
        weights = drawn_weights(plays)
        weight = 2 * xp.take(weights, i, axis=-1) * xp.take(weights, j, axis=-1)
        if plays.own.log_weight is not None:
            weight = xp.full_like(signal, 1 / signal.shape[-1])
        return i, j, weight, signal

    def _preferences(self, plays: Plays, update: Update, i: Array, j: Array) -> Array:
        """(I,), (I,) -> (..., I): P(y ≻ y′) − ½, or half its sign."""
        xp, n = array_namespace(update.direction), update.direction.shape[-1]
        table = xp.reshape(plays.payoff, (*update.direction.shape[:-1], n * n))
        gap = 0.5 * (xp.take(table, i * n + j, axis=-1) - xp.take(table, j * n + i, axis=-1))
        if self.signal == "winner":
            return 0.5 * xp.sign(gap)
        followed = self.follows(plays, drawn_weights(plays))
        apart = update.direction - update.drift - followed
        apart = apart - apart[..., :1]  # constants do not matter
        if bool(xp.any(xp.abs(apart) > 1e-6 * (1 + xp.abs(followed)))):
            raise InputError(
                f"fit '{self.name}' with signal=preference follows the {self.following} "
                "of the responses among themselves, and this rule does not: use signal=win_rate"
            )
        return gap

    def _gap(
        self, logp_items: Array, columns: dict[str, Array], regularizer: Divergence | None
    ) -> Array:
        """(..., I, 2) -> (..., I): h."""
        rewards = columns["beta"][..., None] * logp_items - _stacked("offset", columns)
        for part in () if regularizer is None else regularizer.summands:
            slope = ENTROPY.gradient(part.divergence, logp_items, _stacked("logp_ref", columns))
            rewards = rewards + part.weight * slope
        if self.length_normalized:
            rewards = rewards / _stacked("length", columns)
        return rewards[..., 0] - rewards[..., 1]


@dataclass(frozen=True)
class Pairwise(Pairs):
    """(h − signal)², times s² for s = 1/(1/η + τ): in units of log-ratios.

    INPO Eq. 7 (its η is 1/η here), and Eq. 8 by signal=preference (Prop. 6); REBEL; IPO. P counts
    as P − ½, and a winner as ½. `follows` the win rate, the mean of P(y ≻ y′) over y′.

    error  `hinge`: s·max(0, 1 − h) of the winner over the loser (SLiC-HF, whose δ is s).
    """

    name = "pairwise"
    follows, following = staticmethod(win_rate), "win rates"
    error: Literal["squared", "hinge"] = "squared"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.error == "hinge" and self.signal != "winner":
            raise InputError("error=hinge needs the winner of a pair: also set signal=winner")

    def loss(
        self,
        logp_items: Array,
        columns: dict[str, Array],
        regularizer: Divergence | None = None,
    ) -> Array:
        h, signal = self._gap(logp_items, columns, regularizer), columns["signal"]
        parts = () if regularizer is None else regularizer.summands
        scale = 1 / sum((part.weight for part in parts), start=columns["beta"])
        if self.error == "squared":
            return (scale * (h - signal)) ** 2
        zero = 0 * h
        lost = array_namespace(h).maximum
        return scale * ((0.5 + signal) * lost(1 - h, zero) + (0.5 - signal) * lost(1 + h, zero))


@dataclass(frozen=True)
class Logistic(Pairs):
    """Cross-entropy of σ(h) with the probability that y is preferred; −log σ(h) for a winner.

    DPO with any link function; SPIN and α-SPIN (α-SPIN Eq. 6), where every dataset response wins
    against every response of the opponent, for any `signal` (`Plays.with_data`); DNO-Prct; SimPO.
    With signal=win_rate the probability is σ of the gap. `follows` the Bradley–Terry model that is
    fitted to P.

    margin  γ, which a winner's h has to exceed (SimPO)
    """

    name = "logistic"
    follows, following = staticmethod(bradley_terry), "Bradley-Terry scores"
    margin: float = 0.0

    def is_consistent(self, sampled: bool) -> bool:
        # σ of a gap that is estimated from K − 1 opponents is biased at O(1/K).
        known = self.signal == "preference" or not sampled
        return super().is_consistent(sampled) and self.margin == 0 and known

    def _pairs(self, plays: Plays, update: Update) -> tuple[Array, Array, Array, Array]:
        data, opponent = plays.own.logp_data, plays.own.logp_average
        xp, n = array_namespace(update.direction), update.direction.shape[-1]
        if data is None or opponent is None or bool(xp.any(update.direction != data - opponent)):
            i, j, weight, signal = super()._pairs(plays, update)
            label = xp.exp(-_softplus(-signal)) if self.signal == "win_rate" else 0.5 + signal
            return i, j, weight, label
        weight = xp.exp(data[..., :, None] + opponent[..., None, :])
        weight = xp.reshape(weight, (*weight.shape[:-2], n * n))
        (pairs,) = xp.nonzero(xp.any(xp.reshape(weight, (-1, n * n)) > 0, axis=0))
        weight = xp.take(weight, pairs, axis=-1)
        return pairs // n, pairs % n, weight, xp.ones_like(weight)

    def loss(
        self,
        logp_items: Array,
        columns: dict[str, Array],
        regularizer: Divergence | None = None,
    ) -> Array:
        h, label = self._gap(logp_items, columns, regularizer), columns["signal"]
        return label * _softplus(self.margin - h) + (1 - label) * _softplus(self.margin + h)


def _both(name: str, values: Array, i: Array, j: Array) -> dict[str, Array]:
    """(..., n), (..., I), (..., I) -> two columns: the values at both responses of the pairs."""
    xp = array_namespace(values)
    return {
        f"{name}_first": xp.take(values, i, axis=-1),
        f"{name}_second": xp.take(values, j, axis=-1),
    }


def _stacked(name: str, columns: dict[str, Array]) -> Array:
    """(..., I, 2) of `_both` columns."""
    both = [columns[f"{name}_first"], columns[f"{name}_second"]]
    return array_namespace(*both).stack(both, axis=-1)


def _softplus(x: Array) -> Array:
    """−log σ(−x)."""
    return array_namespace(x).logaddexp(x, 0 * x)
