"""`python -m solvers claims`: prints the ledger; writes it as JSON, as Markdown or as a figure."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence

from rich.progress import Progress

from games import InputError, MatrixGame
from games.lookup import suggestion

from .. import outputs
from ..cli.arguments import check_outputs, named_game, named_reference, report_console
from ..console import make_console, print_path
from ..rates import lipschitz
from . import claims, report
from .ledger import Claim, Entry, Setting


def run(args: Namespace) -> int:
    """Runs the command; returns its exit code."""
    check_outputs(args)
    if args.markdown is not None:
        outputs.check_target(args.markdown)
    setting = _setting(args)
    rows = _measured(_chosen(args.paper, setting), setting)
    console = report_console(args)
    console.print(report.table(rows))
    console.print(report.summary(rows))
    if args.json:
        outputs.write_json([row.record() for row in rows], args.json)
    if args.markdown is not None:
        text = report.markdown(rows).encode()
        outputs.write_whole(args.markdown, lambda file: file.write(text))
        print_path(console, args.markdown)
    if args.plot is not None:
        _draw(rows, args)
        print_path(console, args.plot)
    return 0


def _setting(args: Namespace) -> Setting:
    """Random games, or the game and reference from the arguments."""
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: the seed must be a whole number >= 0")
    if args.game is None:
        if args.kind is not None or args.prior is not None or args.reference != "uniform":
            raise InputError("--as, --prior and --reference need a game: add --game FILE")
        return Setting(seed=args.seed)
    game = named_game(args)
    if isinstance(game, MatrixGame):
        raise InputError(
            f"{args.game}: claims can only be tested on symmetric games: use --as preference, "
            "skew or wins"
        )
    if lipschitz(game) == 0:
        raise InputError(f"{args.game}: all payoffs are equal; claims cannot be tested on it")
    return Setting(game, named_reference(args, game), seed=args.seed)  # type: ignore[arg-type]


def _chosen(paper: str | None, setting: Setting) -> list[Claim]:
    """The claims of the paper, or of all papers, that can be tested in the setting."""
    every = claims()
    papers = list(dict.fromkeys(claim.paper for claim in every))
    if paper is not None:
        names = {name.casefold(): name for name in papers}
        if paper.casefold() not in names:
            raise InputError(f"unknown paper '{paper}': {suggestion(paper, papers)}")
        every = [claim for claim in every if claim.paper == names[paper.casefold()]]
    if setting.game is not None:
        every = [claim for claim in every if setting.game.kind in claim.on]
    if not every:
        raise InputError(f"no claim of {paper} can be tested on a given game: leave out --game")
    return every


def _measured(chosen: Sequence[Claim], setting: Setting) -> list[Entry]:
    """Tests the claims, with a progress bar on a terminal."""
    with Progress(console=make_console(sys.stderr), transient=True) as bar:
        bar.disable = not bar.console.is_terminal
        task, rows = bar.add_task("testing", total=len(chosen)), []
        for claim in chosen:
            bar.update(task, description=f"{claim.paper} {claim.equation}")
            rows.append(claim(setting))
            bar.advance(task)
    return rows


def _draw(rows: Sequence[Entry], args: Namespace) -> None:
    from .. import plots

    charts = [row.finding.chart for row in rows if row.finding.chart is not None]
    if not charts:
        raise InputError("none of these claims has curves: leave out --plot or --paper")
    plots.save(report.figure(charts), args.plot)
