"""Plays: a finite game under a measure, exact or sampled.

A batch of K responses with their K × K preferences is a finite game with weights 1/K; the tabular
game is the same with its n actions and weights π_t. Rules take `Plays`, exact or sampled, without
distinction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from array_api_compat import array_namespace, device

from games.errors import InputError

from .arrays import Array, against, log_mixture, logsumexp
from .mirror import ENTROPY, MirrorMap

Diagonal = Literal["exclude", "include"]


@dataclass(frozen=True)
class Measure:
    """One player's policy π_t, known at n points with weights that represent it.

    logp, logp_ref   (..., n) log π_t and log μ at the points (θ of the mirror map in general)
    log_weight       (..., n) log of the weights of K samples, −log K; None: the points are all the
                     actions, with π_t itself as weights
    logp_average     (..., n) log of the mean of the remembered policies, for rules with a memory
    logp_geometric   (..., n) mean of their logs, for MNPO
    logp_previous    (..., n) log π_{t−1}, for optimistic rules
    logp_data        (..., n) log of the data distribution, for SPIN
    logp_proposal    (..., n) log, up to a constant, of what samples were drawn from; None: π_t
    length           (..., n) tokens of a response, where a fit normalizes by it
    """

    logp: Array
    logp_ref: Array
    log_weight: Array | None = None
    logp_average: Array | None = None
    logp_geometric: Array | None = None
    logp_previous: Array | None = None
    logp_data: Array | None = None
    logp_proposal: Array | None = None
    length: Array | None = None
    mirror: MirrorMap = ENTROPY

    @property
    def log_base(self) -> Array:
        """(..., n): added to a log-density it gives log-weights; those of π_t sum to 1."""
        if self.logp_proposal is None:
            return self.log_weight - self.logp
        drawn = self.log_weight - self.logp_proposal
        return drawn - logsumexp(self.logp + drawn, keepdims=True)

    @property
    def weights(self) -> Array:
        """(..., n): the weights that represent π_t."""
        if self.log_weight is None:
            return self.mirror.point(self.logp)
        if self.logp_proposal is not None:
            return self.weights_of(self.logp)
        return array_namespace(self.log_weight).exp(self.log_weight)

    def weights_of(self, theta: Array) -> Array:
        """(..., n) -> (..., n): weights on these points that represent the policy ∝ exp θ.

        On exact points they are the policy itself. On samples of π_t (or of a proposal) they are
        self-normalized importance weights ∝ exp(θ)/π_t: consistent as K grows, biased at O(1/K).
        """
        if self.log_weight is None:
            return self.mirror.point(self.mirror.normalize(theta))
        return self.mirror.point(self.mirror.normalize(theta + self.log_base))

    def mixture(self, share: float) -> Array:
        """(..., n): θ of the geometric mixture ∝ π_t^(1−share) μ^share at the points.

        Normalized where the points are all the actions; up to a constant on samples.
        """
        theta = log_mixture(self.logp, self.logp_ref, share)
        return theta if self.log_weight is not None else self.mirror.normalize(theta)


def memory_fields(policies: Sequence[Array]) -> dict[str, Array]:
    """h × (..., n) -> the fields of `Measure` for that memory, with equal weights."""
    xp = array_namespace(*policies)
    stacked = xp.stack(list(policies), axis=-1)
    return {
        "logp_average": logsumexp(stacked) - math.log(len(policies)),
        "logp_geometric": xp.mean(stacked, axis=-1),
    }


@dataclass(frozen=True)
class Plays:
    """Payoffs (..., n, m) of a player's n points against the opponent's m, and both measures.

    In self-play `other` is `own`. `diagonal` is the treatment of a sampled response's comparison
    with itself: `exclude` (each response meets the K − 1 others, so that E[G_k | y_k] = G(y_k)),
    `include` (as published SPPO and RSPO code does: with B = ½ the target equilibrium is that of
    temperature τK/(K − 1)), or None where the points are all the actions.
    `offset` (..., n) is added to what the payoff gives (the affine games on ℝᵈ).
    """

    payoff: Array | None
    own: Measure
    other: Measure
    diagonal: Diagonal | None = None
    offset: Array | None = None

    @classmethod
    def exact(cls, payoff: Array, logp: Array, logp_ref: Array, **known: Any) -> Plays:
        """(..., n, n), (..., n), (..., n): self-play over all n actions.

        `known` are further fields of `Measure` (logp_average, logp_previous, …).
        """
        measure = Measure(logp, logp_ref, **known)
        return cls(payoff, measure, measure)

    @classmethod
    def sampled(
        cls,
        payoff: Array | None,
        logp: Array,
        logp_ref: Array,
        diagonal: Diagonal = "exclude",
        **known: Any,
    ) -> Plays:
        """(..., K, K), (..., K), (..., K): a round robin of K responses sampled from π_t.

        With `logp_proposal` among the `known` fields of `Measure` they are samples of that. Raises
        InputError where K < 2 or the diagonal is invalid.
        """
        if diagonal not in ("exclude", "include"):
            raise InputError(f"diagonal '{diagonal}': choose 'exclude' or 'include'")
        if logp.shape[-1] < 2:
            raise InputError("a round robin needs at least 2 responses per prompt")
        xp = array_namespace(logp)
        log_weight = xp.full_like(logp, -math.log(logp.shape[-1]))
        measure = Measure(logp, logp_ref, log_weight, **known)
        return cls(payoff, measure, measure, diagonal)

    @classmethod
    def with_data(cls, logp: Array, logp_ref: Array, data: int) -> Plays:
        """(..., K), (..., K): samples for SPIN, `data` dataset responses before the opponent's.

        Raises InputError where one of the two kinds is missing.
        """
        xp, k = array_namespace(logp), logp.shape[-1]
        if not 0 < data < k:
            raise InputError("SPIN needs a dataset response and one of the opponent per prompt")
        is_data = xp.arange(k, device=device(logp)) < data
        nothing = xp.full_like(logp, -math.inf)
        logp_data = xp.where(is_data, xp.full_like(logp, -math.log(data)), nothing)
        opponent = xp.where(is_data, nothing, xp.full_like(logp, -math.log(k - data)))
        measure = Measure(logp, logp_ref, opponent, logp_average=opponent, logp_data=logp_data)
        return cls(None, measure, measure)

    @property
    def centering(self) -> float:
        """K/(K − 1) where the own entry is left out, else 1.

        Centering K draws on their mean scales each by (K − 1)/K in expectation, but not a round
        robin without own entries, whose mean is ½ for all draws. Other terms that are centered with
        it are multiplied by this factor to keep the proportion.
        """
        k = self.own.logp.shape[-1]
        return k / (k - 1) if self.diagonal == "exclude" else 1.0

    @property
    def reversed(self) -> Plays:
        """The game from the opponent's side: itself in self-play, −payoffᵀ in a zero-sum game."""
        if self.other is self.own:
            return self
        return Plays(
            -array_namespace(self.payoff).matrix_transpose(self.payoff), self.other, self.own
        )

    def against(self, weights: Array) -> Array:
        """(..., m) -> (..., n): the payoff of each point against the opponent of these weights."""
        if self.payoff is None:
            raise InputError("this game has no payoffs: choose a rule for data (spin, alpha_spin)")
        won = against(self.payoff, weights)
        if self.diagonal == "exclude":
            itself = array_namespace(won).linalg.diagonal(self.payoff)
            won = (won - itself * weights) / (1 - weights)
        return won if self.offset is None else won + self.offset
