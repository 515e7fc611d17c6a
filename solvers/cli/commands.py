"""The commands `games`, `solve`, `compare` and `nash`, with parsed arguments."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from games import InputError, MatrixGame, zoo
from games.printable import printable

from .. import outputs
from ..compare import Run, Skipped, compare, run
from ..console import ProgressBar, print_path
from ..equilibrium import Equilibrium, equilibrium
from ..loop import Status, kl_divergence
from ..rules import get_rule
from . import tables
from .arguments import Game, check_outputs, named_game, named_reference, report_console


def games_command(args: Namespace) -> int:
    """Lists the named games."""
    report_console(args).print(tables.catalogue(zoo.NAMES))
    return 0


def solve_command(args: Namespace) -> int:
    """Runs one rule; exit code 1 if it diverged."""
    check_outputs(args)
    game = named_game(args)
    rule = get_rule(args.rule, eta=args.eta, tau=args.tau, regularizer=args.regularizer)
    reference = named_reference(args, game)
    report = report_console(args)
    with ProgressBar(args.steps) as bar:
        played = run(
            game,
            rule,
            reference=reference,
            steps=args.steps,
            tol=args.tol,
            keep_policies=args.plot is not None and game.payoff.shape[:-1] == (3,),
            on_step=lambda t: bar(rule.name, t),
        )
    _print_solution(report, args, game, played)
    if args.json is not None:
        outputs.write_json(_solve_record(args, game, played), args.json)
    if args.plot is not None:
        from .. import plots

        title = f"{_short(args.game)}: {played.label}, {played.target}"
        plots.save(plots.run(game, played, title), args.plot)
        print_path(report, args.plot)
    if played.solution.status is Status.NON_FINITE:
        print(
            f"solvers: {rule.name} diverged (NaN or infinity, or a negative gap) after step "
            f"{played.solution.steps}; the policy is the last finite one: take a smaller --eta",
            file=sys.stderr,
        )
        return 1
    return 0


def compare_command(args: Namespace) -> int:
    """Runs all rules, or some, each compared with its target equilibrium."""
    check_outputs(args)
    picture = args.plot or _default_picture(args.game)
    game = named_game(args)
    report = report_console(args)
    names = None if args.rules == "all" else list(dict.fromkeys(args.rules.split(",")))
    with ProgressBar(args.steps) as bar:
        runs = compare(
            game,
            names,
            regularizer=args.regularizer,
            tau=args.tau,
            eta=args.eta,
            reference=named_reference(args, game),
            steps=args.steps,
            tol=args.tol,
            on_step=bar,
        )
    if not any(isinstance(played, Run) for played in runs):
        raise InputError("; ".join(tables.notes(runs)))
    title = printable(f"{args.game}, {_size(game)}")
    report.print(tables.comparison(runs, title, report))
    _print_notes(report, runs)
    if args.json is not None:
        outputs.write_json([_compare_record(args, played) for played in runs], args.json)
    from .. import plots

    title = f"{_short(args.game)}: each rule and its target equilibrium"
    if args.plot is None:
        picture.parent.mkdir(exist_ok=True)
    plots.save(plots.comparison(runs, title), picture)
    print_path(report, picture)
    return 0


def nash_command(args: Namespace) -> int:
    """Finds the exact equilibrium; exit code 1 if the solver did not converge."""
    check_outputs(args)
    game = named_game(args)
    regularizer, tau = None, 0.0
    if args.regularizer is not None or args.tau is not None:
        regularizer, tau = get_rule("gmmd", regularizer=args.regularizer, tau=args.tau).target
    reference = named_reference(args, game)
    star = _method(args.method)(game, regularizer, tau, reference)
    report = report_console(args)
    rows = {
        "game": f"{args.game}, {_size(game)}",
        "regularizer": "none" if regularizer is None else f"{regularizer.name}, τ={tau:g}",
        "value": tables.span(star.value),
        "duality gap": tables.small(star.duality_gap),
        "method": f"{star.method}, {star.seconds:.3g} s",
    }
    report.print(tables.facts(rows))
    if not np.all(star.unique):
        report.print("One of many equilibria: the analytic center of the optimal face.")
    _print_policies(report, game, {"equilibrium": star.policy}, 0)
    if isinstance(game, MatrixGame):
        _print_policies(report, game, {"equilibrium": star.opponent_policy}, 1)
    if args.json is not None:
        record = {
            "policy": star.policy,
            "opponent_policy": star.opponent_policy,
            "value": star.value,
            "duality_gap": star.duality_gap,
            "method": star.method,
            "seconds": star.seconds,
        }
        outputs.write_json(record, args.json)
    if star.status is not Status.CONVERGED:
        gap = tables.small(star.duality_gap)
        print(
            f"solvers: {star.method} stopped at a duality gap of {gap}: try another --method",
            file=sys.stderr,
        )
        return 1
    return 0


def _method(name: str) -> Callable[..., Equilibrium]:
    """The solver of `nash --method`; cvxpy is loaded only here."""
    if name == "exact":
        return equilibrium
    from .. import convex

    return {"cvxpy": convex.equilibrium_by_cvxpy, "lp": convex.equilibrium_by_lp}[name]


COMMANDS = {
    "games": games_command,
    "solve": solve_command,
    "compare": compare_command,
    "nash": nash_command,
}


def _default_picture(game: str) -> Path:
    """runs/compare-<game>.png in the working directory; refused if it could not be made."""
    picture = Path("runs") / f"compare-{_short(game).replace(':', '-')}.png"
    folder = picture.parent
    outputs.check_target(picture if folder.exists() else folder)
    return picture


def _short(game: str) -> str:
    """A file's name without its folder and ending; a name of the zoo as it is."""
    return Path(game).stem


def _solve_record(args: Namespace, game: Game, played: Run) -> dict:
    """The JSON contract of `solve`."""
    solution, star = played.solution, played.equilibrium
    regularizer, tau = played.rule.target
    history = solution.history
    rows = zip(history.steps, history.gap, played.kl, strict=True)
    record = {
        "game": args.game,
        "rule": played.rule.name,
        "regularizer": regularizer and regularizer.name,
        "tau": tau,
        "eta": played.rule.step_size,
        "steps": solution.steps,
        "status": str(solution.status),
        "policy": solution.policy,
        "average_policy": solution.average,
        "duality_gap": solution.gap,
        "reference_policy": np.exp(solution.reference),
        "kl_to_reference": kl_divergence(solution.logp, solution.reference),
        "equilibrium_policy": star.policy,
        "kl_to_equilibrium": played.kl[-1],
        "seed": args.seed,
        "versions": outputs.versions(),
        "trace": [
            {"step": step, "duality_gap": gap, "kl_to_equilibrium": kl} for step, gap, kl in rows
        ],
    }
    if isinstance(game, MatrixGame):
        record["opponent_policy"] = solution.opponent_policy
        record["opponent_average_policy"] = solution.opponent_average
    return record


def _compare_record(args: Namespace, played: Run | Skipped) -> dict:
    regularizer, tau = played.rule.target
    record = {
        "game": args.game,
        "rule": played.rule.name,
        "label": played.label,
        "applies": isinstance(played, Run),
        "note": "; ".join(tables.notes([played])),
        "regularizer": regularizer and regularizer.name,
        "tau": tau,
        "claims": played.rule.converges,
    }
    if isinstance(played, Skipped):
        return record
    solution = played.solution
    return record | {
        "target": played.target,
        "eta": played.rule.step_size,
        "steps": solution.steps,
        "status": str(solution.status),
        "duality_gap": solution.gap,
        "average_duality_gap": solution.average_gap,
        "kl_to_equilibrium": played.kl[-1],
        "seconds": solution.seconds,
        "policy": solution.policy,
        "average_policy": solution.average,
        "equilibrium_policy": played.equilibrium.policy,
    }


def _print_solution(report: Console, args: Namespace, game: Game, played: Run) -> None:
    solution, star = played.solution, played.equilibrium
    eta = played.rule.step_size
    gaps = f"{tables.small(solution.gap)}, of the average {tables.small(solution.average_gap)}"
    rows = {
        "game": f"{args.game}, {_size(game)}",
        "rule": f"{played.label}, η = {eta:.4g}" if isinstance(eta, float) else played.label,
        "target": played.target,
        "status": f"{solution.status} after {solution.steps} steps, {solution.seconds:.2f} s",
        "duality gap": gaps,
        "KL(π*‖π)": tables.small(played.kl[-1]),
        "KL(π‖μ)": tables.small(kl_divergence(solution.logp, solution.reference)),
    }
    report.print(tables.facts(rows))
    _print_notes(report, [played])
    columns = {
        "last iterate π": solution.policy,
        "average": solution.average,
        "equilibrium π*": star.policy,
    }
    _print_policies(report, game, columns, 0)
    if isinstance(game, MatrixGame):
        columns = {
            "last iterate π": solution.opponent_policy,
            "average": solution.opponent_average,
            "equilibrium π*": star.opponent_policy,
        }
        _print_policies(report, game, columns, 1)


def _print_policies(report: Console, game: Game, columns: dict, player: int) -> None:
    """The policies of one player: 0 for the row player or the only one, 1 for the column player."""
    if game.batch_shape:
        if player == 0:
            report.print("For batches, policies are written only to JSON (--json FILE).")
        return
    if isinstance(game, MatrixGame):
        title = ("row player", "column player")[player]
        labels = (game.row_labels, game.column_labels)[player]
    else:
        title, labels = "", game.labels
    report.print(tables.policies(columns, labels, title))


def _print_notes(report: Console, runs: Sequence[Run | Skipped]) -> None:
    for note in tables.notes(runs):
        report.print(note)


def _size(game: Game) -> str:
    size = f"{game.payoff.shape[-2]} x {game.payoff.shape[-1]}"
    batch = f"{math.prod(game.batch_shape)} games of " if game.batch_shape else ""
    return f"{batch}{size}, {game.kind}"
