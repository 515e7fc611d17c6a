"""Fits of single responses: regression on a target, and the policy gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from array_api_compat import array_namespace

from games.errors import InputError

from ..arrays import Array
from ..divergences import Divergence, Summand
from ..estimators import EstimatorName, estimate, factor
from ..kernels import FORWARD_KL, Kernel
from ..plays import Plays
from ..steps import step
from ..update import Update
from .base import Fit, Items, one_per_response, refuse_unreachable


@dataclass(frozen=True)
class Proximal(Fit):
    """Regression on the tabular step's own log π_{t+1}, at the responses: bounded targets."""

    name = "proximal"
    centered = True

    def items(self, plays: Plays, update: Update) -> Items:
        refuse_unreachable(update, best_response=update.regularizer is None)
        return one_per_response(plays, {"target": step(update, plays)})

    def loss(
        self,
        logp_items: Array,
        columns: dict[str, Array],
        regularizer: Divergence | None = None,
    ) -> Array:
        return (logp_items[..., 0] - columns["target"]) ** 2


@dataclass(frozen=True)
class Regularized(Fit):
    """What regression and policy gradient share: R̂ on the responses.

    estimator          of R, see `estimators`
    clip               of the log-ratios of the published estimators
    direct_forward_kl  leave forward KL out of the loss: the trainer adds rows sampled from μ with
                       the loss `direct_forward_kl(logp, fit.reference_coefficient(update))`
    """

    estimator: EstimatorName = "importance"
    clip: float = 10.0
    direct_forward_kl: bool = False

    scale: ClassVar[float] = 1.0
    any_samples: ClassVar[bool] = True

    def factor(self, kernel: Kernel) -> float:
        return factor(kernel, self.estimator)

    def coefficients(self, regularizer: Divergence, eta: float, tau: float) -> Divergence | None:
        """Σ λ_j R_j: λ_j is 2ητ times its weight in R, over the factor of its estimator."""
        return _sum(self._weighted(regularizer, eta, tau))

    def reference_coefficient(self, update: Update) -> float | None:
        if not self.direct_forward_kl or update.regularizer is None:
            return None
        parts = self._weighted(update.regularizer, update.eta, update.tau)
        lams = [part.weight for part in parts if part.kernel == FORWARD_KL]
        return lams[0] if lams else None

    def _weighted(self, regularizer: Divergence, eta: float, tau: float) -> list[Summand]:
        """The terms of R with their coefficients λ in the loss."""
        lam = self.scale * 2 * eta * tau
        return [
            replace(part, weight=lam * part.weight / self.factor(part.kernel))
            for part in regularizer.summands
        ]

    def _recorded(self, plays: Plays, update: Update) -> Items:
        """Raises InputError where a loss weighted by π_t gets samples of something else."""
        refuse_unreachable(update)
        target = update.anchor + update.eta * (update.direction - update.baseline)
        columns = {"target": target, "logp_current": plays.own.logp, "logp_ref": plays.own.logp_ref}
        parts: list[Summand] = []
        if update.regularizer is not None:
            parts = self._weighted(update.regularizer, update.eta, update.tau)
        if self.direct_forward_kl:
            parts = [part for part in parts if part.kernel != FORWARD_KL]
        if plays.own.logp_proposal is not None and (parts or not self.any_samples):
            raise InputError(
                f"fit '{self.name}' needs responses of the current policy here: draw them from it, "
                "or take fit proximal or pairwise"
            )
        return one_per_response(plays, columns, _sum(parts))

    def _penalty(
        self, logp: Array, columns: dict[str, Array], regularizer: Divergence | None
    ) -> Array | float:
        """(..., I) -> (..., I): Σ λR̂ over the terms of R."""
        if regularizer is None:
            return 0.0
        recorded = columns["logp_ref"], columns["logp_current"]
        return sum(
            part.weight * estimate(self.estimator, part, logp, *recorded, self.clip)
            for part in regularizer.summands
        )


def _sum(parts: Sequence[Summand]) -> Divergence | None:
    """Σ weight · R; None for no terms."""
    each = [part.weight * part.divergence for part in parts]
    return sum(each[1:], each[0]) if each else None


@dataclass(frozen=True)
class Regression(Regularized):
    """(log π_θ − [anchor + η(G − B)])² + λR̂ (RSPO Eq. 6, and Eq. 8 with B = ½).

    `responses=best_worst` keeps the responses of the highest and lowest G only, as the published
    SPPO and RSPO code does: a biased choice, with no guarantee. That code sums R̂ over the two but
    averages their squares: its λ is half of λ here.
    """

    name = "regression"
    responses: Literal["all", "best_worst"] = "all"

    def is_consistent(self, sampled: bool) -> bool:
        return self.responses == "all"

    def items(self, plays: Plays, update: Update) -> Items:
        items = self._recorded(plays, update)
        if self.responses == "all":
            return items
        if plays.own.log_weight is None:
            raise InputError("responses=best_worst chooses among samples: exact Plays need 'all'")
        xp = array_namespace(update.direction)
        ends = [xp.argmax(update.direction, axis=-1), xp.argmin(update.direction, axis=-1)]
        chosen = xp.stack(ends, axis=-1)
        columns = {k: xp.take_along_axis(v, chosen, axis=-1) for k, v in items.columns.items()}
        weight = xp.full_like(columns["target"], 0.5)
        return Items(chosen[..., None], weight, columns, items.regularizer)

    def loss(
        self,
        logp_items: Array,
        columns: dict[str, Array],
        regularizer: Divergence | None = None,
    ) -> Array:
        logp = logp_items[..., 0]
        return (logp - columns["target"]) ** 2 + self._penalty(logp, columns, regularizer)


@dataclass(frozen=True)
class PolicyGradient(Regularized):
    """−η⟨G − B, π_θ⟩ + KL(π_θ‖anchor) + ητR̂ (RSPO Eq. 14), by importance weights π_θ/π_t.

    A sample's gradient is (π_θ/π_t)(log π_θ/anchor − η(G − B))∇log π_θ: Eq. 15, off policy too.
    """

    name = "policy_gradient"
    scale = 0.5
    any_samples = False

    def items(self, plays: Plays, update: Update) -> Items:
        return self._recorded(plays, update)

    def loss(
        self,
        logp_items: Array,
        columns: dict[str, Array],
        regularizer: Divergence | None = None,
    ) -> Array:
        logp = logp_items[..., 0]
        ratio = array_namespace(logp).exp(logp - columns["logp_current"])
        # −1 has mean zero, E π_θ/π_t = 1, and leaves no noise where log π_θ is at its target.
        return ratio * (logp - columns["target"] - 1) + self._penalty(logp, columns, regularizer)


def direct_forward_kl(logp_items: Array, lam: Array | float) -> Array:
    """(..., I, 1), (..., I) -> (..., I): −λ log π_θ at responses sampled once from μ (App. C.3).

    Its mean over μ is λ KL(μ‖π_θ) up to a constant, on and off policy.
    """
    return -lam * logp_items[..., 0]
