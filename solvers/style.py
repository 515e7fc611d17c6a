"""One look for every figure: a rule keeps its color and marker wherever it is drawn.

The colors are those of Okabe and Ito (2008) and, after these, of Paul Tol's muted scheme: both are
distinguishable with any color vision. Markers repeat the distinction, for curves that coincide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

# name: (color, marker)
RULES = {
    "mwu": ("#000000", "o"),
    "gmmd": ("#0072B2", "s"),
    "mmd": ("#56B4E9", "D"),
    "omd": ("#D55E00", "^"),
    "inpo": ("#E69F00", "v"),
    "nash_md": ("#009E73", "P"),
    "fictitious_play": ("#CC79A7", "X"),
    "smooth_fictitious_play": ("#882255", "h"),
    "spin": ("#999933", "<"),
    "alpha_spin": ("#DDCC77", ">"),
    "mpo": ("#332288", "p"),
    "comal": ("#117733", "*"),
    "optimistic_mwu": ("#777777", "o"),
    "optimistic_gmmd": ("#661100", "s"),
    "egpo": ("#AA4499", "d"),
    "mnpo": ("#44AA99", "8"),
    "ipo_md": ("#CC3311", "x"),
    "dpo": ("#8C564B", "<"),
    "moving_dpo": ("#BCBD22", ">"),
}
OTHERS = [("#6699CC", "o"), ("#CC6677", "s"), ("#997700", "^"), ("#555555", "v")]

EQUILIBRIUM = {"color": "#F0E442", "marker": "*", "markersize": 15, "markeredgecolor": "#000000"}
REFERENCE = {"color": "#FFFFFF", "marker": "s", "markersize": 7, "markeredgecolor": "#000000"}
BOUND = {"linestyle": (0, (5, 3)), "linewidth": 1.1, "alpha": 0.8}

RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.fonttype": "none",
}


def of_rule(name: str, others: int = 0) -> dict[str, str]:
    """Color and marker of a rule; a rule of the user's own takes the `others`-th spare pair."""
    color, marker = RULES.get(name) or OTHERS[others % len(OTHERS)]
    return {"color": color, "marker": marker}


def use() -> None:
    """Make this the look of all figures to come (notebooks)."""
    import matplotlib

    matplotlib.rcParams.update(RC)


def styled(draw: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Run a function in this look and leave the caller's own as it was."""

    @wraps(draw)
    def drawing(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        import matplotlib

        with matplotlib.rc_context(RC):
            return draw(*args, **kwargs)

    return drawing


def keep_noise_small(axes: Any, errors: Sequence[float]) -> None:
    """Widens a linear y axis until the median error bar takes at most a quarter of its height.

    Otherwise the axis fits the noise of curves that do not differ, and they seem to.
    """
    known = sorted(error for error in errors if math.isfinite(error))
    if not known or axes.get_yscale() != "linear":
        return
    low, high = axes.get_ylim()
    missing = 8 * known[len(known) // 2] - (high - low)
    if missing > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
