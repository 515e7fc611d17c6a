"""The ledger as a table, as Markdown and as a picture."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from .. import style
from .ledger import Chart, Row, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {
    Verdict.HOLDS: "green",
    Verdict.CORRECTED: "yellow",
    Verdict.FAILS: "red",
    Verdict.UNCLEAR: "magenta",
}
MEANINGS = {
    Verdict.HOLDS: "as printed",
    Verdict.CORRECTED: "with a constant, a sign or an assumption mended",
    Verdict.FAILS: "it does not hold",
    Verdict.UNCLEAR: "it can be read in several ways, and they fare differently",
}
TITLES = {
    "RSPO": "RSPO: Regularized Self-Play Policy Optimization (arXiv 2503.00030)",
    "INPO": "INPO: Iterative Nash Policy Optimization (arXiv 2407.00617)",
    "Nash-MD": "Nash-MD: Nash Learning from Human Feedback (arXiv 2312.00886)",
    "α-SPIN": "α-SPIN: Investigating Regularization of Self-Play Language Models "
    "(arXiv 2404.04291)",
}

PREFACE = """\
# The claims ledger

Statements of the papers, each measured by a function of `solvers/claims`. Written by
`python -m solvers claims --markdown CLAIMS.md`; `python -m solvers claims --game FILE` measures
those that can be on a game of your own. What stands in [brackets] in a statement is our reading.

Symbols: P(y ≻ y′) preference; π_t current policy, π_θ the one that is trained, μ reference, π\\*
equilibrium; η step size; τ temperature of the game; λ coefficient of R in a loss; G update
direction, B baseline, R regulariser, f its kernel, φ = f′, u = π/μ; m modulus of strong convexity
of R relative to entropy; L Lipschitz constant ½ maxᵢ(maxⱼ Pᵢⱼ − minⱼ Pᵢⱼ). Random games have
independent uniform preferences, random policies normal logits.
"""


def table(rows: Sequence[Row]) -> Table:
    """Paper, equation, verdict, statement, and what was measured."""
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_lines=False)
    shown.add_column("paper", overflow="fold")
    shown.add_column("equation", max_width=16, overflow="fold")
    shown.add_column("verdict", no_wrap=True)
    shown.add_column("statement", ratio=2, overflow="fold")
    shown.add_column("evidence", ratio=3, overflow="fold")
    for row in rows:
        found, claim = row.finding, row.claim
        evidence = Text(found.evidence)
        if found.correction:
            evidence.append(f"\nInstead: {found.correction}", style="bold")
        verdict = Text(str(found.verdict), style=COLOURS[found.verdict])
        shown.add_row(claim.paper, claim.equation, verdict, Text(claim.statement), evidence)
    return shown


def summary(rows: Sequence[Row]) -> str:
    """How many rows have which verdict."""
    counts = Counter(row.finding.verdict for row in rows)
    parts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    return f"{len(rows)} claims: {parts}"


def markdown(rows: Sequence[Row]) -> str:
    """CLAIMS.md."""
    meanings = "".join(f"- **{verdict}**: {text}\n" for verdict, text in MEANINGS.items())
    parts = [PREFACE, meanings, overview(rows)]
    for paper in dict.fromkeys(row.claim.paper for row in rows):
        parts.append(f"## {TITLES.get(paper, paper)}\n")
        parts += [section(row) for row in rows if row.claim.paper == paper]
    return "\n".join(parts)


def overview(rows: Sequence[Row]) -> str:
    """A table of counts."""
    lines = ["| paper | " + " | ".join(Verdict) + " |", "|---" * (len(Verdict) + 1) + "|"]
    for paper in dict.fromkeys(row.claim.paper for row in rows):
        counts = Counter(row.finding.verdict for row in rows if row.claim.paper == paper)
        lines.append(
            f"| {paper} | " + " | ".join(str(counts[verdict]) for verdict in Verdict) + " |"
        )
    return "\n".join(lines) + "\n"


def section(row: Row) -> str:
    """One claim, in full."""
    found, claim = row.finding, row.claim
    parts = [f"### {claim.equation}: {found.verdict}\n", f"> {claim.statement}\n"]
    parts.append(f"Measured: {found.evidence}\n")
    if found.correction:
        parts.append(f"**Instead:** {found.correction}\n")
    if found.counterexample:
        parts.append(f"By hand: {found.counterexample}\n")
    return "\n".join(_escaped(part) for part in parts)


def _escaped(text: str) -> str:
    """Stars and leading underscores are part of the formulas, not of Markdown."""
    bold = "**Instead:**" if text.startswith("**Instead:**") else ""
    rest = text.removeprefix(bold)
    return bold + re.sub(r"\*|(?<![\w\\])_", lambda found: "\\" + found.group(), rest)


@style.styled
def figure(charts: Sequence[Chart]) -> Figure:
    """A panel for each chart."""
    from matplotlib.figure import Figure

    across = min(3, len(charts))
    down = math.ceil(len(charts) / across)
    drawing = Figure(figsize=(4.6 * across, 3.5 * down))
    panels = drawing.subplots(down, across, squeeze=False).flat
    for axes, chart in zip(panels, charts, strict=False):
        _panel(axes, chart)
    for axes in list(panels):  # what the charts left
        axes.axis("off")
    return drawing


def _panel(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import NullFormatter

    for i, curve in enumerate(chart.curves):
        look: dict[str, Any] = {"color": _SERIES[i]}
        if curve.bound:
            look = style.BOUND | {"color": "#555555"}
        axes.plot(curve.x, curve.y, label=curve.label, **look)
    axes.set(xlabel=chart.x_label, ylabel=chart.y_label, yscale="log")
    axes.set_title(chart.title)
    if chart.log_x:
        axes.set_xscale("log")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend()


_SERIES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
