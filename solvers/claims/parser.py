"""Arguments of `python -m solvers claims`; does not import the claims, so that --help is fast."""

from __future__ import annotations

from argparse import ArgumentParser, _SubParsersAction
from pathlib import Path

from games.loading import KINDS


def add_parser(commands: _SubParsersAction) -> ArgumentParser:
    """Adds the subcommand and returns its parser."""
    about = "test the statements of the papers: which hold, need a correction, or fail"
    parser = commands.add_parser("claims", help=about, description=f"{about}.", allow_abbrev=False)
    parser.add_argument(
        "--paper", metavar="NAME", help="only the claims of one paper, such as RSPO (default: all)"
    )
    parser.add_argument(
        "--game",
        metavar="GAME",
        help="test on this game, a name or a file as for solve; claims that need other games are "
        "left out (default: random games)",
    )
    kinds = [kind for kind in KINDS if kind != "zero_sum"]
    parser.add_argument("--as", dest="kind", choices=kinds, help="kind of the --game file")
    parser.add_argument(
        "--prior", type=float, metavar="COUNT", help="with --as wins: see solve --help"
    )
    parser.add_argument(
        "--reference",
        default="uniform",
        metavar="uniform|FILE",
        help="reference policy of that game (default: uniform)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="random seed (default: 0)")
    parser.add_argument(
        "--json",
        metavar="FILE|-",
        help="write the results as JSON; with -, to standard output and nothing else there",
    )
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="write the full ledger as Markdown (CLAIMS.md)",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot the claims that have curves (.png, .pdf or .svg)",
    )
    return parser
