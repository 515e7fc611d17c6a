"""The tables and the picture of a comparison, from what comparison.json holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from llm.evaluation.report import Column
from llm.storage.files import Record
from solvers import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STROKES = ("-", "--", ":", "-.")  # recipes of one rule, in their order


def _of(name: str, heading: tuple[str, str], form: str = "") -> Column:
    return Column(heading, lambda row: row.get(name), form)


def _wins(row: Record) -> str | None:
    rate, error = row["win_rate"], row["win_rate_error"]
    if rate is None or error is None:
        return None if rate is None else f"{rate:.3f}"
    return f"{rate:.3f} ± {error:.3f}"


def _kl(row: Record) -> str | None:
    first, last = row["trace"][0]["kl_to_equilibrium"], row["kl_to_equilibrium"]
    return None if last is None else f"{first:.3f} → {last:.3f}"


COLUMNS = (
    _of("recipe", ("recipe", "")),
    _of("rule", ("rule", "")),
    _of("fit", ("fit", "")),
    _of("target", ("aims at", "equilibrium")),
    _of("samples_per_prompt", ("K", "")),
    _of("iterations", ("itera-", "tions")),
    Column(("wins over", "start"), _wins, ""),
    _of("kl_to_reference", ("KL to", "μ"), ".3f"),
    Column(("KL(π*‖π), its", "own π*"), _kl, ""),
    _of("duality_gap", ("plain", "gap"), ".4f"),
    _of("length", ("length", ""), ".1f"),
    _of("self_bleu", ("self-", "BLEU"), ".3f"),
    _of("optimizer_steps", ("train", "steps"), ",d"),
    _of("tokens", ("tokens", ""), ",d"),
    _of("comparisons", ("pairs", "judged"), ",d"),
    _of("seconds", ("seconds", ""), ".0f"),
)


TEXTS = ("recipe", "rule", "fit", "aims at")


def show(record: Record, console: Console) -> None:
    """Prints everything."""
    limits = [f"{limit:,} {name}" for name, limit in record["budget"].items() if limit is not None]
    console.print(f"{record['config']}: at most {' and '.join(limits)} for each recipe")
    console.print(table(record, console))
    for note in notes(record):
        console.print(note)
    if record["pairwise"] is not None:
        exact = record["pairwise"]["exact"]
        how = "exact" if exact else "judged on the evaluation prompts, ± standard error"
        console.print(f"\nwin rate of the row over the column, {how}")
        console.print(*matrix(record, console), sep="\n")


def table(record: Record, console: Console) -> Table:
    """A row per recipe, a column per number that is known of any; those left out at the end.

    Several columns share one where the console is too narrow for each to have its own.
    """
    rows = record["recipes"]
    columns = [c for c in COLUMNS if any(c.value(row) is not None for row in rows)]
    unbounded = console.options.update(max_width=1000)
    found = _table(record, columns, 1)
    for height in range(2, len(columns)):
        if console.measure(found, options=unbounded).maximum <= console.width:
            break
        found = _table(record, columns, height)
    return found


def _table(record: Record, columns: Sequence[Column], height: int) -> Table:
    """Every column of it shows that many of `columns`, one below the other."""
    found = _blank()
    groups = [columns[i : i + height] for i in range(0, len(columns), height)]
    for group in groups:
        if len(group) == 1:
            head = "\n".join(group[0].heading)
        else:
            whole = (" ".join(column.heading).replace("- ", "").strip() for column in group)
            head = "\n".join(whole)
        left = group[0].heading[0] in TEXTS
        found.add_column(head, justify="left" if left else "right", no_wrap=True)
    for row in record["recipes"]:
        found.add_row(*("\n".join(c.show(row).strip() for c in group) for group in groups))
        if height > 1:
            found.add_section()
    for row in record["skipped"]:
        found.add_row(row["recipe"], "left out", style="dim")
    return found


def matrix(record: Record, console: Console) -> list[Table]:
    """Who wins how often: each row over each column, as many columns at a time as have room."""
    unbounded = console.options.update(max_width=1000)
    n = len(record["pairwise"]["policies"])
    across = n
    while across > 1:
        widest = _matrix(record, range(across))
        if console.measure(widest, options=unbounded).maximum <= console.width:
            break
        across -= 1
    return [_matrix(record, range(i, min(i + across, n))) for i in range(0, n, across)]


def _matrix(record: Record, columns: range) -> Table:
    known = record["pairwise"]
    rates, errors = known["win_rate"], known["standard_error"]
    found = _blank()
    found.add_column("", no_wrap=True)
    for j in columns:
        found.add_column(str(j + 1), justify="right", no_wrap=True)
    for i, name in enumerate(known["policies"]):
        cells = [f"{rates[i][j]:.3f}" for j in columns]
        if errors is not None:
            cells = [f"{c}\n±{errors[i][j] or 0:.3f}" for c, j in zip(cells, columns, strict=True)]
        if i in columns:
            cells[columns.index(i)] = "–"
        found.add_row(f"{i + 1} {name}", *cells)
    return found


CLAIMED = {
    "average": "the average alone is claimed to converge to this π*, not the last iterate",
    "neither": "not claimed to converge to this π*",
}


FITTED = "trained on selected pairs or on who wins them, which need not lead to this π*"


def notes(record: Record) -> list[str]:
    """What a row leaves unsaid, each reason once."""
    why: dict[str, list[str]] = {}
    for row in record["skipped"]:
        why.setdefault(f"left out: {row['reason']}", []).append(row["recipe"])
    for row in record["recipes"]:
        if row["kl_to_equilibrium"] is None:
            continue
        if row["claims"] in CLAIMED:
            why.setdefault(CLAIMED[row["claims"]], []).append(row["recipe"])
        elif not row["reaches"]:
            why.setdefault(FITTED, []).append(row["recipe"])
    return [f"{', '.join(names)}: {reason}" for reason, names in why.items()]


def _blank() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False)


PANELS = {
    "kl_to_equilibrium": "KL(π*‖π_t) in nats, each to the π* that it aims at",
    "win_rate": "win rate over μ",
    "kl_to_reference": "KL to μ in nats",
    "length": "length in tokens",
}


@style.styled
def picture(record: Record) -> Figure:
    """What is known of the iterates, against the tokens that were generated on the way."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    looks = _looks(record["recipes"])
    figure = Figure(figsize=(10, 7.6))
    *panels, key = figure.subplots(2, 2).flat
    figure.suptitle(f"{record['config']}: recipes on one budget", x=0.01, ha="left", fontsize=12)
    for axes, (name, title) in zip(panels, _known(record["recipes"]), strict=False):
        axes.set_title(title)
        axes.set_xlabel("tokens generated")
        for row, look in zip(record["recipes"], looks, strict=True):
            known = [point for point in row["trace"] if point[name] is not None]
            axes.plot([p["tokens"] for p in known], [p[name] for p in known], **look)
        if name == "kl_to_equilibrium":
            axes.set_yscale("log")
    key.axis("off")
    handles = [
        Line2D([], [], label=f"{row['recipe']}   [{row['rule']} × {row['fit']}]", **look)
        for row, look in zip(record["recipes"], looks, strict=True)
    ]
    legend = key.legend(
        handles=handles, loc="upper left", borderaxespad=0.0, alignment="left", handlelength=3,
        title="recipe   [rule × fit]", fontsize=9 * min(1.0, 14 / len(handles)),
    )  # fmt: skip
    legend.get_title().set(fontsize=9, fontstyle="italic")
    return figure


def _known(rows: Sequence[Record]) -> list[tuple[str, str]]:
    """The first three panels that have something to show."""
    points = [point for row in rows for point in row["trace"]]
    known = [name for name in PANELS if any(p[name] is not None for p in points)]
    return [(name, PANELS[name]) for name in known][:3]


def _looks(rows: Sequence[Record]) -> list[dict[str, Any]]:
    """A colour and a marker for each rule, a stroke for each recipe of it."""
    rules = list(dict.fromkeys(row["rule"] for row in rows))
    own = [rule for rule in rules if rule not in style.RULES]
    looks, seen = [], dict.fromkeys(rules, 0)
    for row in rows:
        rule = row["rule"]
        look: dict[str, Any] = style.of_rule(rule, own.index(rule) if rule in own else 0)
        look["linestyle"] = STROKES[seen[rule] % len(STROKES)]
        seen[rule] += 1
        looks.append(look)
    return looks
