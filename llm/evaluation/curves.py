"""curves.png: each metric of a run against the iteration."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from llm.storage.files import Record
from solvers import style

logger = logging.getLogger(__name__)

COLORS = ("#0072B2", "#E69F00", "#009E73", "#D55E00")  # Okabe and Ito, as in solvers.style


TITLES = {
    "win_rate": "win rate over μ",
    "kl_to_reference": "KL to μ in nats",
    "entropy": "entropy in nats",
    "length": "length in tokens",
    "self_bleu": "self-BLEU",
    "duality_gap": "duality gap",
}


class Line(NamedTuple):
    """A curve of a panel; one without a label explains itself."""

    label: str | None
    values: list[float]
    color: str = COLORS[0]
    form: str = "o-"


def draw_curves(path: Path, rows: Sequence[Record]) -> bool:
    """Writes a PNG; False, and a warning, where there is no matplotlib."""
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning("no curves.png: it needs matplotlib (pip install matplotlib)")
        return False
    _draw(path, rows)
    return True


@style.styled
def _draw(path: Path, rows: Sequence[Record]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = panels_of(rows)
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(4 * across, 2.8 * down))
    for i, (title, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(down, across, i + 1)
        for line in lines:
            steps = [row["iteration"] for row in rows]
            axes.plot(steps, line.values, line.form, color=line.color, label=line.label)
        if title.startswith("KL(π*") and min(min(line.values) for line in lines) > 0:
            axes.set_yscale("log")
        axes.set_title(title)
        axes.set_xlabel("iteration")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if len(lines) > 1:
            axes.margins(y=0.25)  # room for the legend
            axes.legend(ncols=2, loc="upper right")
    if "target" in rows[0]:
        figure.suptitle(f"π* is {rows[0]['target']}")
    FigureCanvasAgg(figure).print_png(path)


def panels_of(rows: Sequence[Record]) -> dict[str, list[Line]]:
    """{title: curves} of what is known of a run and changes."""

    def values(name: str) -> list[float]:
        return [row[name] for row in rows]

    panels: dict[str, list[Line]] = {}
    if rows[0].get("kl_to_equilibrium") is not None:
        panels["KL(π*‖π_t) in nats"] = [
            Line("model", values("kl_to_equilibrium")),
            Line("exact iterate", values("exact_kl_to_equilibrium"), COLORS[1], "--"),
        ]
    if "styles" in rows[0]:
        star = rows[0].get("equilibrium_styles", {})
        dotted = " (dotted: in π*)" if star else ""
        lines = panels[f"share of each style{dotted}"] = []
        for color, name in zip(COLORS, rows[0]["styles"], strict=True):
            lines.append(Line(name, [row["styles"][name] for row in rows], color))
            if star:
                lines.append(Line(None, [star[name]] * len(rows), color, ":"))
    for name, title in TITLES.items():
        if rows[0].get(name) is not None and len(set(values(name))) > 1:
            panels[title] = [Line(None, values(name))]
    return panels
