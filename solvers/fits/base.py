"""What all fits share: rows of training data, and the interface of a loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import ClassVar, get_args, get_type_hints

import numpy as np
from array_api_compat import array_namespace, device

from games.errors import InputError

from ..arrays import Array, dot
from ..divergences import Divergence
from ..kernels import Kernel
from ..plays import Diagonal, Plays
from ..rules import UpdateRule, tau_from_lam
from ..update import Update


@dataclass(frozen=True)
class Items:
    """Rows for training.

    index        (..., I, arity) the points of the Plays that a row contains
    weight       (..., I) the loss of a prompt is Σ weight · loss. Uniform on samples
    columns      {name: (..., I)} numbers that `loss` needs
    regularizer  Σ λ_j R_j in the loss, for `loss`; None: without
    """

    index: Array
    weight: Array
    columns: dict[str, Array]
    regularizer: Divergence | None = None


@dataclass(frozen=True)
class Temperature:
    """The temperature `tau` of a term of R in the target game; with K samples, `effective`.

    `lam` is its λ in the loss, None if it is not in the loss; `effective` is None without a
    guarantee.
    """

    term: str
    lam: float | None
    tau: float
    effective: float | None


@dataclass(frozen=True)
class Fit(ABC):
    """A loss that fits π_θ. `centered`: on samples it centers its target on the batch."""

    name: ClassVar[str]
    centered: ClassVar[bool] = False

    def is_consistent(self, sampled: bool) -> bool:
        """Whether the minimizer is the rule's step (exactly, or in expectation over K samples)."""
        return True

    def __post_init__(self) -> None:
        """Raises InputError for an option's value that is not of its kind."""
        kinds = get_type_hints(type(self))
        for field in fields(self):
            kind, value = kinds[field.name], getattr(self, field.name)
            if choices := get_args(kind):
                if value not in choices:
                    raise InputError(f"{field.name} '{value}': choose from {', '.join(choices)}")
            elif kind is bool and not isinstance(value, bool):
                raise InputError(f"{field.name} must be true or false, not {value!r}")
            elif kind is float and not (isinstance(value, int | float) and 0 <= value < math.inf):
                raise InputError(f"{field.name} must be a number that is at least 0, not {value!r}")

    @abstractmethod
    def items(self, plays: Plays, update: Update) -> Items:
        """The rows. Raises InputError where this fit cannot carry out the update."""

    @abstractmethod
    def loss(
        self,
        logp_items: Array,
        columns: dict[str, Array],
        regularizer: Divergence | None = None,
    ) -> Array:
        """(..., I, arity), {name: (..., I)} -> (..., I): of log π_θ at the items' responses.

        `columns` and `regularizer` are those of the items.
        """

    def __call__(self, plays: Plays, update: Update, logp_theta: Array) -> Array:
        """(..., n) -> (...,): the loss of log π_θ, the expectation itself on exact Plays."""
        return self.loss_on(self.items(plays, update), logp_theta)

    def loss_on(self, items: Items, logp_theta: Array) -> Array:
        """(..., n) -> (...,): Σ weight · loss over items that are recorded already."""
        xp = array_namespace(logp_theta)
        flat = xp.reshape(items.index, (*items.index.shape[:-2], -1))
        logp_items = xp.reshape(xp.take_along_axis(logp_theta, flat, axis=-1), items.index.shape)
        return dot(items.weight, self.loss(logp_items, items.columns, items.regularizer))

    def factor(self, kernel: Kernel) -> float:
        """The ratio of the gradient of this fit's estimate of a divergence to its own."""
        return 1.0

    def game(self, regularizer: Divergence, lam: float, eta: float) -> tuple[Divergence, float]:
        """(R, τ) of the target game of a term λR̂ in the loss of RSPO Eq. 6: τ = λ/(2η).

        R is the given one with every term times the factor of its estimator.
        """
        factors = {self.factor(part.kernel) for part in regularizer.summands}
        if factors == {1.0}:
            return regularizer, tau_from_lam(lam, eta)
        parts = [
            self.factor(part.kernel) * part.weight * part.divergence
            for part in regularizer.summands
        ]
        return sum(parts[1:], parts[0]), tau_from_lam(lam, eta)

    def coefficients(self, regularizer: Divergence, eta: float, tau: float) -> Divergence | None:
        """Σ λ_j R_j of an R that acts in the step; None where this fit has none in its loss."""
        return None

    def reference_coefficient(self, update: Update) -> float | None:
        """λ of a forward KL that is estimated on responses of μ; None: not needed.

        The trainer then adds rows sampled from μ with the loss `direct_forward_kl(logp, λ)`.
        """
        return None

    def temperatures(
        self,
        rule: UpdateRule,
        eta: float,
        samples: int | None = None,
        diagonal: Diagonal = "exclude",
    ) -> list[Temperature]:
        """The temperature of each term of the rule's R; `samples` is K, None for exact Plays.

        Including own entries scales G by (K − 1)/K. Where the fit does not center on the batch, the
        pull of μ is not scaled, and the target game has temperature τK/(K − 1). (The mixed
        opponent of Nash-MD is also biased at O(1/K).)
        """
        regularizer, tau = rule.target
        if regularizer is None:
            return []
        implicit = rule.regularization == "implicit"
        loss = self.coefficients(regularizer, eta, tau) if implicit else None
        lams = {} if loss is None else {(p.kernel, p.counting): p.weight for p in loss.summands}
        scale = 1.0
        if samples is not None and diagonal == "include" and not self.centered:
            scale = samples / (samples - 1)
        # A baseline that depends on the batch centers G on it.
        constant = self.centered or isinstance(
            _example(replace(rule, eta=eta)).baseline, int | float
        )
        guaranteed = self.is_consistent(samples is not None) and (samples is None or constant)
        return [
            Temperature(
                part.name,
                lams.get((part.kernel, part.counting)),
                tau * part.weight,
                scale * tau * part.weight if guaranteed else None,
            )
            for part in regularizer.summands
        ]

    def check(self, rule: UpdateRule, proposal: bool = False) -> None:
        """Raises InputError, before anything is sampled, where this fit cannot serve the rule.

        `proposal`: the samples will be drawn from something else than π_t.
        """
        plays = _example_plays(rule, proposal)
        self.items(plays, rule(plays))


def _example_plays(rule: UpdateRule, proposal: bool = False) -> Plays:
    """Three samples of a small game, with all that the rule can require."""
    logp, logp_ref = np.log([0.2, 0.3, 0.5]), np.log([0.5, 0.3, 0.2])
    payoff = np.array([[0.5, 0.9, 0.2], [0.1, 0.5, 0.7], [0.8, 0.3, 0.5]])
    if rule.needs_data:
        return Plays.with_data(logp, logp_ref, data=1)
    remembered = logp if rule.memory == 1 else logp_ref
    return Plays.sampled(
        payoff,
        logp,
        logp_ref,
        logp_average=remembered,
        logp_geometric=remembered,
        logp_previous=logp_ref,
        logp_proposal=logp_ref if proposal else None,
        length=np.array([3.0, 4.0, 5.0]),
    )


def _example(rule: UpdateRule) -> Update:
    return rule(_example_plays(rule))


def refuse_unreachable(update: Update, best_response: bool = True) -> None:
    """Raises InputError for a best response, unless allowed, and for an infinite direction."""
    if best_response and update.eta == math.inf:
        raise InputError("this rule plays best responses, which no fit reaches: take another rule")
    xp = array_namespace(update.direction)
    if not bool(xp.all(xp.isfinite(update.direction))):
        raise InputError(
            "the direction is not finite: samples of spin and alpha_spin need logistic"
        )


def drawn_weights(plays: Plays) -> Array:
    """(..., n): π_t on exact Plays; on samples 1/K, also where they come from a proposal."""
    own = plays.own
    return replace(own, logp_proposal=None).weights


def one_per_response(
    plays: Plays, columns: dict[str, Array], regularizer: Divergence | None = None
) -> Items:
    """One item per point."""
    logp = plays.own.logp
    index = array_namespace(logp).arange(logp.shape[-1], device=device(logp))
    return Items(broadcast(index[:, None], logp), drawn_weights(plays), columns, regularizer)


def broadcast(index: Array, like: Array) -> Array:
    """(I, arity), (..., I) -> (..., I, arity)."""
    return array_namespace(like).broadcast_to(index, (*like.shape, index.shape[-1]))
