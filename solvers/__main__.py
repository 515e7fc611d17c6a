"""The command line: `python -m solvers`.

Only what the help needs is imported here; each command brings the rest.
"""

from __future__ import annotations

import math
import sys
from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

from games import InputError, startup, zoo
from games.loading import KINDS
from games.printable import one_line

from .claims.parser import add_parser as add_claims
from .console import Parser, forget_output, output_stopped, prepare_streams, unexpected
from .divergences import NAMES
from .rules import DEFAULT_TAU, RULES

REGULARIZERS = (
    f"{', '.join(NAMES)}, your own kernel as package.module:object, "
    "or a weighted sum such as 0.1*forward_kl+0.5*reverse_kl"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0: done, whether or not a run converged. 1: a run of `solve` diverged. 2: bad
    input, one line on standard error. 70: an unexpected error. 130: interrupted.
    """
    try:
        args = _parser().parse_args((sys.argv[1:] if argv is None else argv) or ["compare"])
        return _command(args.command)(args)
    except InputError as error:
        print(f"solvers: {one_line(str(error))}", file=sys.stderr)
        return 2
    except MemoryError:
        print("solvers: this game does not fit into memory; take a smaller one", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("solvers: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and output_stopped(error):
            forget_output()
            if not isinstance(error, BrokenPipeError):
                print(f"solvers: output stopped: {error.strerror}", file=sys.stderr)
            return 1
        print(f"solvers: {one_line(unexpected(error))}", file=sys.stderr)
        return 70


def _command(name: str) -> Callable[[Namespace], int]:
    """The function of a command; what it needs is imported only now."""
    if name == "claims":
        from .claims.command import run

        return run
    from .cli.commands import COMMANDS

    return COMMANDS[name]


def _parser() -> Parser:
    parser = Parser(
        prog="python -m solvers",
        description="Play preference games by update rules, and find their equilibria. "
        f"Without a command: compare on the game '{zoo.DEFAULT}'.",
        allow_abbrev=False,
    )
    version = f"nashplay {metadata.version('nashplay')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    def add(name: str, about: str, epilog: str | None = None) -> Parser:
        added = commands.add_parser(
            name, help=about, description=f"{about}.", epilog=epilog, allow_abbrev=False
        )
        added.set_defaults(command=name)
        return added

    add("games", "list the named games")

    solve = add(
        "solve",
        "play one rule on a game",
        "exit code: 0 if the run converged or ran all its steps, 1 if it diverged (NaN or "
        "infinity), 2 for bad input",
    )
    _add_game(solve)
    solve.add_argument(
        "--rule",
        default="gmmd",
        metavar="NAME",
        help=f"{', '.join(name for name, rule in RULES.items() if not rule.needs_data)}, "
        "or your own as package.module:object (default: gmmd)",
    )
    _add_regularizer(solve, "the rule's own")
    _add_run(solve, steps=1000)
    _add_json(solve, "the result")
    solve.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw gap and KL over the iterations, and the path if there are three actions "
        "(.png, .pdf or .svg)",
    )

    compare = add(
        "compare",
        "play many rules on a game, and compare each with its target equilibrium",
        "a setting that a rule does not have is not passed to it; rules that do not apply are "
        "listed with the reason",
    )
    _add_game(compare)
    compare.add_argument(
        "--rules",
        default="all",
        metavar="A,B,...",
        help="names as for solve --rule, or all (default: all)",
    )
    _add_regularizer(compare, "each rule's own")
    _add_run(compare, steps=2000)
    _add_json(compare, "a list with one entry for each run")
    compare.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="where to draw gaps and KL (.png, .pdf or .svg; default: runs/compare-GAME.png)",
    )

    nash = add("nash", "find the exact equilibrium of a game, regularized or not")
    _add_game(nash)
    _add_regularizer(nash, "none; reverse_kl if --tau is given")
    nash.add_argument(
        "--method",
        default="exact",
        choices=("exact", "cvxpy", "lp"),
        help="exact: Newton and interior point; cvxpy: a general convex solver; lp: a linear "
        "program, unregularized games only (default: exact)",
    )
    _add_json(nash, "the result")
    add_claims(commands)
    return parser


def _add_game(parser: Parser) -> None:
    parser.add_argument(
        "game",
        nargs="?",
        default=zoo.DEFAULT,
        metavar="GAME",
        help="a name (python -m solvers games lists them) or a .csv, .txt, .json, .npy or .npz "
        f"file (default: {zoo.DEFAULT})",
    )
    parser.add_argument(
        "--as",
        dest="kind",
        choices=KINDS,
        help="what the file holds: preference (P + P^T = 1, the default), skew (A = -A^T), "
        "zero_sum (payoffs of the row player) or wins (counts)",
    )
    parser.add_argument(
        "--prior",
        type=_number,
        metavar="COUNT",
        help="with --as wins: wins to add on both sides of every pair",
    )
    parser.add_argument(
        "--seed", type=_seed, default=0, metavar="S", help="of a random game (default: 0)"
    )
    parser.add_argument(
        "--reference",
        default="uniform",
        metavar="uniform|FILE",
        help="the reference policy, which is also the start of runs: uniform, or a "
        "file with a probability for each action; ROWS,COLUMNS for a zero-sum game "
        "(default: uniform)",
    )


def _add_regularizer(parser: Parser, default: str) -> None:
    parser.add_argument(
        "--regularizer", metavar="SPEC", help=f"{REGULARIZERS} (default: {default})"
    )
    parser.add_argument(
        "--tau",
        type=_number,
        metavar="T",
        help=f"temperature of the game, in units of the payoff (default: {DEFAULT_TAU:g} where "
        "there is a regularizer)",
    )


def _add_run(parser: Parser, steps: int) -> None:
    parser.add_argument(
        "--eta",
        type=_eta,
        metavar="E",
        help="step size: a number, or theory (default: theory where there is one, else the "
        "no-regret step)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=steps,
        metavar="N",
        help=f"maximum number of iterations (default: {steps})",
    )
    parser.add_argument(
        "--tol",
        type=_number,
        metavar="X",
        help="stop when the duality gap is at most X; 0 never stops early (default: 1e-10 times "
        "the range of the payoffs, or times --tau where that is larger)",
    )


def _add_json(parser: Parser, what: str) -> None:
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help=f"write {what} as JSON; - writes only JSON to standard output",
    )


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise ArgumentTypeError(f"{text!r} is not a number")
    return number


def _eta(text: str) -> float | str:
    return text if text == "theory" else _number(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise ArgumentTypeError(f"{text!r} is not a whole number >= 0")
    return int(text)


if __name__ == "__main__":
    prepare_streams()
    startup.begin()
    sys.exit(main())
