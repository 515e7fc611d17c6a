"""The arguments of `python -m solvers claims`, apart from what they set off: help is quick."""

from __future__ import annotations

from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

from games.loading import KINDS


def add_parser(commands: _SubParsersAction) -> ArgumentParser:
    """The parser of the subcommand."""
    about = "measure what the papers state: what holds, what needs mending, what fails"
    parser = commands.add_parser("claims", help=about, description=f"{about}.", allow_abbrev=False)
    parser.add_argument(
        "--paper", metavar="NAME", help="the claims of one paper, such as RSPO (default: all)"
    )
    parser.add_argument(
        "--game",
        metavar="GAME",
        help="a name or a file, as for solve: only those claims that can be measured on this game, "
        "on it (default: random games)",
    )
    kinds = [kind for kind in KINDS if kind != "zero_sum"]
    parser.add_argument("--as", dest="kind", choices=kinds, help="what the file of --game holds")
    parser.add_argument(
        "--prior", type=float, metavar="COUNT", help="with --as wins: see solve --help"
    )
    parser.add_argument(
        "--reference",
        default="uniform",
        metavar="uniform|FILE",
        help="the reference policy on that game (default: uniform)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of what is random (default: 0)"
    )
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="write the rows as JSON; with - standard output has it alone",
    )
    parser.add_argument(
        "--markdown", type=Path, metavar="FILE", help="write them in full, as in CLAIMS.md"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw those with a curve (.png, .pdf or .svg)"
    )
    return parser
