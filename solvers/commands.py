"""What `python -m solvers` does once its arguments are known."""

from __future__ import annotations

import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.progress import Progress, TaskID

from games import InputError, MatrixGame, PreferenceGame, SkewGame, load, load_reference, zoo

from . import outputs, tables
from .compare import Reference, Run, Skipped, compare, run
from .equilibrium import Equilibrium, equilibrium
from .rules import get_rule
from .solve import Status, kl_divergence

Game = PreferenceGame | SkewGame | MatrixGame

PLAIN_WIDTH = 160  # of a table that goes to a file or a pipe


def games_command(args: Namespace) -> int:
    """List the games that go by name."""
    report_console(args).print(tables.catalogue(zoo.NAMES))
    return 0


def solve_command(args: Namespace) -> int:
    """Play one rule; exit code 1 if it left the finite numbers."""
    check_outputs(args)
    game = named_game(args)
    rule = get_rule(args.rule, eta=args.eta, tau=args.tau, regularizer=args.regularizer)
    reference = named_reference(args, game)
    report = report_console(args)
    with _Bar(args.steps) as bar:
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
        from . import plots

        title = f"{_short(args.game)}: {played.label}, {played.target}"
        plots.save(plots.run(game, played, title), args.plot)
        print_path(report, args.plot)
    if played.solution.status is Status.NON_FINITE:
        print(
            f"solvers: {rule.name} left the finite numbers after step {played.solution.steps}; "
            "the policy is the last finite one: take a smaller --eta",
            file=sys.stderr,
        )
        return 1
    return 0


def compare_command(args: Namespace) -> int:
    """Play all rules, or some, each against the equilibrium that it aims at."""
    check_outputs(args)
    picture = args.plot or _default_picture(args.game)
    game = named_game(args)
    report = report_console(args)
    names = None if args.rules == "all" else list(dict.fromkeys(args.rules.split(",")))
    with _Bar(args.steps) as bar:
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
    report.print(tables.comparison(runs, f"{args.game}, {_size(game)}", report))
    _print_notes(report, runs)
    if args.json is not None:
        outputs.write_json([_compare_record(args, played) for played in runs], args.json)
    from . import plots

    title = f"{_short(args.game)}: each rule against its equilibrium"
    if args.plot is None:
        picture.parent.mkdir(exist_ok=True)
    plots.save(plots.comparison(runs, title), picture)
    print_path(report, picture)
    return 0


def nash_command(args: Namespace) -> int:
    """Find the exact equilibrium; exit code 1 if the solver did not get there."""
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


def claims_command(args: Namespace) -> int:
    """Measure what the papers state; the ledger is loaded only here."""
    from .claims import command

    return command.run(args)


def _method(name: str) -> Callable[..., Equilibrium]:
    """The solver of `nash --method`; cvxpy is loaded only here."""
    if name == "exact":
        return equilibrium
    from . import reference

    return {"cvxpy": reference.equilibrium_by_cvxpy, "lp": reference.equilibrium_by_lp}[name]


COMMANDS = {
    "games": games_command,
    "solve": solve_command,
    "compare": compare_command,
    "nash": nash_command,
    "claims": claims_command,
}


def named_game(args: Namespace) -> Game:
    """GAME, which is a name of the zoo or else a file."""
    name, path = args.game, Path(args.game)
    known = name.partition(":")[0] in zoo.NAMES
    if not known and (path.suffix or len(path.parts) > 1 or os.path.exists(path)):
        return load(path, args.kind or "preference", args.prior)
    game = zoo.get(name, args.seed)
    if args.kind not in (None, game.kind) or args.prior is not None:
        raise InputError(
            f"{name} is a game of kind {game.kind} already: leave out --as and --prior"
        )
    return game


def named_reference(args: Namespace, game: Game) -> Reference:
    """log μ, a pair of them in a zero-sum game; None for uniform."""
    if args.reference == "uniform":
        return None
    if not isinstance(game, MatrixGame):
        return np.log(load_reference(args.reference, game.n))
    files = args.reference.split(",")
    if len(files) != 2:
        raise InputError(
            f"--reference {args.reference}: a zero-sum game needs two files, ROWS,COLUMNS"
        )
    first, second = (
        np.log(load_reference(file, n)) for file, n in zip(files, (game.m, game.n), strict=True)
    )
    return first, second


def check_outputs(args: Namespace) -> None:
    """Refuse what could not be written, before anything is computed."""
    if args.json not in (None, "-"):
        outputs.check_target(Path(args.json))
    if getattr(args, "plot", None) is not None:
        outputs.check_picture(args.plot)


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
        "eta": tables.step_size(played.rule),
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
        "eta": tables.step_size(played.rule),
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
    eta = tables.step_size(played.rule)
    gaps = f"{tables.small(solution.gap)}, of the average {tables.small(solution.average_gap)}"
    rows = {
        "game": f"{args.game}, {_size(game)}",
        "rule": f"{played.label}, η = {eta:.4g}" if isinstance(eta, float) else played.label,
        "aims at": played.target,
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
            report.print("The policies of a batch of games are in the JSON alone (--json FILE).")
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


def print_path(report: Console, path: Path) -> None:
    """On a line of its own, whole however long."""
    print(path, file=report.file, flush=True)


def _size(game: Game) -> str:
    size = f"{game.payoff.shape[-2]} x {game.payoff.shape[-1]}"
    batch = f"{math.prod(game.batch_shape)} games of " if game.batch_shape else ""
    return f"{batch}{size}, {game.kind}"


def report_console(args: Namespace) -> Console:
    """Where tables go: standard output, or standard error where that carries JSON alone."""
    aside = getattr(args, "json", None) == "-"
    return _console(sys.stderr if aside else sys.stdout)


def _console(stream: TextIO) -> Console:
    narrow = stream.isatty() or "COLUMNS" in os.environ
    width = None if narrow else PLAIN_WIDTH
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


class _Bar:
    """A progress bar on standard error, on a terminal, for what takes longer than a second."""

    def __init__(self, steps: int) -> None:
        self._bar = Progress(console=_console(sys.stderr), transient=True)
        self._steps = steps
        self._began = time.monotonic()
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tasks:
            self._bar.stop()

    def __call__(self, label: str, step: int) -> None:
        """Step `step` of the run of that label is done."""
        if not self._bar.console.is_terminal or time.monotonic() - self._began < 1:
            return
        if label not in self._tasks:
            for task in self._tasks.values():
                self._bar.remove_task(task)
            self._tasks = {label: self._bar.add_task(label, total=self._steps)}
            self._bar.start()
        self._bar.update(self._tasks[label], completed=step)
