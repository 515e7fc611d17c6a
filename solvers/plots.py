"""Pictures of runs. matplotlib is loaded when the first one is drawn.

Every function that returns a figure does so in the look of `style`; `save` writes it whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from games import MatrixGame, SymmetricGame

from . import style
from .compare import Game, Run, Skipped
from .gap import duality_gap
from .outputs import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST = 1e250  # on log axes
FLOOR = 1e-17  # on log axes: smaller distances are rounding
PI, AVERAGED, KL = r"$\pi_t$", r"$\pi_0,\dots,\pi_t$", r"KL$(\pi^*\Vert\,\pi_t)$"
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, math.sqrt(3) / 2]])


@style.styled
def save(figure: Figure, path: Path) -> None:
    """Write a .png, .pdf or .svg."""
    kind = path.suffix.lower().removeprefix(".")
    with np.errstate(over="ignore"):  # of the margins of logarithmic axes, at gaps of 1e300
        write_whole(path, lambda file: figure.savefig(file, format=kind))


@style.styled
def comparison(runs: Sequence[Run | Skipped], title: str) -> Figure:
    """Gap of the last iterate, gap of the average and KL of all runs, and their legend."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(10, 7.6))
    last, average, kl, key = figure.subplots(2, 2).flat
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    played = [run for run in runs if isinstance(run, Run)]
    spare, handles = 0, []
    for i, run in enumerate(played):
        look = _look(run, spare)
        spare += run.rule.name not in style.RULES
        steps, history = run.solution.history.steps, run.solution.history
        spread = i / len(played)
        _curve(last, steps, history.gap, spread, **look)
        _curve(average, steps, history.average_gap, spread, **look)
        facts = [run.target, run.rule.converges]
        if not _curve(kl, steps, run.kl, spread, **look):
            facts.append(f"KL {_why_nothing(run.kl).partition(':')[0]}")
        if run.bound is not None:
            _curve(kl, steps, run.bound, color=look["color"], **style.BOUND)
        handles.append(Line2D([], [], label=f"{run.label}   [{'; '.join(facts)}]", **look))
    if any(run.bound is not None for run in played):
        label = "bound by theory, in the rule's color"
        handles.append(Line2D([], [], color="#555555", label=label, **style.BOUND))
    last.set_title(f"duality gap of the last iterate {PI}")
    average.set_title(f"duality gap of the average of {AVERAGED}")
    kl.set_title(rf"{KL}, each to the $\pi^*$ of its own game")
    for axes in (last, average):
        _log_axes(axes, "0 for every rule")
    _log_axes(kl, "no curve: see the key")
    average.sharey(last)
    key.axis("off")
    legend = key.legend(
        handles=handles, loc="upper left", alignment="left", borderaxespad=0.0,
        title="rule   [target game; iterate that converges by theory]",
        fontsize=_key_size([str(handle.get_label()) for handle in handles]),
    )  # fmt: skip
    legend.get_title().set(fontsize=9, fontstyle="italic")
    return figure


@style.styled
def run(game: Game, run: Run, title: str) -> Figure:
    """Gap and KL of one run, and its path where it kept policies of three actions."""
    from matplotlib.figure import Figure

    solution = run.solution
    history = solution.history
    on_triangle = history.logp is not None and history.logp.shape[1:] == (3,)
    figure = Figure(figsize=(12, 4) if on_triangle else (9, 4))
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    ratios = [1, 1, 1.15] if on_triangle else [1, 1]
    gap, kl, *rest = figure.subplots(1, len(ratios), width_ratios=ratios)
    color = _look(run, 0)["color"]
    gap.set_title("duality gap")
    last, average = history.gap, history.average_gap
    _curve(gap, history.steps, last, color=color, label=f"last iterate {PI}")
    _curve(gap, history.steps, average, color=color, linestyle=":", label=f"average of {AVERAGED}")
    kl.set_title(f"{KL}, distance to the equilibrium")
    _curve(kl, history.steps, run.kl, color=color, label=KL)
    if run.bound is not None:
        _curve(
            kl, history.steps, run.bound, color="#555555", label="bound by theory", **style.BOUND
        )
    for axes, values in ((gap, last), (kl, run.kl)):
        _log_axes(axes, _why_nothing(values))
        if len(axes.lines) > 1:
            axes.legend()
    if on_triangle:
        path(rest[0], game, run)
    return figure


def path(axes: Axes, game: Game, run: Run) -> None:
    """Draw a run's policies (T, 3) on the triangle, over the level curves of its gap."""
    solution, star = run.solution, run.equilibrium
    assert solution.history.logp is not None
    triangle(axes, game.row_labels if isinstance(game, MatrixGame) else game.labels)
    if isinstance(game, SymmetricGame):
        levels(axes, game, run)
    points = np.exp(solution.history.logp) @ CORNERS
    each = np.diff(solution.history.steps, prepend=-1) == 1  # recorded step by step
    color = _look(run, 0)["color"]
    point = {"color": color, "linestyle": "none"}
    axes.plot(*points[each].T, color=color, linewidth=1.1, label=PI)
    axes.plot(*points[~each].T, marker=".", markersize=3, **point)
    reference, equilibrium = np.exp(solution.reference) @ CORNERS, np.exp(star.logp) @ CORNERS
    axes.plot(*reference, linestyle="none", label=r"reference $\mu$ = start", **style.REFERENCE)
    axes.plot(*equilibrium, linestyle="none", label=r"equilibrium $\pi^*$", **style.EQUILIBRIUM)
    axes.plot(
        *(solution.average @ CORNERS),
        marker="D", markerfacecolor="white", markersize=4.5, label="average", **point,
    )  # fmt: skip
    axes.plot(*points[-1], marker="o", markersize=4.5, label="last iterate", **point)
    axes.legend(loc="upper left", bbox_to_anchor=(-0.1, 1.0), handlelength=1.2)


def triangle(axes: Axes, labels: Sequence[str] | None = None) -> None:
    """Turn axes into the 2-simplex, a corner for each of three actions."""
    axes.axis("off")
    axes.set_aspect("equal")
    axes.plot(*CORNERS[[0, 1, 2, 0]].T, color="#333333", linewidth=0.9)
    places = [("right", "top"), ("left", "top"), ("center", "bottom")]
    for corner, label, (across, along) in zip(
        CORNERS, labels or ("1", "2", "3"), places, strict=True
    ):
        axes.annotate(label, corner, (0, 4 if along == "bottom" else -4),
                      textcoords="offset points", ha=across, va=along)  # fmt: skip


def levels(axes: Axes, game: SymmetricGame, run: Run) -> None:
    """Level curves of the gap of a run's target game, each twice the one inside it."""
    side = np.linspace(0, 1, 121)
    a, b = (axis.ravel() for axis in np.meshgrid(side, side))
    grid = np.stack([1 - a - b, a, b], axis=-1)[a + b <= 1 + 1e-9]
    with np.errstate(divide="ignore"):
        logs = np.log(np.maximum(grid, 0.0))
    reference = np.broadcast_to(run.solution.reference, logs.shape)
    gaps = duality_gap(game, logs, None, *run.rule.target, reference)
    finite = np.isfinite(gaps)
    top = gaps[finite].max()
    heights = top * 0.5 ** np.arange(7, -1, -1.0)
    grey = "#BBBBBB"
    x, y = (grid[finite] @ CORNERS).T
    axes.tricontour(x, y, gaps[finite], levels=heights, colors=grey, linewidths=0.6)
    axes.plot([], [], color=grey, linewidth=0.6, label="gap, halving inwards")


def _look(run: Run, spare: int) -> dict[str, Any]:
    look: dict[str, Any] = style.of_rule(run.rule.name, spare)
    if run.label != run.rule.name:
        look |= {"linestyle": "-.", "markerfacecolor": "white"}
    return look


def _key_size(labels: list[str]) -> float:
    """Font size at which a key fits its quarter: 14 lines of 60 letters have room at 9 pt."""
    return 9 * min(1.0, 14 / len(labels), 60 / max(map(len, labels)))


def _curve(axes: Axes, steps: np.ndarray, values: np.ndarray, spread: float = 0.0, **look) -> bool:
    """Draw a distance over the steps, the largest of a batch; False if there is nothing to draw.

    Markers are set apart by `spread`.
    """
    values = values.reshape(len(steps), -1).max(axis=1)
    shown = (steps > 0) & (values > FLOOR) & (values < np.inf)
    if shown.sum() == 1:
        look["marker"] = "o"
    if shown.any():
        axes.plot(steps[shown], values[shown], markevery=(0.15 * spread, 0.15), **look)
    return bool(shown.any())


def _why_nothing(values: np.ndarray) -> str:
    """Why a distance (T, ...) has no curve."""
    first, last = float(np.max(values[0])), float(np.max(values[-1]))
    if math.isnan(last):
        return "undefined: one of many equilibria"
    if math.isinf(last):
        return "infinite: a best response gives actions up"
    return "0: the start is the equilibrium" if first <= FLOOR else "0: there in one step"


def _log_axes(axes: Axes, why_nothing: str) -> None:
    """Log scales over at least a decade and a half."""
    axes.set_xlabel("iteration t")
    # Margins and ticks of larger values would overflow.
    if any(np.max(line.get_ydata(), initial=0.0) > LARGEST for line in axes.lines):
        why_nothing = f"not drawn: larger than {LARGEST:g}"
        for line in list(axes.lines):
            line.remove()
    if not axes.lines:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, why_nothing, transform=axes.transAxes, ha="center", color="#555555")
        return
    axes.set(xscale="log", yscale="log")
    low, high = axes.get_ylim()
    widen = math.sqrt(max(1.0, 30 * low / high))
    axes.set_ylim(low / widen, high * widen)
